//! UDP packets from their fragments.
//!
//! A [`Reassembler`] holds the packets of one lane of which some fragments are still missing. Its
//! memory is bounded by its [`Limits`] whatever the peer sends: every buffer is counted with the
//! bytes that are allocated for it, not with those that arrived, and the oldest packets make room
//! for new ones. Buffers go back to a pool and every step is a hash look-up and a few links, so in
//! a steady state nothing is allocated and nothing is searched.
//!
//! Time comes in as an argument. Nothing that a caller can observe depends on the order of a hash
//! map.

mod buffers;
mod counters;
mod drop_reason;
mod flow;
mod limits;
mod list;
mod packet;
mod reassembler;
mod slots;

pub use counters::Counters;
pub use drop_reason::DropReason;
pub use flow::PACKET_WINDOW;
pub use limits::{BYTES_MAX_MIN, Limits};
pub use reassembler::Reassembler;
