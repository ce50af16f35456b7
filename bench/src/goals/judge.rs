//! Every goal with its limit, and whether it is reached.
//!
//! A number is compared as it is shown, rounded: what reads as the limit is within it, and no line contradicts itself.

mod counted;
mod programs;

use std::collections::BTreeMap;

use super::found::Found;
#[cfg(test)]
use super::probe::GOALS;
use super::probe::{ALLOCATIONS, Tunnel};

use Tunnel::{Before, Ours, Quinn, QuinnBbr, QuinnTuned, Rathole, Raw};

/// Whether a goal is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is; by how much, where the number itself does not say it.
    Reached(String),
    /// It is not; what was found.
    Missed(String),
    /// It was not measured, or what it is compared with was not.
    Unknown,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The goal's number.
    pub goal: u8,
    /// What is measured.
    pub what: String,
    /// What is allowed.
    pub limit: String,
    /// The number of each tunnel, by label.
    pub cells: BTreeMap<&'static str, String>,
    /// What it comes to.
    pub verdict: Verdict,
    /// The probe that it was measured by.
    pub probe: &'static str,
}

/// Those that a line shows, in this order.
const SHOWN: [Tunnel; 7] = [Raw, Quinn, QuinnTuned, QuinnBbr, Rathole, Before, Ours];

const GBIT: &str = "throughput_gbit_s";
const CPU: &str = "cpu_seconds_per_gb";
const LOST: &str = "lost_percent";

/// What QMux reaches in Gbit/s and rathole in CPU seconds per GB, over loopback on the machine that the goals were set on.
const QMUX_GBIT: f64 = 1.4;
const RATHOLE_CPU: f64 = 1.9;

/// What rathole in plain text adds to a round trip there, in µs.
const RATHOLE_ADDS_US: f64 = 54.0;

/// Bytes per idle flow of each side.
const FLOW_KIB_MAX: f64 = 8.0;

/// Below this share of its rate a link has collapsed, in percent.
const COLLAPSED_PERCENT: f64 = 80.0;

/// What may be lost where next to nothing is to be, in percent.
const LOST_PERCENT_MAX: f64 = 0.1;

/// What is allowed of a number.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

impl Bound {
    fn allows(self, found: f64) -> bool {
        match self {
            Self::AtMost(limit) => found <= limit,
            Self::Below(limit) => found < limit,
            Self::AtLeast(limit) => found >= limit,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::Below(limit) => write!(f, "< {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

/// A number and how it is shown.
#[derive(Clone, Copy)]
struct Shown(f64, usize);

impl Shown {
    fn rounded(self) -> f64 {
        let text = format!("{:.*}", self.1, self.0);
        text.parse().unwrap_or(self.0)
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.*}", self.1, self.0)
    }
}

fn verdict(reached: bool, found: impl Into<String>) -> Verdict {
    if reached {
        Verdict::Reached(found.into())
    } else {
        Verdict::Missed(found.into())
    }
}

impl Line {
    /// Not reached by those runs of ours that survived, where others failed in any of these cases; missed if none survived.
    fn if_none_failed(mut self, found: &Found, cases: &[&str]) -> Self {
        let runs = cases.iter().map(|case| found.runs(self.probe, case, Ours));
        let (failed, all) = runs.fold((0, 0), |(a, b), (failed, all)| (a + failed, b + all));
        if failed == 0 {
            return self;
        }
        let said = format!("{failed} of {all} runs failed");
        self.verdict = match self.verdict {
            Verdict::Unknown if failed < all => Verdict::Unknown,
            Verdict::Reached(found) | Verdict::Missed(found) if !found.is_empty() => {
                Verdict::Missed(format!("{said}; {found}"))
            }
            _ => Verdict::Missed(said),
        };
        self
    }

    /// Reached only if nothing was counted of what must not happen; not known if that was not counted.
    fn if_none(mut self, counted: Option<f64>, what: &str) -> Self {
        let Some(counted) = counted else {
            if matches!(self.verdict, Verdict::Reached(_)) {
                self.verdict = Verdict::Unknown;
            }
            return self;
        };
        if counted > 0.0
            && let Verdict::Reached(found) | Verdict::Missed(found) = self.verdict
        {
            let separator = if found.is_empty() { "" } else { ", " };
            self.verdict = Verdict::Missed(format!("{found}{separator}{counted} {what}"));
        }
        self
    }
}

/// Where numbers of a line come from.
#[derive(Clone, Copy)]
struct At<'a> {
    found: &'a Found,
    goal: u8,
    probe: &'static str,
    case: &'a str,
}

impl At<'_> {
    fn median(&self, tunnel: Tunnel, metric: &str) -> Option<f64> {
        self.found.median(self.probe, self.case, tunnel, metric)
    }

    fn times(&self, metric: &str, baseline: Tunnel) -> Option<f64> {
        self.found
            .times((self.probe, self.case, metric), Ours, baseline)
    }

    /// A cell for each tunnel that has one.
    fn cells(&self, cell: impl Fn(Tunnel) -> Option<String>) -> BTreeMap<&'static str, String> {
        let cells = SHOWN.map(|tunnel| Some((tunnel.label(), cell(tunnel)?)));
        cells.into_iter().flatten().collect()
    }

