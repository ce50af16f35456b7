//! The goals about requests of programs that everybody knows, each compared with the best of the
//! other tunnels.

use super::{At, Line, Ours, Quinn, QuinnTuned, Rathole, Shown, verdict};
use crate::goals::found::Found;
use crate::goals::probe::Tunnel;

const PER_SECOND: (&str, usize) = ("requests_per_second", 0);
const CPU: (&str, usize) = ("cpu_us_per_request", 1);

const OTHERS: [Tunnel; 3] = [Quinn, QuinnTuned, Rathole];

/// What is allowed of a ratio.
#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Limit {
    /// The ratio to the best of the others: the one that compares worst with ours.
    fn worst(self, ratios: impl Iterator<Item = f64>) -> Option<f64> {
        match self {
            Self::AtLeast(_) => ratios.reduce(f64::min),
            Self::AtMost(_) => ratios.reduce(f64::max),
        }
    }

    fn allows(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(limit) => ratio >= limit,
            Self::AtMost(limit) => ratio <= limit,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
        }
    }
}

pub(super) fn lines(found: &Found, lines: &mut Vec<Line>) {
    for (name, what) in [
        ("redis GET", "redis-benchmark GET"),
        ("http keep-alive", "wrk, kept connections"),
        ("http close", "wrk, a connection per request"),
    ] {
        let case = |cores| format!("{name} ×64 by {cores}");
        let (one, two) = (case("1 core"), case("2 cores"));
        let at = |case| At {
            found,
            goal: 10,
            probe: "programs",
            case,
        };
        let what = format!("{what}, 64 at a time");
        let line = beside_the_best(
            &at(&one),
            &format!("{what}: requests/s"),
            PER_SECOND,
            Limit::AtLeast(1.1),
        );
        lines.push(line.if_none(at(&one).largest(Ours, "failed"), "requests failed"));
        lines.push(beside_the_best(
            &at(&one),
            &format!("{what}: CPU µs/request of both sides"),
            CPU,
            Limit::AtMost(0.9),
        ));
        lines.push(by_two_cores(&at(&two), &one, &what));
    }
}

fn beside_the_best(
    at: &At<'_>,
    what: &str,
    (metric, decimals): (&str, usize),
    limit: Limit,
) -> Line {
    let ratios = OTHERS.iter().filter_map(|tunnel| at.times(metric, *tunnel));
    at.line(
        what,
        format!("{limit} × the best of quinn-dp, tuned, rathole"),
        |tunnel| Some(Shown(at.median(tunnel, metric)?, decimals).to_string()),
        limit.worst(ratios).map(|ratio| {
            let ratio = Shown(ratio, 2);
            verdict(limit.allows(ratio.rounded()), format!("{ratio} ×"))
        }),
    )
}

/// What a second core may add to the price of a request.
fn by_two_cores(at: &At<'_>, one: &str, what: &str) -> Line {
    let limit = Limit::AtMost(1.05);
    let (metric, decimals) = CPU;
    let grown = at.found.grown((at.probe, metric), Ours, one, at.case);
    at.line_of(
        &[one, at.case],
        &format!("{what}, by 2 cores a side: CPU µs/request"),
        format!("{limit} × by 1 core"),
        |tunnel| Some(Shown(at.median(tunnel, metric)?, decimals).to_string()),
        grown.map(|ratio| {
            let ratio = Shown(ratio, 2);
            verdict(limit.allows(ratio.rounded()), format!("{ratio} ×"))
        }),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::goals::judge::Verdict;

    fn tunnel(label: &str, per_second: f64, cpu: f64) -> Value {
        let of = |it: f64| json!({"median": it, "max": it});
        json!({
            "tunnel": label,
            "summary": {PER_SECOND.0: of(per_second), CPU.0: of(cpu), "failed": of(0.0)},
            "runs": [{"values": {PER_SECOND.0: per_second, CPU.0: cpu, "failed": 0.0}}],
        })
    }

    fn judged(cases: &[(&str, Vec<Value>)]) -> Vec<Line> {
        let cases: Vec<Value> = cases
            .iter()
            .map(|(case, tunnels)| json!({"case": case, "tunnels": tunnels}))
            .collect();
        let mut found = Found::default();
        found.add("programs", json!({"cases": cases}));
        let mut judged = Vec::new();
        lines(&found, &mut judged);
        judged
    }

    #[test]
    fn the_best_of_the_others_is_what_counts() {
        // The fastest is not the cheapest.
        let tunnels = vec![
            tunnel("quinn-dp", 10_000.0, 50.0),
            tunnel("rathole", 20_000.0, 80.0),
            tunnel("qmux-dp", 21_000.0, 60.0),
        ];
        let lines = judged(&[("redis GET ×64 by 1 core", tunnels)]);
        assert_eq!(lines[0].verdict, Verdict::Missed("1.05 ×".into()));
        assert_eq!(lines[1].verdict, Verdict::Missed("1.20 ×".into()));
        assert_eq!(lines[2].verdict, Verdict::Unknown);
        let tunnels = vec![
            tunnel("quinn-dp", 10_000.0, 50.0),
            tunnel("qmux-dp", 11_000.0, 45.0),
        ];
        let lines = judged(&[("http close ×64 by 1 core", tunnels)]);
        assert_eq!(lines[6].verdict, Verdict::Reached("1.10 ×".into()));
        assert_eq!(lines[7].verdict, Verdict::Reached("0.90 ×".into()));
    }

    #[test]
    fn a_second_core_is_compared_with_the_first() {
        let lines = judged(&[
            (
                "redis GET ×64 by 1 core",
                vec![tunnel("qmux-dp", 1.0, 50.0)],
            ),
            (
                "redis GET ×64 by 2 cores",
                vec![tunnel("qmux-dp", 1.0, 53.0)],
            ),
        ]);
        assert_eq!(lines[2].verdict, Verdict::Missed("1.06 ×".into()));
        assert_eq!(
            lines[0].verdict,
            Verdict::Unknown,
            "nothing to compare with"
        );
    }
}
