//! A link with a rate, a delay, loss and all that real links do to packets, for machines whose
//! kernel has no netem.
//!
//! Two network namespaces with a TUN device each, and a router in user space between the two.
//! Programs that run in the namespaces see an ordinary interface: TCP, QUIC and whatever else is
//! compared cross the very same link.
//!
//! - [`Profile`] says what one direction does to packets; [`preset()`] names known links.
//! - [`Scheduler`] decides when a packet leaves the link, or whether it is dropped. It knows no clock and no device.
//! - [`Faults`] is what goes wrong for a while: a black hole, wrong bits, a NAT that forgets.
//! - [`Network`] builds the namespaces, runs the router and removes everything when it is dropped.
//!
//! What it emulates is the path behind a network card, not the card: the kernels hand over and take
//! segments of up to 64 KiB (TSO, USO, GRO), which the router cuts into the packets of the wire,
//! because loss and delay concern each packet on its own.
//!
//! # Accuracy
//!
//! `cargo test --workspace --test link -- --nocapture` measures it. On two shared cores: a rate of
//! 200 Mbit/s to 0.1 %, a round trip of 40 ms plus 0.4 ms, 1 % loss exactly as the scheduler
//! decided it, and one TCP stream fills 4 Gbit/s to 99 %.
//!
//! A packet leaves when a thread wakes up: some tens of microseconds late, or up to a twentieth of
//! the delay, at most 0.1 ms, early, so that several leave together. A machine that is overloaded
//! delays packets more than was asked; [`DirectionStats`] tells by how much, and a measurement
//! whose link ran late is not a measurement. The router's two threads have realtime priority where
//! that is allowed; their processor time is in the statistics too, with that of the receiving
//! kernel, which handles a packet on the thread that brings it.

#![forbid(unsafe_code)]

mod error;
mod faults;
mod frame;
mod jitter;
mod line;
mod loss;
mod namespace;
mod network;
mod preset;
mod profile;
mod router;
mod scheduler;
mod stats;

pub use error::LinkError;
pub use faults::Faults;
pub use namespace::{Namespace, ip};
pub use network::{Network, Side};
pub use preset::{PRESETS, Preset, preset};
pub use profile::{Loss, MTU_BYTES_DEFAULT, Profile, ProfileError, QueueLimit};
pub use scheduler::{Counters, DropCause, Dropped, Leaving, Scheduler};
pub use stats::{DirectionStats, Lateness, Stats};
