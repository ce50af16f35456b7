//! The error codes of flows and lanes on the wire, and the errors of decoders.

mod decode;
mod flow;
mod lane;

pub use decode::DecodeError;
pub use flow::FlowError;
pub use lane::LaneError;
