//! Results, for programs (JSON), for readers (a table, Markdown) and for the eye (SVG).

pub(crate) mod chart;
pub(crate) mod flamegraph;
mod metric;
mod model;
pub(crate) mod page;
pub(crate) mod stages;
mod table;

pub(crate) use metric::{Metric, USAGE, higher, lower, neither};
pub(crate) use model::{CaseReport, Report, Run, Settings, TunnelReport};
pub(crate) use table::Table;