    fn line(
        &self,
        what: &str,
        limit: impl Into<String>,
        cell: impl Fn(Tunnel) -> Option<String>,
        verdict: Option<Verdict>,
    ) -> Line {
        self.line_of(&[self.case], what, limit, cell, verdict)
    }

    /// A line that numbers of several cases are in.
    fn line_of(
        &self,
        cases: &[&str],
        what: &str,
        limit: impl Into<String>,
        cell: impl Fn(Tunnel) -> Option<String>,
        verdict: Option<Verdict>,
    ) -> Line {
        Line {
            goal: self.goal,
            what: what.to_owned(),
            limit: limit.into(),
            cells: self.cells(cell),
            verdict: verdict.unwrap_or(Verdict::Unknown),
            probe: self.probe,
        }
        .if_none_failed(self.found, cases)
    }

    /// The most of any run.
    fn largest(&self, tunnel: Tunnel, metric: &str) -> Option<f64> {
        self.found.largest(self.probe, self.case, tunnel, metric)
    }

    /// A metric within a bound.
    fn within(
        &self,
        what: &str,
        (metric, decimals): (&str, usize),
        bound: Bound,
        unit: &str,
    ) -> Line {
        let shown = |tunnel| Some(Shown(self.median(tunnel, metric)?, decimals));
        self.line(
            what,
            format!("{bound} {unit}"),
            |tunnel| Some(shown(tunnel)?.to_string()),
            shown(Ours).map(|ours| verdict(bound.allows(ours.rounded()), "")),
        )
    }

    /// The same of a time beside bulk, whose rate is shown with it: a bulk that stands still disturbs nobody.
    fn beside_bulk(&self, what: &str, metric: &str, bound: Bound) -> Line {
        let mut line = self.within(&format!("{what} (bulk Gbit/s)"), (metric, 0), bound, "");
        line.cells = self.cells(|tunnel| {
            let time = Shown(self.median(tunnel, metric)?, 0);
            Some(match self.median(tunnel, "bulk_gbit_s") {
                Some(bulk) => format!("{time} ({})", Shown(bulk, 2)),
                None => time.to_string(),
            })
        });
        line
    }

    /// So many times as much of a metric as another tunnel has.
    fn times_line(
        &self,
        what: &str,
        (metric, decimals): (&str, usize),
        baseline: Tunnel,
        factor: f64,
    ) -> Line {
        let ratio = self.times(metric, baseline);
        self.line(
            what,
            format!("≥ {factor} × {}", baseline.label()),
            |tunnel| Some(Shown(self.median(tunnel, metric)?, decimals).to_string()),
            ratio.map(|ratio| {
                let ratio = Shown(ratio, 2);
                verdict(ratio.rounded() >= factor, format!("{ratio} ×"))
            }),
        )
    }

    /// Throughput so many times as good as another tunnel's; or else work per byte, where the machine is the limit: with
    /// throughput that is at least level.
    fn throughput_or_cpu(&self, what: &str, baseline: Tunnel, factor: f64) -> Line {
        let ratios = self.times(GBIT, baseline).zip(self.times(CPU, baseline));
        self.line(
            &format!("{what}: Gbit/s (CPU s/GB)"),
            format!(
                "≥ {factor} × {}, or no slower and CPU ÷ {factor}",
                baseline.label()
            ),
            |tunnel| self.gbit_and_cpu(tunnel),
            ratios.map(|(gbit, cpu)| {
                let (gbit, cpu) = (Shown(gbit, 2), Shown(1.0 / cpu, 2));
                let by_gbit = gbit.rounded() >= factor;
                let by_cpu = gbit.rounded() >= 1.0 && cpu.rounded() >= factor;
                let how = if by_cpu && !by_gbit { "by CPU: " } else { "" };
                verdict(by_gbit || by_cpu, format!("{how}{gbit} ×, CPU ÷ {cpu}"))
            }),
        )
    }

    fn gbit_and_cpu(&self, tunnel: Tunnel) -> Option<String> {
        let gbit = Shown(self.median(tunnel, GBIT)?, 2);
        Some(match self.median(tunnel, CPU) {
            Some(cpu) => format!("{gbit} ({})", Shown(cpu, 2)),
            None => gbit.to_string(),
        })
    }

