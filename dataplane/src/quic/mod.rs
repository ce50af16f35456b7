//! QUIC on a core: one [`endpoint::Endpoint`] per socket, one [`lane::Lane`] per connection.
//!
//! Flows never touch the socket. They read and write streams of a lane, which marks the lane as
//! having something to send. The endpoint's tasks receive in batches, wake the flows that can go
//! on, and flush every marked lane once.

mod admission;
pub(crate) mod control;
pub(crate) mod credentials;
pub(crate) mod end;
pub(crate) mod endpoint;
pub(crate) mod explain;
pub(crate) mod handshake;
pub(crate) mod lane;
pub(crate) mod liveness;
pub(crate) mod loss_watch;
pub(crate) mod over_tls;
pub(crate) mod path_numbers;
pub(crate) mod reset;
mod retry;
pub(crate) mod roaming;
pub(crate) mod sessions;
pub(crate) mod settings;
pub(crate) mod tickets;
pub(crate) mod timers;
pub(crate) mod tls;
pub(crate) mod token;
mod transmit;
