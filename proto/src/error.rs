//! How things end: the codes that flows and lanes carry on the wire, and what a decoder finds wrong.

mod decode;
mod flow;
mod lane;

pub use decode::DecodeError;
pub use flow::FlowError;
pub use lane::LaneError;