    /// Next to nothing of UDP is lost in any run.
    fn lossless(&self, what: &str, offered_gbit: f64) -> Line {
        let delivered = self.median(Ours, GBIT).zip(self.lost(Ours));
        self.line(
            &format!("{what}: Gbit/s, most lost in a run"),
            format!("{offered_gbit} offered, < {LOST_PERCENT_MAX} % lost"),
            |tunnel| {
                let gbit = Shown(self.median(tunnel, GBIT)?, 2);
                Some(format!("{gbit}, {} %", self.lost(tunnel)?))
            },
            delivered.map(|(gbit, lost)| {
                // What iperf3 itself cannot offer is not delivered either.
                let complete = Shown(gbit, 2).rounded() >= offered_gbit * 0.99;
                verdict(lost.rounded() < LOST_PERCENT_MAX && complete, "")
            }),
        )
    }

    /// What the worst run lost, in percent.
    fn lost(&self, tunnel: Tunnel) -> Option<Shown> {
        self.largest(tunnel, LOST).map(|lost| Shown(lost, 3))
    }
}

/// All lines, in the order of the goals.
pub fn judge(found: &Found) -> Vec<Line> {
    let mut lines = Vec::new();
    tcp(found, &mut lines);
    udp(found, &mut lines);
    latency(found, &mut lines);
    connections(found, &mut lines);
    links(found, &mut lines);
    width(found, &mut lines);
    lines.push(allocations(found));
    counted::lines(found, &mut lines);
    programs::lines(found, &mut lines);
    lines
}

fn tcp(found: &Found, lines: &mut Vec<Line>) {
    let at = |case| At {
        found,
        goal: 1,
        probe: "tcp",
        case,
    };
    for (case, name) in [
        ("tcp ×1", "TCP, one connection"),
        ("tcp reverse", "TCP, one connection, reverse"),
    ] {
        let at = at(case);
        lines.push(at.throughput_or_cpu(name, Quinn, 2.0));
        lines.push(at.throughput_or_cpu(name, QuinnTuned, 1.3));
        lines.push(at.within(
            &format!("{name}: 5 times QMux, Gbit/s"),
            (GBIT, 2),
            Bound::AtLeast(5.0 * QMUX_GBIT),
            "",
        ));
        let ours = at.median(Ours, CPU).map(|it| Shown(it, 2));
        let theirs = at.median(Rathole, CPU).map(|it| Shown(it, 2));
        lines.push(at.line(
            &format!("{name}: CPU s/GB"),
            format!("< rathole in plain text, < {RATHOLE_CPU} (aim: 1.3)"),
            |tunnel| Some(Shown(at.median(tunnel, CPU)?, 2).to_string()),
            ours.map(|ours| {
                let below = theirs.is_none_or(|theirs| ours.rounded() < theirs.rounded());
                let beside = theirs.map_or("rathole is not installed".into(), |theirs| {
                    format!("rathole {theirs}")
                });
                verdict(below && ours.rounded() < RATHOLE_CPU, beside)
            }),
        ));
    }
    let four = at("tcp ×4");
    let ratio = found.grown(("tcp", GBIT), Ours, "tcp ×1", "tcp ×4");
    lines.push(four.line_of(
        &["tcp ×1", "tcp ×4"],
        "TCP, four connections: Gbit/s (CPU s/GB)",
        "≥ one connection",
        |tunnel| four.gbit_and_cpu(tunnel),
        ratio.map(|ratio| {
            let ratio = Shown(ratio, 2);
            verdict(ratio.rounded() >= 1.0, format!("{ratio} ×"))
        }),
    ));
    let at = At {
        found,
        goal: 2,
        probe: "veth",
        case: "tcp ×1",
    };
    lines.push(at.within(
        "TCP, packets of 1,500 bytes: CPU s/GB",
        (CPU, 2),
        Bound::AtMost(2.2),
        "",
    ));
    let mut line = at.times_line("", (GBIT, 2), QuinnTuned, 1.5);
    line.what = "TCP, packets of 1,500 bytes: Gbit/s (CPU s/GB)".into();
    line.cells = at.cells(|tunnel| at.gbit_and_cpu(tunnel));
    if let (Verdict::Reached(text) | Verdict::Missed(text), Some(cpu)) =
        (&mut line.verdict, at.times(CPU, QuinnTuned))
    {
        text.push_str(&format!(", CPU ÷ {}", Shown(1.0 / cpu, 2)));
    }
    lines.push(line);
}

