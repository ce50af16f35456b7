//! UDP flows with real sockets on loopback, by scenario.

mod batching;
mod crowds;
mod encoding;
mod handover;
mod hostile_peers;
mod support;
mod through_lanes;
mod world;
