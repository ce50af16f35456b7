//! UDP from visitor to service and back: the server's and the client's flows, joined by lanes in
//! memory.

mod crowds;
mod hostile_peers;
mod through_lanes;
mod world;
