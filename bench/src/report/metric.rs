//! What is measured, with its unit and how it is shown.

use serde::Serialize;

/// Which direction is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// It only describes the measurement.
    Neither,
}

/// A measured quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its unit, or what it is where that says it: the head of its column.
    pub unit: &'static str,
    /// Which direction is good.
    pub better: Better,
    /// Digits behind the point.
    #[serde(skip)]
    pub decimals: usize,
    /// Whether tables have a column of ratios to each baseline.
    #[serde(skip)]
    pub has_ratio: bool,
    /// Whether it gets a chart.
    #[serde(skip)]
    pub has_chart: bool,
}

impl Metric {
    /// A quantity without ratios and chart.
    pub const fn new(
        name: &'static str,
        unit: &'static str,
        better: Better,
        decimals: usize,
    ) -> Self {
        Self {
            name,
            unit,
            better,
            decimals,
            has_ratio: false,
            has_chart: false,
        }
    }

    /// With ratios and a chart: what a measurement is about.
    #[must_use]
    pub const fn main(mut self) -> Self {
        self.has_ratio = true;
        self.has_chart = true;
        self
    }

    /// With a chart.
    #[must_use]
    pub const fn charted(mut self) -> Self {
        self.has_chart = true;
        self
    }
}

/// What the tunnel's processes use, server and client together. Every measurement has these.
pub const USAGE: &[Metric] = &[
    Metric::new("cpu_percent_average", "CPU avg %", Better::Lower, 0),
    Metric::new("cpu_percent_max", "CPU max %", Better::Lower, 0),
    Metric::new("memory_average_mib", "MiB avg", Better::Lower, 1),
    Metric::new("memory_max_mib", "MiB max", Better::Lower, 1),
    Metric::new("cpu_seconds_per_gb", "CPU s/GB", Better::Lower, 2).main(),
];
