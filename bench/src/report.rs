//! Results, for programs (JSON), for readers (a table, Markdown) and for the eye (SVG).

pub mod chart;
pub mod flamegraph;
mod metric;
mod model;
pub mod page;
pub mod stages;
mod table;

pub use metric::{Better, Metric, USAGE, higher, lower, neither};
pub use model::{CaseReport, MetricSummary, Report, Run, Settings, TunnelReport};
pub use table::Table;
