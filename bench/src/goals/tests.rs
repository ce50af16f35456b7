//! What the goals come to, of results that are made up.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::page::{Line, lines};
use super::probe::OURS;
use super::table::ROWS;
use super::{ALLOCATIONS, Found, GOALS, PROBES, Page};
use crate::report::Report;

/// A report of lines `CASE | TUNNEL | METRIC=VALUE,VALUE… …`, one for each case and tunnel. A value
/// is that of a run; a run that failed is `!`, and a metric of one value has it in all runs.
fn report(lines: &[&str]) -> Report {
    let mut cases: Vec<Value> = Vec::new();
    let mut names = BTreeSet::new();
    for line in lines {
        let words: Vec<&str> = line.split('|').map(str::trim).collect();
        let [case, tunnel, metrics] = words[..] else {
            panic!("{line:?} is no case, tunnel and metrics");
        };
        let mut runs = Vec::<Value>::new();
        for (metric, list) in metrics.split(' ').filter_map(|it| it.split_once('=')) {
            names.insert(metric);
            let values: Vec<Option<f64>> = list.split(',').map(|it| it.parse().ok()).collect();
            runs.resize(runs.len().max(values.len()), json!({"values": {}}));
            for (index, run) in runs.iter_mut().enumerate() {
                match values.get(index).unwrap_or(&values[0]) {
                    Some(value) => run["values"][metric] = json!(value),
                    None => *run = json!({"values": {}, "error": "it hung"}),
                }
            }
        }
        if cases.last().is_none_or(|it| it["case"] != case) {
            cases.push(json!({"case": case, "tunnels": []}));
        }
        let tunnels = cases.last_mut().and_then(|it| it["tunnels"].as_array_mut());
        tunnels
            .expect("one")
            .push(json!({"tunnel": tunnel, "runs": runs}));
    }
    let metric = |name| json!({"name": name, "unit": "", "better": "neither"});
    let metrics: Vec<Value> = names.into_iter().map(metric).collect();
    let report = json!({"command": "qmux-bench", "metrics": metrics, "cases": cases});
    let mut report: Report = serde_json::from_value(report).expect("a report");
    report.summarise();
    report
}

/// The line about something.
fn line(found: &Found, what: &str) -> Line {
    let mut lines = lines(found).into_iter();
    let line = lines.find(|line| line.what.contains(what));
    line.unwrap_or_else(|| panic!("no line about {what}"))
}

#[test]
fn every_goal_has_a_probe_and_every_probe_a_name_of_its_own() {
    for (index, probe) in PROBES.iter().enumerate() {
        assert!(PROBES[..index].iter().all(|it| it.name != probe.name));
        assert!(probe.tunnels.contains(&OURS), "{probe:?}");
        assert_ne!(probe.name, ALLOCATIONS);
        assert!(ROWS.iter().any(|row| row.probe == probe.name), "{probe:?}");
    }
    for row in ROWS {
        let probe = PROBES.iter().find(|it| it.name == row.probe);
        let is_its = |probe: &super::Probe| probe.goals.contains(&row.goal);
        // What a program of its own counts has no probe.
        assert!(
            probe.map_or(row.probe == ALLOCATIONS, is_its),
            "{}",
            row.what
        );
    }
    for goal in 1..=GOALS {
        assert!(ROWS.iter().any(|it| it.goal == goal), "goal {goal}");
    }
}

#[test]
fn what_was_not_measured_is_neither_reached_nor_missed() {
    for line in lines(&Found::default()) {
        assert_eq!(line.verdict(), "not measured", "{}", line.what);
        assert!(line.values.is_empty(), "{}", line.what);
    }
}

