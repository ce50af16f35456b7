//! `qmux-dp`: an L4 reverse tunnel. See `ARCHITECTURE.md` for the layers and the path of a byte.

mod buffer;
mod core;
mod flow;
mod metrics;
mod quic;
mod sys;

fn main() {}
