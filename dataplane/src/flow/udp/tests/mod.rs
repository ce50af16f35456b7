//! UDP flows with real sockets on loopback, by scenario.

mod batching;
mod encoding;
mod handover;
mod support;
mod through_lanes;
