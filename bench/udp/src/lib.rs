//! UDP in batches: many packets in one system call, in both directions.
//!
//! `recvmmsg` with GRO and `sendmsg` with GSO, through quinn-udp, on a socket of tokio. A packet
//! costs a copy; it never costs an allocation.

#![forbid(unsafe_code)]

mod send_batch;
mod socket;

pub use send_batch::SendBatch;
pub use socket::{BatchSocket, Packet};
