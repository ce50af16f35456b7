//! The goals of qmux-dp's speed: which measurements show them, how their numbers are judged, and
//! the one table of it.
//!
//! Nothing here measures: every probe is a command of `qmux-bench` that stands for itself and can
//! be repeated alone. What it has written is judged here, so that a limit is written down once and
//! no number is copied by hand. Module `table` says what is wanted, `judge` whether it is
//! reached.

mod found;
mod judge;
mod page;
mod probe;
mod table;

pub(crate) use found::Found;
pub(crate) use page::Page;
pub(crate) use page::in_turn;
pub(crate) use probe::{ALLOCATIONS, BEFORE, GOALS, PROBES, Probe, RATHOLE};

#[cfg(test)]
mod tests;