/// What must hold, below it a probe and a part of a goal's name, then lines of reports, the last of
/// each with `=>` and the verdict behind it, perhaps with our cell after a semicolon.
const EXAMPLES: &str = "
# a limit is compared as it is shown
@ connect: one after the other
connect, echo ×1 | rathole | p50_us=1000
connect, echo ×1 | qmux-dp | p50_us=904 failed=0 => reached: 0.90 ×
connect, echo ×1 | rathole | p50_us=1000
connect, echo ×1 | qmux-dp | p50_us=906 failed=0 => MISSED: 0.91 ×
@ flows: idle TCP flows, server
10000 tcp flows | qmux-dp | server_kib_per_flow=8.04 => MISSED
10000 tcp flows | qmux-dp | server_kib_per_flow=8.0 => reached
# a burst above the link's rate is no more than all of it, on either side
@ link: ms, 1 % lost
reference: to service | quinn-dp | link_share_percent=120
reference: to service | rathole | link_share_percent=60
reference: to service | qmux-dp | link_share_percent=99.6 => reached: 1.00 ×; ours 99.6
reference: to service | quinn-dp | link_share_percent=90
reference: to service | quinn-dp-bbr | link_share_percent=95
reference: to service | qmux-dp | link_share_percent=94 => MISSED: 0.99 ×
reference: to service | quinn-dp-bbr | link_share_percent=100,100,100
reference: to service | qmux-dp | link_share_percent=110,80,80 => MISSED: 0.80 ×
# of many flows the worst number counts, and each is needed
@ lane: on one lane: % of
reference,loss-percent=0: to visitor | qmux-dp | link_share_percent=95
reference,loss-percent=0: to visitor ×100 | qmux-dp | link_share_percent=84
reference,loss-percent=0: to visitor ×1000 | qmux-dp | link_share_percent=95
reference,loss-percent=0: to visitor ×5000 | qmux-dp | link_share_percent=95 => MISSED
@ lane: on one lane: CPU
reference,loss-percent=0: to visitor | qmux-dp | cpu_seconds_per_gb=10
reference,loss-percent=0: to visitor ×100 | qmux-dp | cpu_seconds_per_gb=13
reference,loss-percent=0: to visitor ×1000 | qmux-dp | cpu_seconds_per_gb=9
reference,loss-percent=0: to visitor ×5000 | qmux-dp | cpu_seconds_per_gb=8 => MISSED: 1.30 ×
reference,loss-percent=0: to visitor | qmux-dp | cpu_seconds_per_gb=10
reference,loss-percent=0: to visitor ×100 | qmux-dp | cpu_seconds_per_gb=12
reference,loss-percent=0: to visitor ×5000 | qmux-dp | cpu_seconds_per_gb=8 => not measured
@ link: policer
policer: to service | rathole | link_share_percent=50
policer: to service | qmux-dp | link_share_percent=70 => reached: 1.40 ×
policer: to service | qmux-dp | link_share_percent=95 => not measured
# ratios are those within a round: the second one is slow for both
@ packets: UDP, 64 bytes
udp 64 B | quinn-dp-tuned | packets_per_second=100,50,100 lost_percent=0.1
udp 64 B | qmux-dp | packets_per_second=200,100,210 lost_percent=0 => reached: 2.00 ×
# each size of a datagram has a factor of its own
udp 64 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0
udp 64 B | qmux-dp | packets_per_second=199 lost_percent=0 => MISSED: 1.99 ×
@ packets: UDP, 1,150 bytes, packets
udp 1150 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0
udp 1150 B | qmux-dp | packets_per_second=130 lost_percent=0 => reached: 1.30 ×
udp 1150 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0
udp 1150 B | qmux-dp | packets_per_second=129 lost_percent=0 => MISSED: 1.29 ×
@ packets: UDP, 8,192 bytes, packets
udp 8192 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0
udp 8192 B | qmux-dp | packets_per_second=100 lost_percent=0 => reached: 1.00 ×
# a round trip is compared with rathole's
@ latency: 64-byte
ping-pong | raw | p50_us=60
ping-pong | rathole | p50_us=100
ping-pong | qmux-dp | p50_us=95 => reached: 0.95 ×
ping-pong | raw | p50_us=60
ping-pong | rathole | p50_us=100
ping-pong | qmux-dp | p50_us=96 => MISSED: 0.96 ×
ping-pong | raw | p50_us=60
ping-pong | qmux-dp | p50_us=70 => not measured
# throughput and work per byte are lines of their own
@ tcp: one connection: Gbit/s
tcp ×1 | quinn-dp-tuned | throughput_gbit_s=10 cpu_seconds_per_gb=2
tcp ×1 | qmux-dp | throughput_gbit_s=11 cpu_seconds_per_gb=3 => reached: 1.10 ×; ours 11.00 (3.00)
tcp ×1 | quinn-dp-tuned | throughput_gbit_s=10 cpu_seconds_per_gb=2
tcp ×1 | qmux-dp | throughput_gbit_s=10.9 cpu_seconds_per_gb=1 => MISSED: 1.09 ×
@ tcp: reverse: CPU
tcp reverse | quinn-dp-tuned | cpu_seconds_per_gb=2
tcp reverse | qmux-dp | cpu_seconds_per_gb=1.8 => reached: 0.90 ×
tcp reverse | quinn-dp-tuned | cpu_seconds_per_gb=2
tcp reverse | qmux-dp | cpu_seconds_per_gb=1.82 => MISSED: 0.91 ×
@ veth: 1,500 bytes: CPU
tcp ×1 | quinn-dp-tuned | cpu_seconds_per_gb=2
tcp ×1 | qmux-dp | cpu_seconds_per_gb=1.5 => reached: 0.75 ×
@ udp: 1,150 bytes: CPU
udp 1150 B 1G | quinn-dp-tuned | cpu_seconds_per_gb=3
udp 1150 B 1G | qmux-dp | cpu_seconds_per_gb=3.03 => MISSED: 1.01 ×
# a tail is compared with that of quinn-dp, and its bulk stands beside it
@ latency: beside bulk down, p99 µs
ping-pong + bulk down | quinn-dp | p99_us=6000 bulk_gbit_s=2
ping-pong + bulk down | qmux-dp | p99_us=6000 bulk_gbit_s=3 => reached: 1.00 ×; ours 6000 (3.00)
# what was not answered is not passed over
@ latency: requests/s beside bulk up
open loop 1000/s + bulk up | quinn-dp | p999_us=4000
open loop 1000/s + bulk up | qmux-dp | p999_us=4000 lost=0 => reached: 1.00 ×
open loop 1000/s + bulk up | quinn-dp | p999_us=4000
open loop 1000/s + bulk up | qmux-dp | p999_us=4000 lost=2 => MISSED: 1.00 ×, 2 requests lost
open loop 1000/s + bulk up | quinn-dp | p999_us=4000
open loop 1000/s + bulk up | qmux-dp | p999_us=4000 bulk_gbit_s=3 => not measured; ours 4000 (3.00)
@ connect: new visitors
connect, echo ×64 | quinn-dp | visits_per_second=4000
connect, echo ×64 | rathole | visits_per_second=5000
connect, echo ×64 | qmux-dp | visits_per_second=6500 failed=0 => reached: 1.30 ×
connect, echo ×64 | rathole | visits_per_second=5000
connect, echo ×64 | qmux-dp | visits_per_second=6500 failed=3 => MISSED: 1.30 ×, 3 visits failed
# a packet rate that did not hold is none
@ packets: UDP, 64 bytes
udp 64 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0.1
udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0.1 => reached: 3.00 ×
udp 64 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0
udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0.2 => MISSED: 3.00 ×, 0.200 % lost
udp 64 B | quinn-dp-tuned | packets_per_second=100 lost_percent=0.2
udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0 => not measured
# the worst run tells what UDP lost
@ udp: UDP, 1,150 bytes: Gbit/s
udp 1150 B 1G | qmux-dp | lost_percent=0,0,0.3 throughput_gbit_s=1 => MISSED; ours 1.00, 0.300 %
# runs that failed are not passed over
@ connect: one after the other
connect, echo ×1 | quinn-dp | p50_us=400
connect, echo ×1 | qmux-dp | p50_us=200 failed=0 => reached: 0.50 ×
connect, echo ×1 | quinn-dp | p50_us=400,400
connect, echo ×1 | qmux-dp | failed=0,! p50_us=200,! => MISSED: 1 of 2 runs failed; 0.50 ×
connect, echo ×1 | qmux-dp | p50_us=!,! => MISSED: 2 of 2 runs failed
# in any case that a line is about
@ tcp: four connections
tcp ×1 | qmux-dp | throughput_gbit_s=5,5
tcp ×4 | qmux-dp | throughput_gbit_s=5,! => MISSED: 1 of 4 runs failed; 1.00 ×
# what was not counted with all numbers of cores is not known
@ scale: packets handed
1 core(s) | qmux-dp | steady_packets_handed_over=0
2 core(s) | qmux-dp | steady_packets_handed_over=0
4 core(s) | qmux-dp | steady_packets_handed_over=0
8 core(s) | qmux-dp | steady_packets_handed_over=0 => reached; ours 0
1 core(s) | qmux-dp | steady_packets_handed_over=0
2 core(s) | qmux-dp | steady_packets_handed_over=0
4 core(s) | qmux-dp | steady_packets_handed_over=0
8 core(s) | qmux-dp | steady_packets_handed_over=0,0,1 => MISSED; ours 1
1 core(s) | qmux-dp | steady_packets_handed_over=0
8 core(s) | qmux-dp | steady_packets_handed_over=0 => not measured; ours 0 (2 of 4 counted)
1 core(s) | qmux-dp | steady_packets_handed_over=0
8 core(s) | qmux-dp | steady_packets_handed_over=0,1 => MISSED; ours 1 (2 of 4 counted)
@ scale: 1, 2, 4, 8 cores
1 core(s) | qmux-dp | cpu_seconds_per_gb=1
2 core(s) | qmux-dp | cpu_seconds_per_gb=1
4 core(s) | qmux-dp | cpu_seconds_per_gb=1
8 core(s) | qmux-dp | cpu_seconds_per_gb=1 => reached: 1.000 ×; ours 1.00, 1.00, 1.00, 1.00
1 core(s) | qmux-dp | cpu_seconds_per_gb=1
8 core(s) | qmux-dp | cpu_seconds_per_gb=1 => not measured; ours 1.00, –, –, 1.00
# both sides must be within the limit
@ syscalls: system calls per 64
a round trip of 64 B, server | qmux-dp | calls=6.5
a round trip of 64 B, client | qmux-dp | calls=6.5 => reached; ours 6.5, 6.5
a round trip of 64 B, server | qmux-dp | calls=6.6
a round trip of 64 B, client | qmux-dp | calls=1 => MISSED
a round trip of 64 B, server | qmux-dp | calls=1
a round trip of 64 B, client | qmux-dp | calls=6.6 => MISSED
# heartbeats do not make a packet two
@ syscalls: QUIC packets
a round trip of 64 B, server | qmux-dp | packets_out=1.04
a round trip of 64 B, client | qmux-dp | packets_out=1 => reached
a round trip of 64 B, server | qmux-dp | packets_out=2
a round trip of 64 B, client | qmux-dp | packets_out=1 => MISSED
# the best of the others is what counts, and the fastest is not the cheapest
@ programs: GET, 64 at a time: requests
redis GET ×64 by 1 core | quinn-dp | requests_per_second=10000
redis GET ×64 by 1 core | rathole | requests_per_second=20000
redis GET ×64 by 1 core | qmux-dp | requests_per_second=21000 failed=0 => MISSED: 1.05 ×
@ programs: GET, 64 at a time: CPU
redis GET ×64 by 1 core | quinn-dp | cpu_us_per_request=50
redis GET ×64 by 1 core | rathole | cpu_us_per_request=80
redis GET ×64 by 1 core | qmux-dp | cpu_us_per_request=60 failed=0 => MISSED: 1.20 ×
@ cores: GET, 64 at a time, by 2 cores
redis GET ×64 by 1 core | qmux-dp | cpu_us_per_request=60
redis GET ×64 by 2 cores | qmux-dp | cpu_us_per_request=63.6 => MISSED: 1.06 ×";

