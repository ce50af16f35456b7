//! Every goal as data: what is measured by which probe, what of it is shown, and what is allowed.

use super::found::{ALLOCATIONS_OTHERS, ALLOCATIONS_OURS, ANY_LOAD};
use super::judge::{Also, Bound, CPU, Cell, GBIT, In, Metric, Rule};
use super::probe::{QUINN, QUINN_BBR, QUINN_TUNED, RATHOLE};

use Also::{HeldLoss, NoneOf};
use Bound::{AtLeast, AtMost, Below};
use Cell::{Beside, Delivered, Each, LargestOfEach, Median};
use Rule::{Grown, LikeOneFlow, Lossless, NoneAnywhere, ShareOfBest, Times, Within};

/// One line of the table of goals.
pub(super) struct Row {
    pub(super) goal: u8,
    pub(super) probe: &'static str,
    /// The cases that its numbers are from; if there is but one number, it is that of the last.
    pub(super) cases: &'static [&'static str],
    pub(super) what: &'static str,
    pub(super) cell: Cell,
    pub(super) rule: Rule,
    /// What must hold beside it.
    pub(super) also: Option<Also>,
}

/// `GOAL PROBE [CASES] { WHAT, CELL, RULE [, ALSO]; … }`, so that what several rows share is said
/// once.
macro_rules! rows {
    ($($goal:literal $probe:literal $cases:tt {
        $($what:literal, $cell:expr, $rule:expr $(, $also:expr)?;)+
    })+) => {
        &[$($(Row {
            goal: $goal,
            probe: $probe,
            cases: &$cases,
            what: $what,
            cell: $cell,
            rule: $rule,
            also: rows!(@also $($also)?),
        }),+),+]
    };
    (@also) => { None };
    (@also $also:expr) => { Some($also) };
}

const PACKETS: Metric = Metric("packets_per_second", 0);
const BULK: Metric = Metric("bulk_gbit_s", 2);
const P50: Metric = Metric("p50_us", 0);
const P99: Metric = Metric("p99_us", 0);
const P999: Metric = Metric("p999_us", 0);
const VISITS: Metric = Metric("visits_per_second", 0);
const SERVER_KIB: Metric = Metric("server_kib_per_flow", 2);
const CLIENT_KIB: Metric = Metric("client_kib_per_flow", 2);
const SHARE: Metric = Metric("link_share_percent", 1);
const VISITORS_ASTRAY: Metric = Metric("steady_visitors_handed_over", 0);
const PACKETS_ASTRAY: Metric = Metric("steady_packets_handed_over", 0);
const CALLS: Metric = Metric("calls", 1);
const SENT: Metric = Metric("packets_out", 1);
const REQUESTS: Metric = Metric("requests_per_second", 0);
const REQUEST_CPU: Metric = Metric("cpu_us_per_request", 1);

const GBIT_CPU: Cell = Beside(GBIT, "", CPU);
const P99_BULK: Cell = Beside(P99, "", BULK);
const P999_BULK: Cell = Beside(P999, "", BULK);

/// Bytes per idle flow of each side.
const FLOW_KIB: Rule = Within(AtMost(8.0), "{} (the goal's KB taken as 1,024 B)");

/// Beside each of the other tunnels; the best of them counts.
const OTHERS: &[&str] = &[QUINN, QUINN_TUNED, RATHOLE];
const OTHERS_NAMES: &str = "the best of quinn-dp, tuned, rathole";
const MORE_REQUESTS: Rule = Times(OTHERS, OTHERS_NAMES, AtLeast(1.1));
const CHEAPER_REQUESTS: Rule = Times(OTHERS, OTHERS_NAMES, AtMost(0.9));
const SOONER_VISITS: Rule = Times(OTHERS, OTHERS_NAMES, AtMost(0.9));
const MORE_VISITORS: Rule = Times(OTHERS, OTHERS_NAMES, AtLeast(1.3));
const SECOND_CORE: Rule = Grown(In::Last, AtMost(1.05), 2, "{} × by 1 core");

/// On a link of one rate, where the best congestion control has all of it.
const LINK_SHARE: Rule = ShareOfBest(
    &[QUINN, QUINN_BBR, RATHOLE],
    "the best of quinn-dp, BBR, rathole",
);

const NO_LATER_THAN_QUINN: Rule = of_quinn(AtMost(1.0));
const REQUESTS_FAILED: Also = NoneOf("failed", "requests failed");
const REQUESTS_LOST: Also = NoneOf("lost", "requests lost");
const VISITS_FAILED: Also = NoneOf("failed", "visits failed");

/// Beside quinn-dp with its defaults.
const fn of_quinn(bound: Bound) -> Rule {
    Times(&[QUINN], "quinn-dp", bound)
}

/// Beside quinn-dp tuned for throughput.
const fn of_tuned(bound: Bound) -> Rule {
    Times(&[QUINN_TUNED], "quinn-dp-tuned", bound)
}

/// Beside rathole, which encrypts nothing here.
const fn of_rathole(bound: Bound) -> Rule {
    Times(&[RATHOLE], "rathole in plain text", bound)
}

