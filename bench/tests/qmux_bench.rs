//! `qmux-bench` from outside: a measurement with a real tunnel, its files, its mistakes. The
//! measured numbers are not judged.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Once;

use serde_json::Value;
use tempfile::TempDir;

/// The baseline is a program of another package, which cargo does not build for these tests by
/// itself: it is built here, into the same directory and by the same profile.
fn build_quinn_dp() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_qmux-bench")).parent();
        let profile = match directory.and_then(|it| it.file_name()?.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let build = "build --quiet --locked --workspace --bin quinn-dp --profile";
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(build.split(' ')).arg(profile);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        // These variables are what cargo tells this test about its package. With them, build
        // scripts that ask for them (ring's does) would run again, and all that depends on them be
        // compiled again, both here and in the next build outside of a test.
        for (name, _) in std::env::vars_os() {
            let is_of_package =
                |it: &str| it.starts_with("CARGO_MANIFEST_") || it.starts_with("CARGO_PKG_");
            if name.to_str().is_some_and(is_of_package) {
                cargo.env_remove(name);
            }
        }
        let status = cargo.status();
        assert!(status.expect("cargo").success(), "quinn-dp does not build");
    });
}

fn qmux_bench(args: &[&str]) -> Output {
    build_quinn_dp();
    Command::new(env!("CARGO_BIN_EXE_qmux-bench"))
        .args(args)
        .output()
        .expect("started")
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

/// Runs a measurement, and returns its report and where its files are. Words of `args` are between
/// spaces.
fn report(args: &str, more: &[&str]) -> (Value, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let out = ["--out", directory.path().to_str().expect("UTF-8")];
    let args: Vec<&str> = args.split(' ').collect();
    let output = qmux_bench(&[&args[..], more, &out].concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let report = read_json(&directory.path().join(format!("{}.json", args[0])));
    (report, directory)
}

/// Runs a measurement without a tunnel and with the baseline, for a moment.
fn measure(args: &str, more: &[&str]) -> Value {
    let quick = "--repeats 1 --seconds 0.3 --warm-up 0.1 --tunnels raw,quinn-dp";
    let (report, directory) = report(&format!("{args} {quick}"), more);
    let page = report["bench"].as_str().expect("a name").to_owned() + ".md";
    let page = std::fs::read_to_string(directory.path().join(page));
    assert!(page.expect("a page").contains("| case | tunnel |"));
    report
}

fn median(report: &Value, case: usize, tunnel: usize, metric: &str) -> f64 {
    let tunnel = &report["cases"][case]["tunnels"][tunnel];
    let median = tunnel["summary"][metric]["median"].as_f64();
    median.unwrap_or_else(|| panic!("no {metric} in {tunnel:#}"))
}

#[test]
fn bytes_are_measured_with_and_without_a_tunnel() {
    let report = measure("discard", &["--cases", "tcp up ×1,tcp down ×1"]);
    for case in 0..2 {
        for tunnel in 0..2 {
            assert!(median(&report, case, tunnel, "throughput_gbit_s") > 0.0);
        }
        // Without a tunnel no memory of a tunnel is reported; with one it is.
        let raw = &report["cases"][case]["tunnels"][0]["summary"];
        assert!(raw["memory_max_mib"].is_null(), "{raw}");
        assert!(median(&report, case, 1, "memory_max_mib") > 1.0);
    }
    let processes = &report["cases"][0]["tunnels"][1]["runs"][0]["usage"]["processes"];
    let roles: Vec<&str> = (0..2)
        .filter_map(|it| processes[it]["role"].as_str())
        .collect();
    assert_eq!(roles, ["server", "client"]);
    let command = processes[0]["command"].as_str().expect("a command");
    assert!(command.contains("quinn-dp --config"), "{command}");
}

#[test]
fn round_trips_and_visits_are_measured() {
    let report = measure("latency --rate 200", &["--cases", "open loop"]);
    let cases = report["cases"].as_array().expect("cases").len();
    assert_eq!(cases, 3, "alone and beside bulk either way");
    for case in 0..cases {
        assert!(median(&report, case, 1, "p50_us") > 0.0);
        assert!(median(&report, case, 1, "max_us") >= median(&report, case, 1, "p50_us"));
    }
    let report = measure("connect --visitors 1,8", &[]);
    for case in 0..4 {
        assert!(median(&report, case, 1, "visits_per_second") > 0.0);
        assert_eq!(median(&report, case, 1, "failed"), 0.0);
    }
}

#[test]
fn open_flows_are_measured() {
    let report = measure("flows --flows 50", &[]);
    for case in 0..2 {
        assert!(median(&report, case, 1, "active_messages_per_second") > 0.0);
        assert!(median(&report, case, 1, "idle_cpu_percent") >= 0.0);
    }
}

#[test]
fn system_calls_are_counted_on_each_side() {
    let args = "syscalls --tunnels quinn-dp --visitors 1 --repeats 1 --seconds 1 --warm-up 0.1";
    let (report, _directory) = report(args, &["--cases", "a round trip,a visitor"]);
    let cases: Vec<&str> = (0..4)
        .filter_map(|case| report["cases"][case]["case"].as_str())
        .collect();
    let wanted = [
        "a round trip of 64 B, server",
        "a round trip of 64 B, client",
        "a visitor ×1, server",
        "a visitor ×1, client",
    ];
    assert_eq!(cases, wanted);
    for (case, name) in wanted.iter().enumerate() {
        let of = |metric| median(&report, case, 0, metric);
        // Each message is received and sent, on either side, whatever else is done for it.
        for metric in ["tcp_send", "tcp_receive", "udp_send", "udp_receive", "wait"] {
            assert!(of(metric) >= 0.5, "{metric} of {name}");
        }
        assert!(of("calls") >= 5.0 && of("units") > 0.0);
        let is_visitor = case >= 2;
        assert_eq!(of("end") >= 0.9, is_visitor, "closed once per visitor");
    }
}

#[test]
fn instructions_are_counted_on_each_side() {
    if qmux_harness::find("valgrind").is_none() {
        eprintln!("left out, for there is no valgrind; scripts/setup.sh installs it");
        return;
    }
    let functions = tempfile::tempdir().expect("a directory");
    let args = "instructions --tunnels quinn-dp --repeats 1 --seconds 1 --warm-up 0.1";
    let path = functions.path().to_str().expect("UTF-8");
    let (report, _directory) = report(args, &["--cases", "a round trip", "--functions", path]);
    for side in ["server", "client"] {
        let instructions = median(&report, 0, 0, &format!("{side}_instructions"));
        assert!(instructions > 1_000.0, "{side}: {instructions}");
        let file = format!("a-round-trip-of-64-B--quinn-dp--{side}.txt");
        let functions = std::fs::read_to_string(functions.path().join(file)).expect("functions");
        assert!(functions.contains("quinn_proto"), "{functions}");
    }
}

#[test]
fn requests_of_real_programs_are_measured() {
    let missing = ["redis-server", "redis-benchmark", "nginx", "wrk"]
        .into_iter()
        .find(|name| qmux_harness::find(name).is_none());
    if let Some(missing) = missing {
        eprintln!("left out, for there is no {missing}; scripts/setup.sh installs it");
        return;
    }
    let report = measure("programs --connections 4 --core-counts 1", &[]);
    for case in 0..3 {
        for tunnel in 0..2 {
            assert!(median(&report, case, tunnel, "requests_per_second") > 0.0);
            assert!(median(&report, case, tunnel, "p50_us") > 0.0);
            assert_eq!(median(&report, case, tunnel, "failed"), 0.0);
        }
        assert!(median(&report, case, 1, "cpu_us_per_request") >= 0.0);
    }
}

#[test]
fn mistakes_are_named() {
    for (args, wanted) in [
        ("discard --tunnels wireguard", "unknown tunnel"),
        ("discard --tunnels raw:/bin/true", "names a program"),
        ("discard --tunnels raw,raw", "two are called raw"),
        ("discard --tunnels qmux-dp:/nowhere/x", "program of qmux-dp"),
        ("discard --tunnels raw --baseline rathole", "not among"),
        ("discard --tunnels raw --cases sctp", "no case"),
        ("discard --path wire", "no path"),
        ("syscalls --tunnels raw", "no process"),
        ("syscalls --rate 0", "--rate"),
        ("programs --connections 0", "--connections"),
        ("programs --core-counts 0", "--core-counts"),
        ("link --profile carrier-pigeon", "transatlantic"),
        ("link", "--profile"),
        (
            "link --profile reference --connections 1,0",
            "--connections",
        ),
        ("faults --links sctp", "no link"),
        ("goals --out /nowhere --before /nowhere/x", "/nowhere/x"),
        (
            "performance --template /dev/null --from /nowhere",
            "/nowhere",
        ),
    ] {
        assert_is_mistake(args, wanted);
    }
}

/// Each would be two cases, or columns, of one name.
#[test]
fn what_is_given_twice_is_a_mistake() {
    for (args, wanted) in [
        ("link --profile reference --connections 5,1,5", "5 is"),
        ("link --profile policer --profile policer", "policer is"),
        ("discard --connections 4,04", "4 is"),
        ("discard --udp-sizes 64,64", "64 is"),
        ("discard --tunnels raw --baseline raw,raw", "raw is"),
        ("iperf --udp-rates 1G,1G", "1G is"),
        ("connect --visitors 8,8", "8 is"),
        ("flows --flows 50,50", "50 is"),
        ("udp --sizes 64,512,64", "64 is"),
        ("programs --core-counts 1,1", "1 is"),
        ("scale --core-counts 2,2", "2 is"),
        ("syscalls --visitors 1,1", "1 is"),
    ] {
        assert_is_mistake(args, &format!("{wanted} given twice"));
    }
}

fn assert_is_mistake(args: &str, wanted: &str) {
    let output = qmux_bench(&args.split(' ').collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args}: {error}");
    assert!(error.contains(wanted), "{args}: {error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let args = "flamegraph --perf-script /nowhere --svg /dev/null";
    let output = qmux_bench(&args.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn goals_are_judged_from_the_reports_that_are_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let connect = directory.path().join("connect");
    std::fs::create_dir(&connect).expect("a directory");
    let tunnel = |name, p50_us: f64| {
        serde_json::json!({
            "tunnel": name,
            "summary": {
                "p50_us": {"median": p50_us, "max": p50_us},
                "failed": {"median": 0.0, "max": 0.0},
            },
            "runs": [{"values": {"p50_us": p50_us, "failed": 0.0}}],
        })
    };
    let report = serde_json::json!({
        "command": "qmux-bench connect",
        "machine": {"date": "today", "commit": "abc"},
        "cases": [{
            "case": "connect, echo ×1",
            "tunnels": [tunnel("rathole", 300.0), tunnel("qmux-dp", 250.0)],
        }],
    });
    std::fs::write(connect.join("connect.json"), report.to_string()).expect("written");
    let out = directory.path().to_str().expect("UTF-8");
    let output = qmux_bench(&["goals", "--table", "--out", out]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("reached"), "{text}");
    assert!(
        text.contains("connect: qmux-bench connect (today, commit abc)"),
        "{text}"
    );
    let goals = read_json(&directory.path().join("goals.json"));
    let lines = goals["goals"].as_array().expect("lines");
    let count = |verdict| lines.iter().filter(|it| it["verdict"] == verdict).count();
    assert_eq!((count("reached"), count("missed")), (1, 0));
    assert_eq!(count("not measured"), lines.len() - 1);
    assert!(directory.path().join("goals.md").is_file());
}

#[test]
fn a_reader_that_has_gone_ends_the_program_quietly() {
    let directory = tempfile::tempdir().expect("a directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_qmux-bench"))
        .args(["goals", "--table", "--out"])
        .arg(directory.path())
        .stdout(writer)
        .output()
        .expect("started");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    // This is the exit status of a program that SIGPIPE has ended.
    assert_eq!(output.status.code(), Some(128 + 13));
}

#[test]
fn unknown_goals_are_mistakes() {
    for args in [["--goals", "99"], ["--probes", "speed"]] {
        let output = qmux_bench(&[&["goals", "--out", "/nowhere"], &args[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn the_script_finds_mistakes_before_it_builds_anything() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/goals.sh");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let run = |args: &[&str]| {
        let mut command = Command::new(&script);
        command.args(args).current_dir(elsewhere.path());
        command.output().expect("started")
    };
    for (args, wanted) in [
        ("--goals 99", "--goals: '99'"),
        ("--goals 1,", "--goals: '1,'"),
        ("--probes=tcp,speed", "--probes: 'tcp,speed'"),
        ("--before old/qmux-dp", "old/qmux-dp"),
        ("--before", "needs a value"),
        ("--table", "needs --out"),
        ("--table --out none", "no directory"),
        ("--repeats 0", "--repeats"),
        ("--fast", "unknown option '--fast'"),
    ] {
        let output = run(&args.split(' ').collect::<Vec<_>>());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {error}");
        assert!(error.contains(wanted), "{args}: {error}");
        assert!(output.stdout.is_empty(), "{args}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--keep"));
    // Paths that were typed are relative to the directory in which they were typed.
    let error = run(&["--before", "old"]).stderr;
    let from = elsewhere.path().canonicalize().expect("a directory");
    assert!(
        String::from_utf8_lossy(&error).contains(&*from.join("old").to_string_lossy()),
        "{error:?}"
    );
}