#[test]
fn every_example_comes_to_its_verdict() {
    let (mut rule, mut goal, mut lines) = ("", ("", ""), Vec::new());
    for text in EXAMPLES.trim().lines() {
        if let Some(what) = text.strip_prefix("# ") {
            rule = what;
        } else if let Some(of) = text.strip_prefix("@ ") {
            goal = of.split_once(": ").expect("a probe and a goal");
        } else if let Some((last, wanted)) = text.split_once(" => ") {
            lines.push(last);
            let mut found = Found::default();
            found.add(goal.0, report(&lines));
            let line = line(&found, goal.1);
            let (verdict, cell) = wanted.split_once("; ours ").unwrap_or((wanted, ""));
            assert_eq!(line.verdict(), verdict, "{rule}: {lines:?}");
            let is_right = cell.is_empty() || line.values["qmux-dp"] == cell;
            assert!(is_right, "{rule}: {lines:?} {line:?}");
            lines.clear();
        } else {
            lines.push(text);
        }
    }
    assert!(lines.is_empty(), "no verdict: {lines:?}");
}

#[test]
fn the_worst_load_tells_the_allocations() {
    let mut found = Found::default();
    found.add_allocations(
        "UDP, 64 bytes: 10 QUIC packets, 1.0 MB in\n  \
         allocations: 5.1 per packet, 3.0 per MB; ours 0.001 per packet, others' 5.099\n  \
         allocations: 9.1 per packet, 3.0 per MB; ours 0.100 per packet, others' 9.000\n",
    );
    let line = line(&found, "allocations");
    assert_eq!(line.verdict(), "MISSED");
    assert_eq!(line.values["qmux-dp"], "0.100 (quiche's 9.0)");
}