/// All of them, in the order of the goals.
pub(super) const ROWS: &[Row] = rows! {
    1 "tcp" ["tcp ×1"] {
        "TCP, one connection: Gbit/s (CPU s/GB)", GBIT_CPU, of_tuned(AtLeast(1.1));
        "TCP, one connection: CPU s/GB", Median(CPU), of_tuned(AtMost(0.9));
    }
    1 "tcp" ["tcp reverse"] {
        "TCP, one connection, reverse: Gbit/s (CPU s/GB)", GBIT_CPU, of_tuned(AtLeast(1.1));
        "TCP, one connection, reverse: CPU s/GB", Median(CPU), of_tuned(AtMost(0.9));
    }
    1 "tcp" ["tcp ×1", "tcp ×4"] {
        "TCP, four connections: Gbit/s (CPU s/GB)", GBIT_CPU,
            Grown(In::Last, AtLeast(1.0), 2, "≥ one connection");
    }
    2 "veth" ["tcp ×1"] {
        "TCP, packets of 1,500 bytes: CPU s/GB", Median(CPU), of_tuned(AtMost(0.75));
        "TCP, packets of 1,500 bytes: CPU s/GB", Median(CPU), of_rathole(AtMost(1.15));
        "TCP, packets of 1,500 bytes: Gbit/s (CPU s/GB)", GBIT_CPU, of_tuned(AtLeast(1.0));
    }
    3 "udp" ["udp 1150 B 1G"] {
        "UDP, 1,150 bytes: Gbit/s, most lost in a run", Delivered { cpu: false }, Lossless(1.0);
        "UDP, 1,150 bytes: CPU s/GB", Median(CPU), of_tuned(AtMost(1.0));
    }
    3 "udp" ["udp 8192 B 2G"] {
        "UDP, 8,192 bytes: Gbit/s, most lost in a run", Delivered { cpu: false }, Lossless(2.0);
    }
    // The same total must pass like that of one flow. Twice the total is beside it to show how far
    // it goes: more than one flow's must be delivered, but nobody has asked that nothing be lost.
    3 "udp" ["udp 1150 B 1G", "udp 1150 B 2×500M"] {
        "UDP, two flows of 0.5 Gbit/s: Gbit/s, most lost in a run (CPU s/GB)",
            Delivered { cpu: true }, LikeOneFlow { lossless: true };
    }
    3 "udp" ["udp 1150 B 1G", "udp 1150 B 2×1G"] {
        "UDP, two flows of 1 Gbit/s: Gbit/s, most lost in a run (CPU s/GB)",
            Delivered { cpu: true }, LikeOneFlow { lossless: false };
    }
    3 "packets" ["udp 64 B"] {
        "UDP, 64 bytes, packets/s at ≤ 0.1 % lost",
            Median(PACKETS), of_tuned(AtLeast(2.0)), HeldLoss;
    }
    3 "packets" ["udp 1150 B"] {
        "UDP, 1,150 bytes, packets/s at ≤ 0.1 % lost",
            Median(PACKETS), of_tuned(AtLeast(1.3)), HeldLoss;
    }
    3 "packets" ["udp 8192 B"] {
        "UDP, 8,192 bytes, packets/s at ≤ 0.1 % lost",
            Median(PACKETS), of_tuned(AtLeast(1.0)), HeldLoss;
    }
    4 "latency" ["ping-pong"] {
        "64-byte ping-pong, p50 µs", Median(P50), of_rathole(AtMost(0.95));
    }
    4 "latency" ["ping-pong + bulk up"] {
        "ping-pong beside bulk up, p99 µs (bulk Gbit/s)",
            P99_BULK, NO_LATER_THAN_QUINN;
    }
    4 "latency" ["ping-pong + bulk down"] {
        "ping-pong beside bulk down, p99 µs (bulk Gbit/s)",
            P99_BULK, NO_LATER_THAN_QUINN;
    }
    4 "latency" ["open loop 1000/s + bulk up"] {
        "1,000 requests/s beside bulk up, p99.9 µs (bulk Gbit/s)",
            P999_BULK, NO_LATER_THAN_QUINN, REQUESTS_LOST;
    }
    4 "latency" ["open loop 1000/s + bulk down"] {
        "1,000 requests/s beside bulk down, p99.9 µs (bulk Gbit/s)",
            P999_BULK, NO_LATER_THAN_QUINN, REQUESTS_LOST;
    }
    5 "connect" ["connect, echo ×1"] {
        "connect + echo, one after the other, p50 µs",
            Median(P50), SOONER_VISITS, VISITS_FAILED;
    }
    5 "connect" ["connect, echo ×64"] {
        "new visitors per second, 64 at a time, one core a side",
            Median(VISITS), MORE_VISITORS, VISITS_FAILED;
    }
    5 "flows" ["10000 tcp flows"] {
        "10,000 idle TCP flows, server: KiB each", Median(SERVER_KIB), FLOW_KIB;
        "10,000 idle TCP flows, client: KiB each", Median(CLIENT_KIB), FLOW_KIB;
    }
    5 "flows" ["10000 udp flows"] {
        "10,000 idle UDP flows, server: KiB each", Median(SERVER_KIB), FLOW_KIB;
        "10,000 idle UDP flows, client: KiB each", Median(CLIENT_KIB), FLOW_KIB;
    }
    6 "link" ["reference: to service"] {
        "200 Mbit/s, 40 ms, 1 % lost, to the service alone: % of the link",
            Median(SHARE), LINK_SHARE;
    }
    6 "link" ["reference,loss-percent=0.1: to service"] {
        "200 Mbit/s, 40 ms, 0.1 % lost, to the service alone: % of the link",
            Median(SHARE), LINK_SHARE;
    }
    6 "link" ["reference,loss-percent=3: to service"] {
        "200 Mbit/s, 40 ms, 3 % lost, to the service alone: % of the link",
            Median(SHARE), LINK_SHARE;
    }
    6 "link" ["policer: to service"] {
        "behind a policer with a small buffer, to the service alone: % of the link",
            Median(SHARE), LINK_SHARE;
    }
    6 "lane" [
        "reference,loss-percent=0: to visitor",
        "reference,loss-percent=0: to visitor ×100",
        "reference,loss-percent=0: to visitor ×1000",
        "reference,loss-percent=0: to visitor ×5000",
    ] {
        "200 Mbit/s, 40 ms, 1, 100, 1,000, 5,000 downloads on one lane: % of the link",
            Each(SHARE), Within(AtLeast(85.0), "{}");
        "200 Mbit/s, 40 ms, 1, 100, 1,000, 5,000 downloads on one lane: CPU s/GB",
            Each(CPU), Grown(In::Each, AtMost(1.2), 2, "{} × one flow");
    }
    7 "scale" ["1 core(s)", "2 core(s)", "4 core(s)", "8 core(s)"] {
        "1, 2, 4, 8 cores a side: CPU s/GB", Each(CPU),
            Grown(In::Last, Below(1.05), 3, "8 cores {} × 1 core");
        "visitors handed to another core once all lanes are up, most of any run",
            LargestOfEach(VISITORS_ASTRAY), NoneAnywhere;
        "packets handed to another core once all lanes are up, most of any run",
            LargestOfEach(PACKETS_ASTRAY), NoneAnywhere;
    }
    8 "allocations" [ANY_LOAD] {
        "allocations of ours per packet, most of any load",
            Beside(Metric(ALLOCATIONS_OURS, 3), "quiche's ", Metric(ALLOCATIONS_OTHERS, 1)),
            // What `qmux-dp allocations` itself allows: timers and sweeps are per second.
            Within(AtMost(0.05), "none ({}: timers)");
    }
    9 "syscalls" ["a round trip of 64 B, server", "a round trip of 64 B, client"] {
        "system calls per 64-byte round trip: server, client",
            Each(CALLS), Within(AtMost(6.5), "{}");
        "QUIC packets per 64-byte round trip: sent by the server, by the client",
            Each(SENT), Within(AtMost(1.0), "{}");
    }
    9 "syscalls" ["a visitor ×1, server", "a visitor ×1, client"] {
        "system calls per visitor (connect, echo, close): server, client",
            Each(CALLS), Within(AtMost(18.0), "{}");
    }
    10 "programs" ["redis GET ×64 by 1 core"] {
        "redis-benchmark GET, 64 at a time: requests/s",
            Median(REQUESTS), MORE_REQUESTS, REQUESTS_FAILED;
        "redis-benchmark GET, 64 at a time: CPU µs/request of both sides",
            Median(REQUEST_CPU), CHEAPER_REQUESTS;
    }
    10 "cores" ["redis GET ×64 by 1 core", "redis GET ×64 by 2 cores"] {
        "redis-benchmark GET, 64 at a time, by 2 cores a side: CPU µs/request",
            Median(REQUEST_CPU), SECOND_CORE;
    }
    10 "programs" ["http keep-alive ×64 by 1 core"] {
        "wrk, kept connections, 64 at a time: requests/s",
            Median(REQUESTS), MORE_REQUESTS, REQUESTS_FAILED;
        "wrk, kept connections, 64 at a time: CPU µs/request of both sides",
            Median(REQUEST_CPU), CHEAPER_REQUESTS;
    }
    10 "cores" ["http keep-alive ×64 by 1 core", "http keep-alive ×64 by 2 cores"] {
        "wrk, kept connections, 64 at a time, by 2 cores a side: CPU µs/request",
            Median(REQUEST_CPU), SECOND_CORE;
    }
    10 "programs" ["http close ×64 by 1 core"] {
        "wrk, a connection per request, 64 at a time: requests/s",
            Median(REQUESTS), MORE_REQUESTS, REQUESTS_FAILED;
        "wrk, a connection per request, 64 at a time: CPU µs/request of both sides",
            Median(REQUEST_CPU), CHEAPER_REQUESTS;
    }
    10 "cores" ["http close ×64 by 1 core", "http close ×64 by 2 cores"] {
        "wrk, a connection per request, 64 at a time, by 2 cores a side: CPU µs/request",
            Median(REQUEST_CPU), SECOND_CORE;
    }
};
