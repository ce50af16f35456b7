//! UDP on the client: the flows of each lane, each with a socket of its own towards the service.
//!
//! [`ClientFlows`] owns the flows of one lane, [`CoreFlows`] what those of all lanes of a core
//! share. All of this lives on one core. No borrow of a `RefCell` is held across an `await` or a
//! call to another module.

mod addresses;
mod core_flows;
mod flow;
mod flows;
#[cfg(test)]
mod flows_tests;
mod pace;
mod wanted;

pub(crate) use core_flows::{CoreFlows, flows_max};
pub(crate) use flows::ClientFlows;
