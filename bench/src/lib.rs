//! What the programs of this crate share: the baseline tunnel on quinn, load generators and reports.
//!
//! Nothing here belongs to qmux-dp itself. The baseline must be a fair opponent, so what it shares with the load
//! generators is as fast as the kernel allows: UDP goes through [`udp`] in batches with segmentation offload.

#![forbid(unsafe_code)]

pub mod goals;
pub mod harness;
pub mod load;
pub mod logging;
pub mod process;
pub mod report;
pub mod stats;
pub mod udp;
