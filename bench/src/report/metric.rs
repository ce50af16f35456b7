//! What is measured, with its unit and how it is shown.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
    Neither,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Metric {
    pub(crate) name: Cow<'static, str>,
    /// The head of the metric's column: its unit, or what it is where that says the unit.
    pub(crate) unit: Cow<'static, str>,
    pub(crate) better: Better,
    /// Digits behind the point. Older reports do not say.
    #[serde(default = "decimals_default")]
    pub(crate) decimals: usize,
    /// Whether tables have a column of ratios to each baseline.
    #[serde(skip)]
    pub(crate) has_ratio: bool,
    #[serde(skip)]
    pub(crate) has_chart: bool,
}

fn decimals_default() -> usize {
    2
}

impl Metric {
    /// A quantity without ratios and chart.
    const fn new(name: &'static str, unit: &'static str, better: Better, decimals: usize) -> Self {
        Self {
            name: Cow::Borrowed(name),
            unit: Cow::Borrowed(unit),
            better,
            decimals,
            has_ratio: false,
            has_chart: false,
        }
    }

    /// With ratios and a chart: what a measurement is about.
    #[must_use]
    pub(crate) const fn main(mut self) -> Self {
        self.has_ratio = true;
        self.has_chart = true;
        self
    }

    #[must_use]
    pub(crate) const fn charted(mut self) -> Self {
        self.has_chart = true;
        self
    }
}

/// A quantity of which more is better, without ratios and chart.
pub(crate) const fn higher(name: &'static str, unit: &'static str, decimals: usize) -> Metric {
    Metric::new(name, unit, Better::Higher, decimals)
}

pub(crate) const fn lower(name: &'static str, unit: &'static str, decimals: usize) -> Metric {
    Metric::new(name, unit, Better::Lower, decimals)
}

/// The same that only describes the measurement.
pub(crate) const fn neither(name: &'static str, unit: &'static str, decimals: usize) -> Metric {
    Metric::new(name, unit, Better::Neither, decimals)
}

/// What the tunnel's processes use, server and client together. Every measurement has these.
pub(crate) const USAGE: &[Metric] = &[
    lower("cpu_percent_average", "CPU avg %", 0),
    lower("cpu_percent_max", "CPU max %", 0),
    lower("memory_average_mib", "MiB avg", 1),
    lower("memory_max_mib", "MiB max", 1),
    lower("cpu_seconds_per_gb", "CPU s/GB", 2).main(),
];
