//! Few repeated measurements, summarised without pretending that there are many.
//!
//! The median rather than the mean, because what disturbs a measurement on a shared machine only
//! ever makes it worse; the extremes rather than a deviation, because three to seven values have no
//! distribution to speak of.

use serde::{Deserialize, Serialize};

/// The summary of repeated measurements of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Summary {
    /// The middle value; the mean of the two middle ones of an even number.
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: usize,
}

impl Summary {
    /// Of at least one value; `None` of none. Values that are no numbers are left out.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|it| it.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        Some(Self {
            median: median_of_sorted(&values),
            min,
            max,
            samples: values.len(),
        })
    }

    /// Half the distance between the extremes, in percent of the median: the `±` of a table. Zero
    /// for a median of zero.
    pub(crate) fn spread_percent(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.max - self.min) / 2.0 / self.median.abs() * 100.0
    }
}

fn median_of_sorted(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// How many times as large `ours` is as `baseline`: the median over the rounds of the ratio within
/// a round. What slows a whole round, because the machine is shared, cancels out. `None` if no
/// round has both.
pub(crate) fn paired_ratio(ours: &[Option<f64>], baseline: &[Option<f64>]) -> Option<f64> {
    let ratios = ours
        .iter()
        .zip(baseline)
        .filter_map(|(ours, baseline)| Some(((*ours)?, (*baseline)?)))
        .filter(|(_, baseline)| *baseline != 0.0)
        .map(|(ours, baseline)| ours / baseline);
    Summary::of(ratios).map(|summary| summary.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_half_the_distance_of_the_extremes_sum_values_up() {
        for (values, median, min, max, spread) in [
            (&[3.0, 1.0, 2.0][..], 2.0, 1.0, 3.0, 50.0),
            (&[4.0, 1.0, 2.0, 8.0], 3.0, 1.0, 8.0, 350.0 / 3.0),
            (&[7.0], 7.0, 7.0, 7.0, 0.0),
            // A median of zero has no relative spread.
            (&[0.0, 0.0, 5.0], 0.0, 0.0, 5.0, 0.0),
        ] {
            let it = Summary::of(values.iter().copied()).expect("values");
            assert_eq!((it.median, it.min, it.max), (median, min, max));
            assert!((it.spread_percent() - spread).abs() < 1e-9, "{it:?}");
        }
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN, f64::INFINITY]), None);
    }

    #[test]
    fn ratios_are_taken_within_rounds_that_have_both() {
        // The second round was slow for both: the ratio is 2 in each.
        let (ours, baseline) = ([Some(20.0), Some(2.0)], [Some(10.0), Some(1.0)]);
        assert_eq!(paired_ratio(&ours, &baseline), Some(2.0));
        let ours = [Some(30.0), None, Some(8.0)];
        let baseline = [Some(10.0), Some(1.0), None];
        assert_eq!(paired_ratio(&ours, &baseline), Some(3.0));
        assert_eq!(paired_ratio(&ours, &[None, Some(1.0), Some(0.0)]), None);
    }
}
