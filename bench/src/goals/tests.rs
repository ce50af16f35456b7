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
connect, echo ×1 | qmux-dp | p50_us=300.4 failed=0 => reached
connect, echo ×1 | qmux-dp | p50_us=300.6 failed=0 => MISSED
@ link: ms, 1 % lost
reference: to service | qmux-dp | link_share_percent=84.9 => MISSED
reference: to service | qmux-dp | link_share_percent=85.0 => reached
@ flows: idle TCP flows, server
10000 tcp flows | qmux-dp | server_kib_per_flow=8.04 => MISSED
10000 tcp flows | qmux-dp | server_kib_per_flow=8.0 => reached
# below is below
@ latency: requests/s beside bulk up
open loop 1000/s + bulk up | qmux-dp | p999_us=10000 lost=0 => MISSED
# ratios are those within a round: the second one is slow for both
@ packets: UDP, 64 bytes
udp 64 B | quinn-dp | packets_per_second=100,50,100 lost_percent=0.1
udp 64 B | qmux-dp | packets_per_second=300,150,310 lost_percent=0 => reached: 3.00 ×
# the stricter of rathole and the raw round trip is the limit
@ latency: 64-byte
ping-pong | raw | p50_us=60
ping-pong | qmux-dp | p50_us=110 => reached: limit 114, ours raw + 50
ping-pong | raw | p50_us=60
ping-pong | rathole | p50_us=100
ping-pong | qmux-dp | p50_us=110 => MISSED: limit 100, ours raw + 50
ping-pong | raw | p50_us=60
ping-pong | rathole | p50_us=140
ping-pong | qmux-dp | p50_us=120 => MISSED: limit 114, ours raw + 60
ping-pong | rathole | p50_us=140
ping-pong | qmux-dp | p50_us=120 => reached: limit 140
# work per byte counts only where throughput is level
@ tcp: one connection: Gbit/s
tcp ×1 | quinn-dp | throughput_gbit_s=10 cpu_seconds_per_gb=2
tcp ×1 | qmux-dp | throughput_gbit_s=8 cpu_seconds_per_gb=1 => MISSED: 0.80 ×, CPU ÷ 2.00
tcp ×1 | quinn-dp | throughput_gbit_s=10 cpu_seconds_per_gb=2
tcp ×1|qmux-dp|cpu_seconds_per_gb=1 throughput_gbit_s=9.96 => reached: by CPU: 1.00 ×, CPU ÷ 2.00
tcp ×1 | quinn-dp | throughput_gbit_s=10 cpu_seconds_per_gb=2
tcp ×1 | qmux-dp | throughput_gbit_s=12 cpu_seconds_per_gb=1.1 => MISSED: 1.20 ×, CPU ÷ 1.82
tcp ×1 | quinn-dp | throughput_gbit_s=10 cpu_seconds_per_gb=2
tcp ×1 | qmux-dp | throughput_gbit_s=20 cpu_seconds_per_gb=1 => reached: 2.00 ×, CPU ÷ 2.00
# what was not answered is not passed over
@ latency: requests/s beside bulk up
open loop 1000/s + bulk up | qmux-dp | p999_us=4000 lost=0 => reached
open loop 1000/s + bulk up | qmux-dp | p999_us=4000 lost=2 => MISSED: 2 requests lost
open loop 1000/s + bulk up | qmux-dp | p999_us=4000 bulk_gbit_s=3 => not measured; ours 4000 (3.00)
@ connect: new visitors
connect, echo ×64 | qmux-dp | visits_per_second=6000 failed=0 => reached
connect, echo ×64 | qmux-dp | visits_per_second=6000 failed=3 => MISSED: 3 visits failed
# a packet rate that did not hold is none
@ packets: UDP, 64 bytes
udp 64 B | quinn-dp | packets_per_second=100 lost_percent=0.1
udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0.1 => reached: 3.00 ×
udp 64 B | quinn-dp | packets_per_second=100 lost_percent=0
udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0.2 => MISSED: 3.00 ×, 0.200 % lost
udp 64 B | quinn-dp | packets_per_second=100 lost_percent=0.2
udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0 => not measured
# the worst run tells what UDP lost
@ udp: UDP, 1,150 bytes: Gbit/s
udp 1150 B 1G | qmux-dp | lost_percent=0,0,0.3 throughput_gbit_s=1 => MISSED; ours 1.00, 0.300 %
# runs that failed are not passed over
@ connect: one after the other
connect, echo ×1 | qmux-dp | p50_us=200,200 failed=0 => reached
connect, echo ×1 | qmux-dp | failed=0,! p50_us=200,! => MISSED: 1 of 2 runs failed
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
    ("link_share_percent", &[85.0, 80.0, 79.9]),
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
