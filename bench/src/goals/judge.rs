//! Whether a goal is reached.
//!
//! A number is compared as it is shown, rounded: what reads as the limit is within it, and no line
//! contradicts itself.

use std::fmt;

use super::found::Found;
use super::probe::{OURS, QUINN_TUNED};
use super::table::Row;
use crate::stats::Summary;

/// Whether a goal is reached, and what was found, where the number itself does not say it. `None`
/// if it was not measured, or what it is compared with was not.
pub(super) type Verdict = Option<(bool, String)>;

/// With more to say, if anything is known.
fn saying(verdict: Verdict, more: &str) -> Verdict {
    verdict.map(|(reached, found)| (reached, found + more))
}

/// Missed in spite of its number, if that is known.
fn missed(verdict: Verdict) -> Verdict {
    verdict.map(|(_, found)| (false, found))
}

/// The verdict "not known", unless the goal is missed anyway.
fn not_known(verdict: Verdict) -> Verdict {
    verdict.filter(|(reached, _)| !reached)
}

/// A metric and the digits behind its point.
#[derive(Clone, Copy)]
pub(super) struct Metric(pub(super) &'static str, pub(super) usize);

pub(super) const GBIT: Metric = Metric("throughput_gbit_s", 2);
pub(super) const CPU: Metric = Metric("cpu_seconds_per_gb", 2);
const LOST: Metric = Metric("lost_percent", 3);

/// What may be lost where next to nothing is to be, in percent.
const LOST_PERCENT_MAX: f64 = 0.1;

#[derive(Clone, Copy)]
pub(super) enum Cell {
    Median(Metric),
    /// The median, and behind it another one if there is one, with a word before it: of a time
    /// beside bulk its rate, for a bulk that stands still disturbs nobody.
    Beside(Metric, &'static str, Metric),
    /// The medians in all cases that have one; the worst one is judged.
    Each(Metric),
    /// The largest of any run in any case, and in how many cases it was counted.
    LargestOfEach(Metric),
    /// Throughput and the worst loss, perhaps with CPU time.
    Delivered {
        cpu: bool,
    },
}

impl Cell {
    fn metric(self) -> Metric {
        match self {
            Self::Median(metric)
            | Self::Beside(metric, ..)
            | Self::Each(metric)
            | Self::LargestOfEach(metric) => metric,
            Self::Delivered { .. } => GBIT,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

/// What is allowed. `{}` in a text stands for the bound.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// The number that is shown is within a bound.
    Within(Bound, &'static str),
    /// A multiple of the number that other tunnels have; the best of them counts.
    Times(&'static [&'static str], &'static str, Bound),
    /// The share of a link that the best of other tunnels has, in percent: what is above all of it
    /// is a burst from a queue, and counts as all of it.
    ShareOfBest(&'static [&'static str], &'static str),
    /// A multiple of the number in the first case, shown with this many digits.
    Grown(In, Bound, usize, &'static str),
    /// This many Gbit/s are offered and delivered, and next to nothing is lost in any run.
    Lossless(f64),
    /// No less is delivered than in the first case.
    LikeOneFlow { lossless: bool },
    /// None in any case, each of which has counted.
    NoneAnywhere,
}

/// Which of the further cases a number is looked at in.
#[derive(Clone, Copy)]
pub(super) enum In {
    Last,
    /// The worst one is judged.
    Each,
}

/// What a line is missed by in spite of its number, or says beside it.
#[derive(Clone, Copy)]
pub(super) enum Also {
    /// Nothing was counted of what must not happen; not known if that was not counted.
    NoneOf(&'static str, &'static str),
    /// A rate that was found and did not hold is no rate: of ours, a miss; of quinn-dp-tuned's,
    /// nothing to compare with.
    HeldLoss,
}

impl Bound {
    fn allows(self, found: Shown) -> bool {
        let found = found.rounded();
        match self {
            Self::AtMost(limit) => found <= limit,
            Self::Below(limit) => found < limit,
            Self::AtLeast(limit) => found >= limit,
        }
    }

    /// The larger or the smaller one, whatever is worse.
    fn worse(self, a: f64, b: f64) -> f64 {
        match self {
            Self::AtMost(_) | Self::Below(_) => a.max(b),
            Self::AtLeast(_) => a.min(b),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::Below(limit) => write!(f, "< {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

impl Rule {
    pub(super) fn limit(self) -> String {
        match self {
            Self::Within(bound, text) | Self::Grown(_, bound, _, text) => {
                text.replace("{}", &bound.to_string())
            }
            Self::Times(_, whom, bound) => format!("{bound} × {whom}"),
            Self::ShareOfBest(_, whom) => format!("≥ 1 × {whom}, at most 100 %"),
            Self::Lossless(gbit) => format!("{gbit} offered, < {LOST_PERCENT_MAX} % lost"),
            Self::LikeOneFlow { lossless: false } => "≥ one flow of 1 Gbit/s".into(),
            Self::LikeOneFlow { lossless: true } => {
                format!("≥ one flow of 1 Gbit/s, < {LOST_PERCENT_MAX} % lost")
            }
            Self::NoneAnywhere => "0".into(),
        }
    }
}

/// A number and how many digits are shown behind its point.
#[derive(Clone, Copy)]
struct Shown(f64, usize);

impl Shown {
    fn rounded(self) -> f64 {
        self.to_string().parse().unwrap_or(self.0)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.*}", self.1, self.0)
    }
}

/// A row beside what was found.
pub(super) struct Judge<'a> {
    pub(super) found: &'a Found,
    pub(super) row: &'a Row,
}

impl Judge<'_> {
    fn case(&self) -> &'static str {
        self.row.cases.last().copied().unwrap_or_default()
    }

    fn summary(&self, case: &str, tunnel: &str, metric: Metric) -> Option<&Summary> {
        self.found.summary(self.row.probe, case, tunnel, metric.0)
    }

    fn median(&self, tunnel: &str, metric: Metric) -> Option<Shown> {
        let summary = self.summary(self.case(), tunnel, metric)?;
        Some(Shown(summary.median, metric.1))
    }

    fn largest(&self, tunnel: &str, metric: Metric) -> Option<Shown> {
        let summary = self.summary(self.case(), tunnel, metric)?;
        Some(Shown(summary.max, metric.1))
    }

    fn each(&self, tunnel: &str, metric: Metric) -> Vec<Option<Shown>> {
        let cases = self.row.cases.iter();
        let each = cases.map(|case| self.summary(case, tunnel, metric));
        each.map(|it| Some(Shown(it?.median, metric.1))).collect()
    }

    /// The most of any run in any case, and in how many cases it was counted.
    fn largest_of_each(&self, tunnel: &str, metric: Metric) -> Option<(Shown, usize)> {
        let cases = self.row.cases.iter();
        let counted = cases.filter_map(|case| self.summary(case, tunnel, metric));
        let most = counted.clone().map(|it| it.max).reduce(f64::max)?;
        Some((Shown(most, metric.1), counted.count()))
    }

    /// How many times as much ours has as another tunnel, of values up to `most`.
    fn times(&self, baseline: &str, most: f64) -> Option<f64> {
        let of = (self.row.probe, self.row.cell.metric().0);
        let case = self.case();
        self.found.times(of, (case, OURS), (case, baseline), most)
    }

    /// The worst of these multiples, of those tunnels that were measured.
    fn times_the_best(&self, others: &[&str], bound: Bound, most: f64) -> Option<f64> {
        let ratios = others.iter().filter_map(|it| self.times(it, most));
        ratios.reduce(|a, b| bound.worse(a, b))
    }

    /// How many times as much ours has as in the first case; of several, the worst one, if each is
    /// known.
    fn grown(&self, cases: In, bound: Bound) -> Option<f64> {
        let (first, further) = self.row.cases.split_first()?;
        let further = match cases {
            In::Last => further.last().map(std::slice::from_ref)?,
            In::Each => further,
        };
        let of = (self.row.probe, self.row.cell.metric().0);
        let grown = further.iter().map(|case| {
            let (ours, before) = ((*case, OURS), (*first, OURS));
            self.found.times(of, ours, before, f64::INFINITY)
        });
        let grown: Option<Vec<f64>> = grown.collect();
        grown?.into_iter().reduce(|a, b| bound.worse(a, b))
    }

    /// What stands in a tunnel's column.
    pub(super) fn cell(&self, tunnel: &str) -> Option<String> {
        let median = |metric| self.median(tunnel, metric);
        Some(match self.row.cell {
            Cell::Median(metric) => median(metric)?.to_string(),
            Cell::Beside(metric, word, other) => {
                let other = median(other).map(|it| format!(" ({word}{it})"));
                format!("{}{}", median(metric)?, other.unwrap_or_default())
            }
            Cell::Each(metric) => {
                let each = self.each(tunnel, metric);
                each.iter().flatten().next()?;
                let each = each.iter();
                let each = each.map(|it| it.map_or("–".into(), |it| it.to_string()));
                each.collect::<Vec<String>>().join(", ")
            }
            Cell::LargestOfEach(metric) => {
                let (most, counted) = self.largest_of_each(tunnel, metric)?;
                match self.row.cases.len() {
                    all if all == counted => most.to_string(),
                    all => format!("{most} ({counted} of {all} counted)"),
                }
            }
            Cell::Delivered { cpu } => {
                let (gbit, lost) = (median(GBIT)?, self.largest(tunnel, LOST)?);
                let cpu = if cpu {
                    format!(" ({})", median(CPU)?)
                } else {
                    String::new()
                };
                format!("{gbit}, {lost} %{cpu}")
            }
        })
    }

    /// Our number that a bound is about; of several, the worst one, if each is known.
    fn number(&self, bound: Bound) -> Option<Shown> {
        match self.row.cell {
            Cell::Each(metric) => {
                let all: Option<Vec<Shown>> = self.each(OURS, metric).into_iter().collect();
                let numbers = all?.into_iter().map(|it| it.0);
                let worst = numbers.reduce(|a, b| bound.worse(a, b))?;
                Some(Shown(worst, metric.1))
            }
            Cell::LargestOfEach(metric) => Some(self.largest_of_each(OURS, metric)?.0),
            cell => self.median(OURS, cell.metric()),
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.also(self.if_none_failed(self.judged()))
    }

    fn judged(&self) -> Verdict {
        let plain = |reached| Some((reached, String::new()));
        let by_ratio = |bound: Bound, ratio: f64, decimals| {
            let ratio = Shown(ratio, decimals);
            Some((bound.allows(ratio), format!("{ratio} ×")))
        };
        match self.row.rule {
            Rule::Within(bound, _) => plain(bound.allows(self.number(bound)?)),
            Rule::Times(others, _, bound) => {
                by_ratio(bound, self.times_the_best(others, bound, f64::INFINITY)?, 2)
            }
            Rule::ShareOfBest(others, _) => {
                let bound = Bound::AtLeast(1.0);
                by_ratio(bound, self.times_the_best(others, bound, 100.0)?, 2)
            }
            Rule::Grown(cases, bound, decimals, _) => {
                self.number(bound)?;
                by_ratio(bound, self.grown(cases, bound)?, decimals)
            }
            Rule::Lossless(offered_gbit) => {
                // What iperf3 itself cannot offer is not delivered either.
                let complete = self.median(OURS, GBIT)?.rounded() >= offered_gbit * 0.99;
                plain(complete && is_lossless(self.largest(OURS, LOST)?))
            }
            Rule::LikeOneFlow { lossless } => {
                let one = self.summary(self.row.cases.first()?, OURS, GBIT)?.median;
                let (two, lost) = (self.median(OURS, GBIT)?, self.largest(OURS, LOST)?);
                let passed = !lossless || is_lossless(lost);
                let (like_one, found) = by_ratio(Bound::AtLeast(1.0), two.0 / one, 2)?;
                Some((like_one && passed, found))
            }
            Rule::NoneAnywhere => {
                let (most, counted) = self.largest_of_each(OURS, self.row.cell.metric())?;
                let verdict = plain(most.0 == 0.0);
                let all = self.row.cases.len();
                if counted < all {
                    not_known(verdict)
                } else {
                    verdict
                }
            }
        }
    }

    /// A goal counts as not reached by our surviving runs if other runs failed in any of the cases;
    /// it is missed if none survived.
    fn if_none_failed(&self, judged: Verdict) -> Verdict {
        let cases = self.row.cases.iter();
        let runs = cases.map(|case| self.found.runs(self.row.probe, case, OURS));
        let (failed, all) = runs.fold((0, 0), |(a, b), (failed, all)| (a + failed, b + all));
        if failed == 0 || judged.is_none() && failed < all {
            return judged;
        }
        let (_, found) = judged.unwrap_or_default();
        let separator = if found.is_empty() { "" } else { "; " };
        Some((
            false,
            format!("{failed} of {all} runs failed{separator}{found}"),
        ))
    }

    fn also(&self, judged: Verdict) -> Verdict {
        match self.row.also {
            None => judged,
            Some(Also::NoneOf(metric, what)) => match self.largest(OURS, Metric(metric, 0)) {
                None => not_known(judged),
                Some(Shown(count, _)) if count > 0.0 => {
                    let (_, found) = judged?;
                    let separator = if found.is_empty() { "" } else { ", " };
                    Some((false, format!("{found}{separator}{count} {what}")))
                }
                Some(_) => judged,
            },
            Some(Also::HeldLoss) => self.held(judged),
        }
    }

    fn held(&self, judged: Verdict) -> Verdict {
        let judged = match self.median(OURS, Metric("source_limited", 0)) {
            Some(limited) if limited.0 > 0.0 => saying(judged, ", the source could send no more"),
            _ => judged,
        };
        let held = |lost: Shown| lost.rounded() <= LOST_PERCENT_MAX;
        match (
            self.largest(OURS, LOST),
            self.largest(QUINN_TUNED, LOST).map(held),
        ) {
            (Some(lost), _) if !held(lost) => saying(missed(judged), &format!(", {lost} % lost")),
            (Some(_), Some(true)) => judged,
            _ => not_known(judged),
        }
    }
}

fn is_lossless(lost: Shown) -> bool {
    lost.rounded() < LOST_PERCENT_MAX
}
