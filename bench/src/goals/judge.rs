//! Every goal with its limit, and whether it is reached.
//!
//! A number is compared as it is shown, rounded: what reads as the limit is within it, and no line contradicts itself.

use std::collections::BTreeMap;

use super::found::Found;
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
const COLLAPSED_PERCENT: f64 = 50.0;

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
        Line {
            goal: self.goal,
            what: what.to_owned(),
            limit: limit.into(),
            cells: self.cells(cell),
            verdict: verdict.unwrap_or(Verdict::Unknown),
            probe: self.probe,
        }
    }

    /// At most, or below, so much of a metric.
    fn at_most(
        &self,
        what: &str,
        metric: &str,
        (limit, decimals): (f64, usize),
        unit: &str,
    ) -> Line {
        let shown = |tunnel| Some(Shown(self.median(tunnel, metric)?, decimals));
        self.line(
            what,
            format!("≤ {limit} {unit}"),
            |tunnel| Some(shown(tunnel)?.to_string()),
            shown(Ours).map(|ours| verdict(ours.rounded() <= limit, "")),
        )
    }

    /// At least so much of a metric.
    fn at_least(
        &self,
        what: &str,
        metric: &str,
        (limit, decimals): (f64, usize),
        unit: &str,
    ) -> Line {
        let shown = |tunnel| Some(Shown(self.median(tunnel, metric)?, decimals));
        self.line(
            what,
            format!("≥ {limit} {unit}"),
            |tunnel| Some(shown(tunnel)?.to_string()),
            shown(Ours).map(|ours| verdict(ours.rounded() >= limit, "")),
        )
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

    /// Throughput, or else work per byte, so many times as good as another tunnel's.
    fn throughput_or_cpu(&self, what: &str, baseline: Tunnel, factor: f64) -> Line {
        let ratios = self.times(GBIT, baseline).zip(self.times(CPU, baseline));
        self.line(
            &format!("{what}: Gbit/s (CPU s/GB)"),
            format!("≥ {factor} × {}, or CPU ÷ {factor}", baseline.label()),
            |tunnel| self.gbit_and_cpu(tunnel),
            ratios.map(|(gbit, cpu)| {
                let (gbit, cpu) = (Shown(gbit, 2), Shown(1.0 / cpu, 2));
                let best = gbit.rounded().max(cpu.rounded());
                verdict(best >= factor, format!("{gbit} ×, CPU ÷ {cpu}"))
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

    /// Next to nothing of UDP is lost.
    fn lossless(&self, what: &str, offered_gbit: f64) -> Line {
        let delivered = self.median(Ours, GBIT).zip(self.median(Ours, LOST));
        self.line(
            &format!("{what}: Gbit/s, lost"),
            format!("{offered_gbit} offered, < 0.1 % lost"),
            |tunnel| {
                let gbit = Shown(self.median(tunnel, GBIT)?, 2);
                Some(format!(
                    "{gbit}, {} %",
                    Shown(self.median(tunnel, LOST)?, 2)
                ))
            },
            delivered.map(|(gbit, lost)| {
                // What iperf3 itself cannot offer is not delivered either.
                let complete = Shown(gbit, 2).rounded() >= offered_gbit * 0.99;
                verdict(lost < 0.1 && complete, "")
            }),
        )
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
        lines.push(at.at_least(
            &format!("{name}: 5 times QMux, Gbit/s"),
            GBIT,
            (5.0 * QMUX_GBIT, 2),
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
    lines.push(four.line(
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
    lines.push(at.at_most("TCP, packets of 1,500 bytes: CPU s/GB", CPU, (2.2, 2), ""));
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
    lines.push(one.at_most("UDP, 1,150 bytes: CPU s/GB", CPU, (6.0, 2), "(aim: 4)"));
    lines.push(at("udp 8192 B 2G").lossless("UDP, 8,192 bytes", 2.0));
    // The same total must pass like that of one flow. Twice the total is beside it to show how far it goes: more than one
    // flow's must be delivered, but nobody has asked that nothing be lost.
    for (case, what, lossless) in [
        ("udp 1150 B 2×500M", "UDP, two flows of 0.5 Gbit/s", true),
        ("udp 1150 B 2×1G", "UDP, two flows of 1 Gbit/s", false),
    ] {
        let at = at(case);
        let of_two = at.median(Ours, GBIT).zip(at.median(Ours, LOST));
        let of_one = one.median(Ours, GBIT);
        let limit = "≥ one flow of 1 Gbit/s";
        lines.push(at.line(
            &format!("{what}: Gbit/s, lost (CPU s/GB)"),
            if lossless {
                format!("{limit}, < 0.1 % lost")
            } else {
                limit.to_owned()
            },
            |tunnel| {
                let (gbit, lost) = (at.median(tunnel, GBIT)?, at.median(tunnel, LOST)?);
                let cpu = at.median(tunnel, CPU)?;
                Some(format!("{gbit:.2}, {lost:.2} % ({cpu:.2})"))
            },
            of_two.zip(of_one).map(|((gbit, lost), one)| {
                let ratio = Shown(gbit / one, 2);
                let passed = !lossless || lost < 0.1;
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
        let what = format!("UDP, {size} bytes, packets/s at < 0.1 % lost");
        let mut line = at.times_line(&what, ("packets_per_second", 0), Quinn, 3.0);
        if at.median(Ours, "source_limited").is_some_and(|it| it > 0.0)
            && let Verdict::Reached(text) | Verdict::Missed(text) = &mut line.verdict
        {
            text.push_str(", the source could send no more");
        }
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
    // Where rathole is not installed, what it adds to the raw round trip.
    let limit = p50(Rathole)
        .map(Shown::rounded)
        .or_else(|| Some(p50(Raw)?.rounded() + RATHOLE_ADDS_US));
    lines.push(alone.line(
        "64-byte ping-pong, p50 µs",
        "≤ rathole in plain text; without it, raw + 54",
        |tunnel| Some(p50(tunnel)?.to_string()),
        p50(Ours).zip(limit).map(|(ours, limit)| {
            // The goal names both; the stricter one counts, and how far it is to the other is said.
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
        lines.push(at(found, &case).at_most(&what, "p99_us", (5_000.0, 0), ""));
    }
    for way in ["up", "down"] {
        let case = format!("open loop 1000/s + bulk {way}");
        let what = format!("1,000 requests/s beside bulk {way}, p99.9 µs");
        lines.push(at(found, &case).at_most(&what, "p999_us", (10_000.0, 0), ""));
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
    lines.push(one.at_most(
        "connect + echo, one after the other, p50 µs",
        "p50_us",
        (300.0, 0),
        "",
    ));
    let many = at(found, "connect", "connect, echo ×64");
    lines.push(many.at_least(
        "new visitors per second, 64 at a time, one core a side",
        "visits_per_second",
        (5_000.0, 0),
        "",
    ));
    for kind in ["tcp", "udp"] {
        let case = format!("10000 {kind} flows");
        for side in ["server", "client"] {
            lines.push(at(found, "flows", &case).at_most(
                &format!(
                    "10,000 idle {} flows, {side}: KiB each",
                    kind.to_uppercase()
                ),
                &format!("{side}_kib_per_flow"),
                (FLOW_KIB_MAX, 1),
                "",
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
        lines.push(at(case).at_least(
            &format!("200 Mbit/s, 40 ms, {what} lost: % of the link"),
            SHARE,
            (85.0, 0),
            "",
        ));
    }
    lines.push(at("policer: to service").at_least(
        "behind a policer with a small buffer: % of the link",
        SHARE,
        (COLLAPSED_PERCENT, 0),
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
    let growth = found.grown(("scale", CPU), Ours, CORES[0], CORES[3]);
    lines.push(at.line(
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
        // The most of any round.
        let most = |tunnel| {
            let counts = CORES.map(|case| found.largest("scale", case, tunnel, metric));
            counts.into_iter().flatten().reduce(f64::max)
        };
        lines.push(at.line(
            &format!("{what} handed to another core once all lanes are up, most of any run"),
            "0",
            |tunnel| Some(Shown(most(tunnel)?, 0).to_string()),
            most(Ours).map(|most| verdict(most == 0.0, "")),
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
        for goal in 1..=8 {
            assert!(lines.iter().any(|it| it.goal == goal), "goal {goal}");
        }
    }

    #[test]
    fn a_limit_is_compared_as_it_is_shown() {
        for (p50, reached) in [(300.4, true), (300.6, false)] {
            let ours = tunnel("qmux-dp", "p50_us", &[p50]);
            let lines = judge(&found("connect", "connect, echo ×1", &[ours]));
            let line = line(&lines, "one after the other");
            assert_eq!(line.verdict == Verdict::Reached(String::new()), reached);
        }
    }

    #[test]
    fn ratios_are_those_within_a_round() {
        // The second round is slow for both.
        let tunnels = [
            tunnel("quinn-dp", "packets_per_second", &[100.0, 50.0, 100.0]),
            tunnel("qmux-dp", "packets_per_second", &[300.0, 150.0, 310.0]),
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
    }

    #[test]
    fn one_visitor_handed_over_in_one_run_is_a_miss() {
        let ours = tunnel("qmux-dp", "steady_visitors_handed_over", &[0.0, 0.0, 1.0]);
        let lines = judge(&found("scale", "4 core(s)", &[ours]));
        let line = line(&lines, "visitors handed");
        assert_eq!(line.verdict, Verdict::Missed(String::new()));
        assert_eq!(line.cells["qmux-dp"], "1");
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