fn udp(found: &Found, lines: &mut Vec<Line>) {
    let at = |case| At {
        found,
        goal: 3,
        probe: "udp",
        case,
    };
    let one = at("udp 1150 B 1G");
    lines.push(one.lossless("UDP, 1,150 bytes", 1.0));
    lines.push(one.within(
        "UDP, 1,150 bytes: CPU s/GB",
        (CPU, 2),
        Bound::AtMost(6.0),
        "(aim: 4)",
    ));
    lines.push(at("udp 8192 B 2G").lossless("UDP, 8,192 bytes", 2.0));
    // The same total must pass like that of one flow. Twice the total is beside it to show how far it goes: more than one
    // flow's must be delivered, but nobody has asked that nothing be lost.
    for (case, what, lossless) in [
        ("udp 1150 B 2×500M", "UDP, two flows of 0.5 Gbit/s", true),
        ("udp 1150 B 2×1G", "UDP, two flows of 1 Gbit/s", false),
    ] {
        let at = at(case);
        let of_two = at.median(Ours, GBIT).zip(at.lost(Ours));
        let of_one = one.median(Ours, GBIT);
        let limit = "≥ one flow of 1 Gbit/s";
        lines.push(at.line_of(
            &[one.case, case],
            &format!("{what}: Gbit/s, most lost in a run (CPU s/GB)"),
            if lossless {
                format!("{limit}, < {LOST_PERCENT_MAX} % lost")
            } else {
                limit.to_owned()
            },
            |tunnel| {
                let (gbit, lost) = (at.median(tunnel, GBIT)?, at.lost(tunnel)?);
                let cpu = at.median(tunnel, CPU)?;
                Some(format!("{gbit:.2}, {lost} % ({cpu:.2})"))
            },
            of_two.zip(of_one).map(|((gbit, lost), one)| {
                let ratio = Shown(gbit / one, 2);
                let passed = !lossless || lost.rounded() < LOST_PERCENT_MAX;
                verdict(ratio.rounded() >= 1.0 && passed, format!("{ratio} ×"))
            }),
        ));
    }
    for (case, size) in [
        ("udp 64 B", "64"),
        ("udp 1150 B", "1,150"),
        ("udp 8192 B", "8,192"),
    ] {
        let at = At {
            found,
            goal: 3,
            probe: "packets",
            case,
        };
        let what = format!("UDP, {size} bytes, packets/s at ≤ {LOST_PERCENT_MAX} % lost");
        let mut line = at.times_line(&what, ("packets_per_second", 0), Quinn, 3.0);
        if at.median(Ours, "source_limited").is_some_and(|it| it > 0.0)
            && let Verdict::Reached(text) | Verdict::Missed(text) = &mut line.verdict
        {
            text.push_str(", the source could send no more");
        }
        // A rate that was found and did not hold is no rate: of ours, a miss; of quinn's, nothing to compare with.
        let held = |tunnel| {
            at.lost(tunnel)
                .map(|it| (it, it.rounded() <= LOST_PERCENT_MAX))
        };
        line.verdict = match (line.verdict, held(Ours), held(Quinn)) {
            (Verdict::Reached(text) | Verdict::Missed(text), Some((lost, false)), _) => {
                Verdict::Missed(format!("{text}, {lost} % lost"))
            }
            (verdict, Some((_, true)), Some((_, true))) => verdict,
            (missed @ Verdict::Missed(_), ..) => missed,
            _ => Verdict::Unknown,
        };
        lines.push(line);
    }
}

fn latency(found: &Found, lines: &mut Vec<Line>) {
    fn at<'a>(found: &'a Found, case: &'a str) -> At<'a> {
        At {
            found,
            goal: 4,
            probe: "latency",
            case,
        }
    }
    let alone = at(found, "ping-pong");
    let p50 = |tunnel| alone.median(tunnel, "p50_us").map(|it| Shown(it, 0));
    // What rathole takes here, and what it added to the raw round trip where the goals were set: the stricter one of those
    // that were measured.
    let of_rathole = p50(Rathole).map(Shown::rounded);
    let of_raw = p50(Raw).map(|raw| raw.rounded() + RATHOLE_ADDS_US);
    let limit = of_rathole.into_iter().chain(of_raw).reduce(f64::min);
    lines.push(alone.line(
        "64-byte ping-pong, p50 µs",
        "≤ rathole in plain text, ≤ raw + 54",
        |tunnel| Some(p50(tunnel)?.to_string()),
        p50(Ours).zip(limit).map(|(ours, limit)| {
            let raw = p50(Raw).map(Shown::rounded);
            let added = raw.map_or(String::new(), |raw| {
                format!(", ours raw + {}", ours.rounded() - raw)
            });
            verdict(ours.rounded() <= limit, format!("limit {limit}{added}"))
        }),
    ));
    for way in ["up", "down"] {
        let case = format!("ping-pong + bulk {way}");
        let what = format!("ping-pong beside bulk {way}, p99 µs");
        let line = at(found, &case).beside_bulk(&what, "p99_us", Bound::AtMost(5_000.0));
        lines.push(line);
    }
    for way in ["up", "down"] {
        let case = format!("open loop 1000/s + bulk {way}");
        let what = format!("1,000 requests/s beside bulk {way}, p99.9 µs");
        let at = at(found, &case);
        let line = at.beside_bulk(&what, "p999_us", Bound::Below(10_000.0));
        // The times are those of requests that were answered.
        lines.push(line.if_none(at.largest(Ours, "lost"), "requests lost"));
    }
}