#[test]
fn what_is_of_another_commit_is_named() {
    let mut found = Found::default();
    for (probe, commit) in [("tcp", "aaa"), ("udp", "bbb"), ("link", "aaa")] {
        let mut report = Report::default();
        (report.machine.date, report.machine.commit) = ("today".into(), commit.into());
        found.add(probe, report);
    }
    found.add_allocations(&(Found::allocations_head("yesterday", "ccc") + "UDP, 64 bytes\n"));
    let text = Page::of(&found).to_text();
    let wanted =
        "note: measured on different commits: tcp, link of aaa; udp of bbb; allocations of ccc";
    assert!(text.contains(wanted), "{text}");
    assert!(
        text.contains("allocations (yesterday, commit ccc)"),
        "{text}"
    );
    // A column without numbers is not there.
    assert!(!text.contains("quinn-dp tuned"), "{text}");
}

/// Metrics with values about their limits.
const METRICS: [(&str, &[f64]); 20] = [
    ("throughput_gbit_s", &[7.0, 1.0, 2.0, 14.0]),
    ("cpu_seconds_per_gb", &[1.9, 2.2, 1.0, 6.0]),
    ("lost_percent", &[0.0, 0.1, 0.05]),
    ("packets_per_second", &[100_000.0, 300_000.0]),
    ("source_limited", &[0.0, 1.0]),
    ("p50_us", &[60.0, 114.0, 300.0]),
    ("p99_us", &[5_000.0, 5_001.0]),
    ("p999_us", &[9_999.0, 10_000.0]),
    ("bulk_gbit_s", &[3.0]),
    ("lost", &[0.0, 2.0]),
    ("failed", &[0.0, 0.0, 3.0]),
    ("visits_per_second", &[5_000.0, 4_999.0]),
    ("server_kib_per_flow", &[8.0, 8.1]),
    ("client_kib_per_flow", &[8.0]),
    ("link_share_percent", &[85.0, 80.0, 79.9, 104.0]),
    ("steady_visitors_handed_over", &[0.0]),
    ("calls", &[6.5, 18.0, 18.1]),
    ("packets_out", &[1.0]),
    ("requests_per_second", &[10_000.0, 11_000.0]),
    ("cpu_us_per_request", &[45.0, 50.0]),
];

