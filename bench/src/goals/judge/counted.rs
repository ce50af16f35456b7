//! The goals about what is counted for each unit of work, on each side: system calls and packets.

use super::{At, Bound, Line, Ours, Shown, verdict};
use crate::goals::found::Found;
use crate::goals::probe::Tunnel;

/// Both sides of a unit of work, as `qmux-bench syscalls` names them.
struct Sides<'a> {
    found: &'a Found,
    cases: [String; 2],
}

/// A number of the server and one of the client.
type Pair = [Shown; 2];

impl<'a> Sides<'a> {
    fn of(found: &'a Found, unit: &str) -> Self {
        Self {
            found,
            cases: ["server", "client"].map(|side| format!("{unit}, {side}")),
        }
    }

    fn at(&self, side: usize) -> At<'_> {
        At {
            found: self.found,
            goal: 9,
            probe: "syscalls",
            case: &self.cases[side],
        }
    }

    fn pair(&self, tunnel: Tunnel, metric: &str) -> Option<Pair> {
        let of = |side| Some(Shown(self.at(side).median(tunnel, metric)?, 1));
        Some([of(0)?, of(1)?])
    }

    /// The larger of both within a limit.
    fn within(&self, what: &str, metric: &str, limit: f64) -> Line {
        let bound = Bound::AtMost(limit);
        let [server, client] = self.cases.each_ref().map(String::as_str);
        let cell = |tunnel| {
            let [server, client] = self.pair(tunnel, metric)?;
            Some(format!("{server}, {client}"))
        };
        let largest = self.pair(Ours, metric).map(|[server, client]| {
            let (server, client) = (server.rounded(), client.rounded());
            verdict(bound.allows(server.max(client)), "")
        });
        self.at(0)
            .line_of(&[server, client], what, bound.to_string(), cell, largest)
    }
}

pub(super) fn lines(found: &Found, lines: &mut Vec<Line>) {
    let round_trip = Sides::of(found, "a round trip of 64 B");
    lines.push(round_trip.within(
        "system calls per 64-byte round trip: server, client",
        "calls",
        6.5,
    ));
    lines.push(round_trip.within(
        "QUIC packets per 64-byte round trip: sent by the server, by the client",
        "packets_out",
        1.0,
    ));
    let visitor = Sides::of(found, "a visitor ×1");
    lines.push(visitor.within(
        "system calls per visitor (connect, echo, close): server, client",
        "calls",
        18.0,
    ));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::goals::judge::Verdict;

    fn case(name: &str, metric: &str, count: f64) -> Value {
        json!({"case": name, "tunnels": [{
            "tunnel": "qmux-dp",
            "summary": {metric: {"median": count, "max": count}},
            "runs": [{"values": {metric: count}}],
        }]})
    }

    fn judged(metric: &str, server: f64, client: f64) -> Vec<Line> {
        let mut found = Found::default();
        let cases = ["server", "client"]
            .into_iter()
            .zip([server, client])
            .map(|(side, count)| case(&format!("a round trip of 64 B, {side}"), metric, count));
        found.add("syscalls", json!({"cases": cases.collect::<Vec<_>>()}));
        let mut judged = Vec::new();
        lines(&found, &mut judged);
        judged
    }

    #[test]
    fn both_sides_must_be_within_the_limit() {
        for (server, client, reached) in [(6.5, 6.5, true), (6.6, 1.0, false), (1.0, 6.6, false)] {
            let line = &judged("calls", server, client)[0];
            let wanted = verdict(reached, "");
            assert_eq!(line.verdict, wanted, "{server}, {client}");
            assert_eq!(line.cells["qmux-dp"], format!("{server:.1}, {client:.1}"));
        }
    }

    #[test]
    fn heartbeats_do_not_make_a_packet_two() {
        assert_eq!(
            judged("packets_out", 1.04, 1.0)[1].verdict,
            verdict(true, "")
        );
        assert_eq!(
            judged("packets_out", 2.0, 1.0)[1].verdict,
            verdict(false, "")
        );
        assert_eq!(judged("packets_out", 2.0, 1.0)[0].verdict, Verdict::Unknown);
    }
}