fn connections(found: &Found, lines: &mut Vec<Line>) {
    fn at<'a>(found: &'a Found, probe: &'static str, case: &'a str) -> At<'a> {
        At {
            found,
            goal: 5,
            probe,
            case,
        }
    }
    let one = at(found, "connect", "connect, echo ×1");
    let line = one.within(
        "connect + echo, one after the other, p50 µs",
        ("p50_us", 0),
        Bound::AtMost(300.0),
        "",
    );
    lines.push(line.if_none(one.largest(Ours, "failed"), "visits failed"));
    let many = at(found, "connect", "connect, echo ×64");
    let line = many.within(
        "new visitors per second, 64 at a time, one core a side",
        ("visits_per_second", 0),
        Bound::AtLeast(5_000.0),
        "",
    );
    lines.push(line.if_none(many.largest(Ours, "failed"), "visits failed"));
    for kind in ["tcp", "udp"] {
        let case = format!("10000 {kind} flows");
        for side in ["server", "client"] {
            lines.push(at(found, "flows", &case).within(
                &format!(
                    "10,000 idle {} flows, {side}: KiB each",
                    kind.to_uppercase()
                ),
                (&format!("{side}_kib_per_flow"), 2),
                Bound::AtMost(FLOW_KIB_MAX),
                "(the goal's KB taken as 1,024 B)",
            ));
        }
    }
}

fn links(found: &Found, lines: &mut Vec<Line>) {
    const SHARE: &str = "link_share_percent";
    let at = |case| At {
        found,
        goal: 6,
        probe: "link",
        case,
    };
    for (case, what) in [
        ("reference: to service", "1 %"),
        ("reference,loss-percent=0.1: to service", "0.1 %"),
        ("reference,loss-percent=3: to service", "3 %"),
    ] {
        lines.push(at(case).within(
            &format!("200 Mbit/s, 40 ms, {what} lost, to the service alone: % of the link"),
            (SHARE, 1),
            Bound::AtLeast(85.0),
            "",
        ));
    }
    lines.push(at("policer: to service").within(
        "behind a policer with a small buffer, to the service alone: % of the link",
        (SHARE, 1),
        Bound::AtLeast(COLLAPSED_PERCENT),
        "(no collapse)",
    ));
}

fn width(found: &Found, lines: &mut Vec<Line>) {
    const CORES: [&str; 4] = ["1 core(s)", "2 core(s)", "4 core(s)", "8 core(s)"];
    let at = At {
        found,
        goal: 7,
        probe: "scale",
        case: "8 core(s)",
    };
    let costs = CORES.map(|case| found.median("scale", case, Ours, CPU));
    let growth = if costs.iter().all(Option::is_some) {
        found.grown(("scale", CPU), Ours, CORES[0], CORES[3])
    } else {
        None
    };
    lines.push(at.line_of(
        &CORES,
        "1, 2, 4, 8 cores a side: CPU s/GB",
        "8 cores < 1.05 × 1 core",
        |tunnel| {
            let costs = CORES.map(|case| found.median("scale", case, tunnel, CPU));
            costs.iter().any(Option::is_some).then(|| {
                let costs = costs.map(|it| it.map_or("–".into(), |it| format!("{it:.2}")));
                costs.join(", ")
            })
        },
        growth.map(|growth| {
            let growth = Shown(growth, 3);
            verdict(growth.rounded() < 1.05, format!("{growth} ×"))
        }),
    ));
    for (metric, what) in [
        ("steady_visitors_handed_over", "visitors"),
        ("steady_packets_handed_over", "packets"),
    ] {
        // The most of any round, and with how many numbers of cores it was counted at all.
        let most = |tunnel| {
            let counts = CORES.map(|case| found.largest("scale", case, tunnel, metric));
            let counted = counts.iter().flatten().count();
            Some((counts.into_iter().flatten().reduce(f64::max)?, counted))
        };
        lines.push(at.line_of(
            &CORES,
            &format!("{what} handed to another core once all lanes are up, most of any run"),
            "0",
            |tunnel| {
                let (most, counted) = most(tunnel)?;
                let most = Shown(most, 0);
                Some(if counted == CORES.len() {
                    most.to_string()
                } else {
                    format!("{most} ({counted} of {} counted)", CORES.len())
                })
            },
            most(Ours).map(|(most, counted)| match verdict(most == 0.0, "") {
                Verdict::Reached(_) if counted < CORES.len() => Verdict::Unknown,
                verdict => verdict,
            }),
        ));
    }
}