/// Writes results that are different for every case and tunnel, and always the same.
fn make_up(directory: &Path) -> std::io::Result<()> {
    // FNV-1a: what is chosen depends on the names alone.
    let choose = |parts: &[&str]| {
        let bytes = parts.iter().flat_map(|it| it.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        (hash >> 7) as usize
    };
    for probe in PROBES {
        let mut cases: Vec<&str> = ROWS
            .iter()
            .filter(|row| row.probe == probe.name)
            .flat_map(|row| row.cases.iter().copied())
            .collect();
        cases.sort_unstable();
        cases.dedup();
        let mut lines = Vec::new();
        for case in cases {
            for tunnel in probe.tunnels {
                let metric = |(metric, values): &(&str, &[f64])| {
                    let choice = choose(&[probe.name, case, tunnel, metric]);
                    format!("{metric}={}", values[choice % values.len()])
                };
                let metrics: Vec<String> = METRICS.iter().map(metric).collect();
                lines.push(format!("{case} | {tunnel} | {}", metrics.join(" ")));
            }
        }
        let report = report(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let file = directory.join(probe.name);
        std::fs::create_dir_all(&file)?;
        let file = file.join(format!("{}.json", probe.bench));
        std::fs::write(file, serde_json::to_string(&report)?)?;
    }
    let file = directory.join(ALLOCATIONS);
    std::fs::create_dir_all(&file)?;
    let counted = "  allocations: 5.1 per packet; ours 0.050 per packet, others' 5.050\n";
    let head = Found::allocations_head("today", "aaa");
    std::fs::write(file.join("allocations.txt"), head + counted)
}

#[test]
fn the_table_of_made_up_results_is_the_one_that_was_looked_through() {
    let directory = tempfile::tempdir().expect("a directory");
    make_up(directory.path()).expect("written");
    let mut text = String::new();
    for line in lines(&Found::read(directory.path())) {
        text.push_str(&format!(
            "{}\n    {}; {}\n",
            line.what,
            line.limit,
            line.verdict()
        ));
        let values = line
            .values
            .iter()
            .map(|(tunnel, value)| format!("    {tunnel}: {value}\n"));
        text.extend(values);
    }
    let wanted = include_str!("tests.golden.txt");
    for (ours, theirs) in text.lines().zip(wanted.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(text, wanted);
}
