//! What the goals come to, of results that are made up.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::page::{Line, lines};
use super::probe::Tunnel;
use super::table::ROWS;
use super::{ALLOCATIONS, Found, GOALS, PROBES, Page};

/// Runs of a tunnel in a case, as a report has them, of `METRIC=VALUE,VALUE… …`. A value is that
/// of a run; a run that failed is `!`, and a metric of one value has it in all runs.
fn runs(tunnel: &str, metrics: &str) -> Value {
    let (mut summary, mut all) = (Map::new(), Vec::<Value>::new());
    for (metric, list) in metrics.split(' ').filter_map(|it| it.split_once('=')) {
        let values: Vec<Option<f64>> = list.split(',').map(|it| it.parse().ok()).collect();
        while all.len() < values.len() {
            all.push(json!({"values": {}}));
        }
        for (index, run) in all.iter_mut().enumerate() {
            match values.get(index).unwrap_or(&values[0]) {
                Some(value) => run["values"][metric] = json!(value),
                None => *run = json!({"values": {}, "error": "it hung"}),
            }
        }
        let mut sorted: Vec<f64> = values.into_iter().flatten().collect();
        sorted.sort_by(f64::total_cmp);
        if let Some(max) = sorted.last() {
            let median = sorted[sorted.len() / 2];
            summary.insert(metric.into(), json!({"median": median, "max": max}));
        }
    }
    json!({"tunnel": tunnel, "summary": summary, "runs": all})
}

/// What a probe has found: a line for each case and tunnel, `CASE | TUNNEL | METRICS`.
fn report(text: &str) -> Value {
    let mut cases: Vec<Value> = Vec::new();
    for line in text.split('\n') {
        let words: Vec<&str> = line.split('|').map(str::trim).collect();
        let [case, tunnel, metrics] = words[..] else {
            panic!("{line:?} is no case, tunnel and metrics");
        };
        if cases.last().is_none_or(|it| it["case"] != case) {
            cases.push(json!({"case": case, "tunnels": []}));
        }
        let tunnels = cases.last_mut().and_then(|it| it["tunnels"].as_array_mut());
        tunnels.expect("one").push(runs(tunnel, metrics));
    }
    json!({"command": "qmux-bench", "cases": cases})
}

fn line(found: &Found, what: &str) -> Line {
    let mut lines = lines(found).into_iter();
    let line = lines.find(|line| line.what.contains(what));
    line.unwrap_or_else(|| panic!("no line about {what}"))
}

/// Each verdict of what a probe has found: lines of a report, the last one with `=>` and the
/// verdict behind it, perhaps with our cell after a semicolon.
fn expect(probe: &str, what: &str, reports: &str) {
    let mut lines = Vec::new();
    for text in reports.trim().lines().map(str::trim) {
        let Some((last, wanted)) = text.split_once(" => ") else {
            lines.push(text);
            continue;
        };
        lines.push(last);
        let mut found = Found::default();
        found.add(probe, report(&lines.join("\n")));
        let line = line(&found, what);
        let (verdict, cell) = wanted.split_once("; ours ").unwrap_or((wanted, ""));
        assert_eq!(line.verdict(), verdict, "{what}: {lines:?}");
        assert!(
            cell.is_empty() || line.values["qmux-dp"] == cell,
            "{what}: {lines:?}"
        );
        lines.clear();
    }
    assert!(lines.is_empty(), "no verdict: {lines:?}");
}