fn allocations(found: &Found) -> Line {
    /// What `qmux-dp allocations` itself allows: timers and sweeps are per second.
    const OURS_PER_PACKET_MAX: f64 = 0.05;
    let counted = found.allocations_per_packet();
    let mut cells = BTreeMap::new();
    if let Some((ours, others)) = counted {
        cells.insert(Ours.label(), format!("{ours:.3} (quiche's {others:.1})"));
    }
    Line {
        goal: 8,
        what: "allocations of ours per packet, most of any load".into(),
        limit: "none (≤ 0.05: timers)".into(),
        cells,
        verdict: counted.map_or(Verdict::Unknown, |(ours, _)| {
            verdict(ours <= OURS_PER_PACKET_MAX, "")
        }),
        probe: ALLOCATIONS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn tunnel(label: &str, metric: &str, values: &[f64]) -> Value {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let runs: Vec<Value> = values
            .iter()
            .map(|value| json!({"values": {metric: value}}))
            .collect();
        json!({
            "tunnel": label,
            "summary": {metric: {"median": sorted[values.len() / 2], "max": sorted[values.len() - 1]}},
            "runs": runs,
        })
    }

    /// The same with one more metric, alike in all runs.
    fn also(mut tunnel: Value, metric: &str, value: f64) -> Value {
        tunnel["summary"][metric] = json!({"median": value, "max": value});
        for run in tunnel["runs"].as_array_mut().into_iter().flatten() {
            run["values"][metric] = json!(value);
        }
        tunnel
    }

    fn found(probe: &str, case: &str, tunnels: &[Value]) -> Found {
        let mut found = Found::default();
        found.add(
            probe,
            json!({"cases": [{"case": case, "tunnels": tunnels}]}),
        );
        found
    }

    fn line<'a>(lines: &'a [Line], what: &str) -> &'a Line {
        let line = lines.iter().find(|line| line.what.contains(what));
        line.unwrap_or_else(|| panic!("no line about {what}"))
    }

    #[test]
    fn what_was_not_measured_is_neither_reached_nor_missed() {
        let lines = judge(&Found::default());
        assert!(lines.iter().all(|it| it.verdict == Verdict::Unknown));
        assert!(lines.iter().all(|it| it.cells.is_empty()));
        for goal in 1..=GOALS {
            assert!(lines.iter().any(|it| it.goal == goal), "goal {goal}");
        }
    }

    #[test]
    fn a_limit_is_compared_as_it_is_shown() {
        for (p50, reached) in [(300.4, true), (300.6, false)] {
            let ours = also(tunnel("qmux-dp", "p50_us", &[p50]), "failed", 0.0);
            let lines = judge(&found("connect", "connect, echo ×1", &[ours]));
            let line = line(&lines, "one after the other");
            assert_eq!(line.verdict == Verdict::Reached(String::new()), reached);
        }
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        // The second round is slow for both.
        let tunnels = [
            also(
                tunnel("quinn-dp", "packets_per_second", &[100.0, 50.0, 100.0]),
                LOST,
                0.1,
            ),
            also(
                tunnel("qmux-dp", "packets_per_second", &[300.0, 150.0, 310.0]),
                LOST,
                0.0,
            ),
        ];
        let lines = judge(&found("packets", "udp 64 B", &tunnels));
        let line = line(&lines, "UDP, 64 bytes");
        assert_eq!(line.verdict, Verdict::Reached("3.00 ×".into()));
        assert_eq!(line.cells["quinn-dp"], "100");
    }

    #[test]
    fn without_rathole_the_raw_round_trip_tells_the_limit() {
        let mut tunnels = vec![
            tunnel("raw", "p50_us", &[60.0]),
            tunnel("qmux-dp", "p50_us", &[110.0]),
        ];
        let of = |tunnels: &[Value]| {
            let lines = judge(&found("latency", "ping-pong", tunnels));
            line(&lines, "64-byte").verdict.clone()
        };
        assert_eq!(
            of(&tunnels),
            Verdict::Reached("limit 114, ours raw + 50".into())
        );
        tunnels.push(tunnel("rathole", "p50_us", &[100.0]));
        assert_eq!(
            of(&tunnels),
            Verdict::Missed("limit 100, ours raw + 50".into())
        );
        // A slow rathole does not make room.
        tunnels[1] = tunnel("qmux-dp", "p50_us", &[120.0]);
        tunnels[2] = tunnel("rathole", "p50_us", &[140.0]);
        assert_eq!(
            of(&tunnels),
            Verdict::Missed("limit 114, ours raw + 60".into())
        );
        // Without the raw round trip it alone counts.
        tunnels.remove(0);
        assert_eq!(of(&tunnels), Verdict::Reached("limit 140".into()));
    }

    #[test]
    fn work_per_byte_counts_only_where_throughput_is_level() {
        for (gbit, cpu, wanted) in [
            (8.0, 1.0, Verdict::Missed("0.80 ×, CPU ÷ 2.00".into())),
            (
                9.96,
                1.0,
                Verdict::Reached("by CPU: 1.00 ×, CPU ÷ 2.00".into()),
            ),
            (12.0, 1.1, Verdict::Missed("1.20 ×, CPU ÷ 1.82".into())),
            (20.0, 1.0, Verdict::Reached("2.00 ×, CPU ÷ 2.00".into())),
        ] {
            let tunnels = [
                also(tunnel("quinn-dp", GBIT, &[10.0]), CPU, 2.0),
                also(tunnel("qmux-dp", GBIT, &[gbit]), CPU, cpu),
            ];
            let lines = judge(&found("tcp", "tcp ×1", &tunnels));
            assert_eq!(line(&lines, "one connection: Gbit/s").verdict, wanted);
        }
    }

    #[test]
    fn what_was_not_answered_is_not_passed_over() {
        let case = "open loop 1000/s + bulk up";
        let ours = || also(tunnel("qmux-dp", "p999_us", &[4_000.0]), "bulk_gbit_s", 3.0);
        let of = |ours: Value| {
            let lines = judge(&found("latency", case, &[ours]));
            line(&lines, "requests/s beside bulk up").clone()
        };
        let line = of(also(ours(), "lost", 0.0));
        assert_eq!(line.verdict, Verdict::Reached(String::new()));
        assert_eq!(line.cells["qmux-dp"], "4000 (3.00)");
        assert_eq!(
            of(also(ours(), "lost", 2.0)).verdict,
            Verdict::Missed("2 requests lost".into())
        );
        assert_eq!(of(ours()).verdict, Verdict::Unknown);
        // Below is below.
        let slow = also(tunnel("qmux-dp", "p999_us", &[10_000.0]), "lost", 0.0);
        assert_eq!(of(slow).verdict, Verdict::Missed(String::new()));
    }

    #[test]
    fn visits_that_failed_are_a_miss() {
        for (failed, wanted) in [
            (0.0, Verdict::Reached(String::new())),
            (3.0, Verdict::Missed("3 visits failed".into())),
        ] {
            let ours = tunnel("qmux-dp", "visits_per_second", &[6_000.0]);
            let ours = also(ours, "failed", failed);
            let lines = judge(&found("connect", "connect, echo ×64", &[ours]));
            assert_eq!(line(&lines, "new visitors").verdict, wanted);
        }
    }

    #[test]
    fn a_packet_rate_that_did_not_hold_is_none() {
        for (ours, quinn, wanted) in [
            (0.1, 0.1, Verdict::Reached("3.00 ×".into())),
            (0.2, 0.0, Verdict::Missed("3.00 ×, 0.200 % lost".into())),
            (0.0, 0.2, Verdict::Unknown),
        ] {
            let rate =
                |label, rate, lost| also(tunnel(label, "packets_per_second", &[rate]), LOST, lost);
            let tunnels = [rate("quinn-dp", 100.0, quinn), rate("qmux-dp", 300.0, ours)];
            let lines = judge(&found("packets", "udp 64 B", &tunnels));
            assert_eq!(line(&lines, "UDP, 64 bytes").verdict, wanted);
        }
    }

    #[test]
    fn the_worst_run_tells_what_udp_lost() {
        let ours = tunnel("qmux-dp", LOST, &[0.0, 0.0, 0.3]);
        let ours = also(ours, GBIT, 1.0);
        let lines = judge(&found("udp", "udp 1150 B 1G", &[ours]));
        let line = line(&lines, "UDP, 1,150 bytes: Gbit/s");
        assert_eq!(line.verdict, Verdict::Missed(String::new()));
        assert_eq!(line.cells["qmux-dp"], "1.00, 0.300 %");
    }

    #[test]
    fn rounding_does_not_weaken_a_limit() {
        let share = |percent| {
            let ours = tunnel("qmux-dp", "link_share_percent", &[percent]);
            let lines = judge(&found("link", "reference: to service", &[ours]));
            line(&lines, "ms, 1 % lost").verdict.clone()
        };
        assert_eq!(share(84.9), Verdict::Missed(String::new()));
        assert_eq!(share(85.0), Verdict::Reached(String::new()));
        let kib = |kib| {
            let ours = tunnel("qmux-dp", "server_kib_per_flow", &[kib]);
            let lines = judge(&found("flows", "10000 tcp flows", &[ours]));
            line(&lines, "idle TCP flows, server").verdict.clone()
        };
        assert_eq!(kib(8.04), Verdict::Missed(String::new()));
        assert_eq!(kib(8.0), Verdict::Reached(String::new()));
        let ours = tunnel("qmux-dp", "link_share_percent", &[79.9]);
        let lines = judge(&found("link", "policer: to service", &[ours]));
        assert_eq!(
            line(&lines, "policer").verdict,
            Verdict::Missed(String::new())
        );
    }

    #[test]
    fn runs_that_failed_are_not_passed_over() {
        let mut ours = also(tunnel("qmux-dp", "p50_us", &[200.0, 200.0]), "failed", 0.0);
        let of = |ours: &Value| {
            let lines = judge(&found(
                "connect",
                "connect, echo ×1",
                std::slice::from_ref(ours),
            ));
            line(&lines, "one after the other").verdict.clone()
        };
        assert_eq!(of(&ours), Verdict::Reached(String::new()));
        ours["runs"][1] = json!({"values": {}, "error": "it hung"});
        assert_eq!(of(&ours), Verdict::Missed("1 of 2 runs failed".into()));
        ours["runs"][0] = ours["runs"][1].clone();
        ours["summary"] = json!({});
        assert_eq!(of(&ours), Verdict::Missed("2 of 2 runs failed".into()));
    }

    #[test]
    fn a_run_that_failed_in_any_case_of_a_line_is_a_miss() {
        let of = |two_cores: &Value| {
            let mut found = Found::default();
            let ours = tunnel("qmux-dp", CPU, &[1.0]);
            let case = |name: &str, tunnel: &Value| json!({"case": name, "tunnels": [tunnel]});
            let cases = [
                case("1 core(s)", &ours),
                case("2 core(s)", two_cores),
                case("4 core(s)", &ours),
                case("8 core(s)", &ours),
            ];
            found.add("scale", json!({"cases": cases}));
            line(&judge(&found), "1, 2, 4, 8 cores").verdict.clone()
        };
        let mut two_cores = tunnel("qmux-dp", CPU, &[1.0, 1.0]);
        assert_eq!(of(&two_cores), Verdict::Reached("1.000 ×".into()));
        two_cores["runs"][0] = json!({"values": {}, "error": "it hung"});
        assert_eq!(
            of(&two_cores),
            Verdict::Missed("1 of 5 runs failed; 1.000 ×".into())
        );
        assert_eq!(of(&tunnel("before", CPU, &[1.0])), Verdict::Unknown);

        let mut found = Found::default();
        let one = tunnel("qmux-dp", GBIT, &[5.0, 5.0]);
        let mut four = one.clone();
        four["runs"][1] = json!({"values": {}, "error": "it hung"});
        let case = |name: &str, tunnel: Value| json!({"case": name, "tunnels": [tunnel]});
        let cases = [case("tcp ×1", one), case("tcp ×4", four)];
        found.add("tcp", json!({"cases": cases}));
        assert_eq!(
            line(&judge(&found), "four connections").verdict,
            Verdict::Missed("1 of 4 runs failed; 1.00 ×".into())
        );
    }

    #[test]
    fn what_was_not_counted_with_all_numbers_of_cores_is_not_known() {
        let of = |counted: &[&str]| {
            let mut found = Found::default();
            let ours = tunnel("qmux-dp", "steady_packets_handed_over", &[0.0]);
            let cases: Vec<Value> = counted
                .iter()
                .map(|case| json!({"case": format!("{case} core(s)"), "tunnels": [ours]}))
                .collect();
            found.add("scale", json!({"cases": cases}));
            line(&judge(&found), "packets handed").clone()
        };
        let all = of(&["1", "2", "4", "8"]);
        assert_eq!(all.verdict, Verdict::Reached(String::new()));
        assert_eq!(all.cells["qmux-dp"], "0");
        let some = of(&["1", "2", "4"]);
        assert_eq!(some.verdict, Verdict::Unknown);
        assert_eq!(some.cells["qmux-dp"], "0 (3 of 4 counted)");
    }

    #[test]
    fn one_visitor_handed_over_in_one_run_is_a_miss() {
        let ours = tunnel("qmux-dp", "steady_visitors_handed_over", &[0.0, 0.0, 1.0]);
        let lines = judge(&found("scale", "4 core(s)", &[ours]));
        let line = line(&lines, "visitors handed");
        assert_eq!(line.verdict, Verdict::Missed(String::new()));
        assert_eq!(line.cells["qmux-dp"], "1 (1 of 4 counted)");
    }

    #[test]
    fn the_worst_load_tells_the_allocations() {
        let mut found = Found::default();
        found.set_allocations(
            "UDP, 64 bytes: 10 QUIC packets, 1.0 MB in\n  \
             allocations: 5.1 per packet, 3.0 per MB, 90 bytes each; ours 0.001 per packet, others' 5.099\n  \
             allocations: 9.1 per packet, 3.0 per MB, 90 bytes each; ours 0.100 per packet, others' 9.000\n",
        );
        let lines = judge(&found);
        let line = line(&lines, "allocations");
        assert_eq!(line.verdict, Verdict::Missed(String::new()));
        assert_eq!(line.cells["qmux-dp"], "0.100 (quiche's 9.0)");
    }
}