#[test]
fn every_goal_has_a_probe_and_every_probe_a_name_of_its_own() {
    for (index, probe) in PROBES.iter().enumerate() {
        assert!(PROBES[..index].iter().all(|it| it.name != probe.name));
        assert!(probe.tunnels.contains(&Tunnel::Ours), "{probe:?}");
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

#[test]
fn a_limit_is_compared_as_it_is_shown() {
    let visits = "
        connect, echo ×1 | qmux-dp | p50_us=300.4 failed=0 => reached
        connect, echo ×1 | qmux-dp | p50_us=300.6 failed=0 => MISSED";
    expect("connect", "one after the other", visits);
    let shares = "
        reference: to service | qmux-dp | link_share_percent=84.9 => MISSED
        reference: to service | qmux-dp | link_share_percent=85.0 => reached";
    expect("link", "ms, 1 % lost", shares);
    let kib = "
        10000 tcp flows | qmux-dp | server_kib_per_flow=8.04 => MISSED
        10000 tcp flows | qmux-dp | server_kib_per_flow=8.0 => reached";
    expect("flows", "idle TCP flows, server", kib);
    // Below is below.
    let slow = "open loop 1000/s + bulk up | qmux-dp | p999_us=10000 lost=0 => MISSED";
    expect("latency", "requests/s beside bulk up", slow);
}

#[test]
fn ratios_are_those_within_a_round() {
    // The second round is slow for both.
    let rates = "
        udp 64 B | quinn-dp | packets_per_second=100,50,100 lost_percent=0.1
        udp 64 B | qmux-dp | packets_per_second=300,150,310 lost_percent=0 => reached: 3.00 ×";
    expect("packets", "UDP, 64 bytes", rates);
}

#[test]
fn the_stricter_of_rathole_and_the_raw_round_trip_is_the_limit() {
    let times = "
        ping-pong | raw | p50_us=60
        ping-pong | qmux-dp | p50_us=110 => reached: limit 114, ours raw + 50
        ping-pong | raw | p50_us=60
        ping-pong | rathole | p50_us=100
        ping-pong | qmux-dp | p50_us=110 => MISSED: limit 100, ours raw + 50
        ping-pong | raw | p50_us=60
        ping-pong | rathole | p50_us=140
        ping-pong | qmux-dp | p50_us=120 => MISSED: limit 114, ours raw + 60
        ping-pong | rathole | p50_us=140
        ping-pong | qmux-dp | p50_us=120 => reached: limit 140";
    expect("latency", "64-byte", times);
}

#[test]
fn work_per_byte_counts_only_where_throughput_is_level() {
    let works = "
        throughput_gbit_s=8 cpu_seconds_per_gb=1 => MISSED: 0.80 ×, CPU ÷ 2.00
        throughput_gbit_s=9.96 cpu_seconds_per_gb=1 => reached: by CPU: 1.00 ×, CPU ÷ 2.00
        throughput_gbit_s=12 cpu_seconds_per_gb=1.1 => MISSED: 1.20 ×, CPU ÷ 1.82
        throughput_gbit_s=20 cpu_seconds_per_gb=1 => reached: 2.00 ×, CPU ÷ 2.00";
    let quinn = "tcp ×1 | quinn-dp | throughput_gbit_s=10 cpu_seconds_per_gb=2";
    for ours in works.trim().lines() {
        let both = format!("{quinn}\ntcp ×1 | qmux-dp | {}", ours.trim());
        expect("tcp", "one connection: Gbit/s", &both);
    }
}

#[test]
fn what_was_not_answered_is_not_passed_over() {
    let answers = "
        open loop 1000/s + bulk up | qmux-dp | p999_us=4000 lost=0 => reached
        open loop 1000/s + bulk up | qmux-dp | p999_us=4000 lost=2 => MISSED: 2 requests lost
        open loop 1000/s + bulk up | qmux-dp | p999_us=4000 bulk_gbit_s=3 => not measured; ours 4000 (3.00)";
    expect("latency", "requests/s beside bulk up", answers);
    let visits = "
        connect, echo ×64 | qmux-dp | visits_per_second=6000 failed=0 => reached
        connect, echo ×64 | qmux-dp | visits_per_second=6000 failed=3 => MISSED: 3 visits failed";
    expect("connect", "new visitors", visits);
}

#[test]
fn a_packet_rate_that_did_not_hold_is_none() {
    let rates = "
        udp 64 B | quinn-dp | packets_per_second=100 lost_percent=0.1
        udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0.1 => reached: 3.00 ×
        udp 64 B | quinn-dp | packets_per_second=100 lost_percent=0
        udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0.2 => MISSED: 3.00 ×, 0.200 % lost
        udp 64 B | quinn-dp | packets_per_second=100 lost_percent=0.2
        udp 64 B | qmux-dp | packets_per_second=300 lost_percent=0 => not measured";
    expect("packets", "UDP, 64 bytes", rates);
}

#[test]
fn the_worst_run_tells_what_udp_lost() {
    let runs = "udp 1150 B 1G | qmux-dp | lost_percent=0,0,0.3 throughput_gbit_s=1 \
                => MISSED; ours 1.00, 0.300 %";
    expect("udp", "UDP, 1,150 bytes: Gbit/s", runs);
}

#[test]
fn runs_that_failed_are_not_passed_over() {
    let one = "
        connect, echo ×1 | qmux-dp | p50_us=200,200 failed=0 => reached
        connect, echo ×1 | qmux-dp | failed=0,! p50_us=200,! => MISSED: 1 of 2 runs failed
        connect, echo ×1 | qmux-dp | p50_us=!,! => MISSED: 2 of 2 runs failed";
    expect("connect", "one after the other", one);
    // In any case that a line is about.
    let four = "
        tcp ×1 | qmux-dp | throughput_gbit_s=5,5
        tcp ×4 | qmux-dp | throughput_gbit_s=5,! => MISSED: 1 of 4 runs failed; 1.00 ×";
    expect("tcp", "four connections", four);
}

#[test]
fn what_was_not_counted_with_all_numbers_of_cores_is_not_known() {
    let all = "
        1 core(s) | qmux-dp | M
        2 core(s) | qmux-dp | M
        4 core(s) | qmux-dp | M
        8 core(s) | qmux-dp | M";
    let some = all.replace("        4 core(s) | qmux-dp | M\n", "");
    let of = |cores: &str, metric: &str| cores.replace('M', metric);
    let packets = "packets handed";
    let astray = |count: &str| format!("steady_packets_handed_over={count}");
    for (cores, count, wanted) in [
        (all, "0", "reached; ours 0"),
        (all, "0,0,1", "MISSED; ours 1"),
        (&some, "0", "not measured; ours 0 (3 of 4 counted)"),
        (&some, "0,1", "MISSED; ours 1 (3 of 4 counted)"),
    ] {
        let counted = of(cores, &astray(count));
        expect("scale", packets, &format!("{counted} => {wanted}"));
    }
    for (cores, wanted) in [
        (all, "reached: 1.000 ×; ours 1.00, 1.00, 1.00, 1.00"),
        (&some, "not measured; ours 1.00, 1.00, –, 1.00"),
    ] {
        let costs = of(cores, "cpu_seconds_per_gb=1");
        expect("scale", "1, 2, 4, 8 cores", &format!("{costs} => {wanted}"));
    }
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
fn both_sides_must_be_within_the_limit() {
    let calls = "
        a round trip of 64 B, server | qmux-dp | calls=6.5
        a round trip of 64 B, client | qmux-dp | calls=6.5 => reached; ours 6.5, 6.5
        a round trip of 64 B, server | qmux-dp | calls=6.6
        a round trip of 64 B, client | qmux-dp | calls=1 => MISSED
        a round trip of 64 B, server | qmux-dp | calls=1
        a round trip of 64 B, client | qmux-dp | calls=6.6 => MISSED";
    expect("syscalls", "system calls per 64", calls);
    // Heartbeats do not make a packet two.
    let packets = "
        a round trip of 64 B, server | qmux-dp | packets_out=1.04
        a round trip of 64 B, client | qmux-dp | packets_out=1 => reached
        a round trip of 64 B, server | qmux-dp | packets_out=2
        a round trip of 64 B, client | qmux-dp | packets_out=1 => MISSED";
    expect("syscalls", "QUIC packets", packets);
}

#[test]
fn the_best_of_the_others_is_what_counts() {
    // The fastest is not the cheapest.
    let one_core = "
        redis GET ×64 by 1 core | quinn-dp | requests_per_second=10000 cpu_us_per_request=50
        redis GET ×64 by 1 core | rathole | requests_per_second=20000 cpu_us_per_request=80
        redis GET ×64 by 1 core | qmux-dp | requests_per_second=21000 cpu_us_per_request=60 failed=0";
    for (what, verdict) in [
        ("GET, 64 at a time: requests", "MISSED: 1.05 ×"),
        ("GET, 64 at a time: CPU", "MISSED: 1.20 ×"),
    ] {
        expect("programs", what, &format!("{one_core} => {verdict}"));
    }
    let two_cores = "
        redis GET ×64 by 1 core | qmux-dp | cpu_us_per_request=60
        redis GET ×64 by 2 cores | qmux-dp | cpu_us_per_request=63.6 => MISSED: 1.06 ×";
    expect("cores", "GET, 64 at a time, by 2 cores", two_cores);
}

#[test]
fn what_is_of_another_commit_is_named() {
    let mut found = Found::default();
    for (probe, commit) in [("tcp", "aaa"), ("udp", "bbb"), ("link", "aaa")] {
        let machine = json!({"date": "today", "commit": commit});
        found.add(probe, json!({"command": "x", "machine": machine}));
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
            for tunnel in probe.tunnels.iter().map(|it| it.label()) {
                let metric = |(metric, values): &(&str, &[f64])| {
                    let choice = choose(&[probe.name, case, tunnel, metric]);
                    format!("{metric}={}", values[choice % values.len()])
                };
                let metrics: Vec<String> = METRICS.iter().map(metric).collect();
                lines.push(format!("{case} | {tunnel} | {}", metrics.join(" ")));
            }
        }
        let mut report = report(&lines.join("\n"));
        report["machine"] = json!({"cpus": 2, "cpu": "made up", "kernel": "6", "commit": "aaa"});
        let file = directory.join(probe.name);
        std::fs::create_dir_all(&file)?;
        let file = file.join(format!("{}.json", probe.bench));
        std::fs::write(file, report.to_string())?;
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
