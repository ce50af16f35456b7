//! `qmux-bench faults`: whether every byte and visitor gets through links that fail in all the ways
//! that networks do.
//!
//! Over each link three loads run at the same time: a long echo whose every byte is compared, UDP
//! questions of mixed sizes, and short visitors. Afterwards no flow may be left. The links are
//! those of the QUIC interop runner, and some of our own. Nothing is measured against a limit of
//! time but the patience of a person.

mod scenario;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use qmux_link::Faults;

use crate::commands::background::One;
use crate::commands::options::Mistake;
use crate::harness::admin::Scrape;
use crate::harness::cleanup::say;
use crate::harness::place::Place;
use crate::harness::tunnel::{Farewell, Tunnel};
use crate::load::exact::{self, Answers, Visits};

use scenario::{SCENARIOS, Scenario};

/// How long a load waits for anything at all before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long all of a load may take.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(300);

/// Visitors at a time.
const VISITORS_AT_A_TIME: usize = 10;

/// A UDP flow that nobody uses any more, so that what is left over is found soon.
const SESSION_TIMEOUT: &str = "session_timeout = \"3s\"";

/// How long the last flows may take to go, the UDP flows' timeout included.
const LEFT_OVER_LIMIT: Duration = Duration::from_secs(30);

/// How often a disturbance checks whether its moment has come.
const POLL: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    one: One,
    /// Only links whose name contains one of these
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    links: Vec<String>,
    /// Megabytes of TCP each way
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    megabytes: f64,
    /// UDP questions of mixed sizes
    #[arg(long, value_name = "N", default_value_t = 500)]
    datagrams: usize,
    /// Short visitors
    #[arg(long, value_name = "N", default_value_t = 100)]
    visitors: usize,
    /// Cores of each side
    #[arg(long, value_name = "N", default_value_t = 1)]
    cores: usize,
}

#[derive(Debug, Default)]
struct Findings {
    echo: Option<Duration>,
    answers: Answers,
    visits: Visits,
    swallowed_percent: f64,
    corrupted: u64,
    wrong: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let wanted = |scenario: &&Scenario| {
        args.links.is_empty() || args.links.iter().any(|part| scenario.name.contains(part))
    };
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(wanted).collect();
    if scenarios.is_empty() {
        let known: Vec<&str> = SCENARIOS.iter().map(|it| it.name).collect();
        let known = known.join(", ");
        bail!(Mistake(format!(
            "--links: no link has such a name; there are {known}"
        )));
    }
    let Args {
        megabytes,
        datagrams,
        visitors,
        ..
    } = args;
    say!(
        "| link | TCP, {megabytes} MB each way | UDP: answered (at once) of {datagrams} | visitors of \
         {visitors}, slowest | lost on the link | verdict |\n| --- | --- | --- | --- | --- | --- |"
    );
    let mut all_right = true;
    for scenario in scenarios {
        eprintln!("{}: {}", scenario.name, scenario.summary);
        let findings = try_link(scenario, args)?;
        all_right &= findings.wrong.is_empty();
        print_row(scenario, &findings);
    }
    Ok(all_right)
}

fn print_row(scenario: &Scenario, findings: &Findings) {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let verdict = match findings.wrong.as_slice() {
        [] => "all right, nothing left over".to_owned(),
        wrong => format!("**wrong**: {}", wrong.join("; ")),
    };
    let corrupted = match findings.corrupted {
        0 => String::new(),
        packets => format!(", {packets} packets with a wrong bit"),
    };
    let echo = findings.echo.map_or("not complete".to_owned(), seconds);
    let Answers { answered, at_once } = findings.answers;
    let (served, slowest) = (findings.visits.served, seconds(findings.visits.slowest));
    let (summary, swallowed) = (scenario.summary, findings.swallowed_percent);
    say!(
        "| {summary} | {echo} | {answered} ({at_once}) | {served}, {slowest} | {swallowed:.1} \
         %{corrupted} | {verdict} |"
    );
}

fn try_link(scenario: &Scenario, args: &Args) -> Result<Findings> {
    let link = scenario.link();
    let round_trip = link.round_trip();
    let mut setup = args.one.setup(Place::link(&link)?)?;
    setup.overrides.add("udp", SESSION_TIMEOUT);
    let faults = setup.place.faults().context("a place without a link")?;
    faults.set_loss(scenario.handshake_loss);
    faults.set_corruption(scenario.corruption);
    let (_service, tunnel) = args.one.start(&setup, args.cores, PATIENCE)?;
    faults.set_loss(0.0);
    let mut findings = put_through(&tunnel, scenario, args, &faults, round_trip);
    if let Some(admin) = tunnel.admin {
        let no_flow = |scrape: &Scrape| scrape.get("listener_flows") == 0.0;
        if let Err(error) = Scrape::until(admin, "no flow left", LEFT_OVER_LIMIT, no_flow) {
            let wrong = format!("flows are left over: {error:#}");
            findings.wrong.push(wrong);
        }
    }
    if let Some(stats) = setup.place.link_stats() {
        let sides = [stats.left_to_right.counters, stats.right_to_left.counters];
        let swallowed = faults.swallowed_packets();
        let offered: u64 = sides.iter().map(|it| it.offered_packets).sum();
        let lost = sides
            .iter()
            .map(|it| it.lost_packets + it.dropped_by_queue_packets + it.dropped_by_mtu_packets);
        let lost = (lost.sum::<u64>() + swallowed) as f64;
        findings.swallowed_percent = lost / (offered + swallowed).max(1) as f64 * 100.0;
    }
    findings.corrupted = faults.corrupted_packets();
    findings.wrong.extend(unbalanced(&tunnel.stop()));
    Ok(findings)
}

/// The three loads, and what goes wrong meanwhile.
fn put_through(
    tunnel: &Tunnel,
    scenario: &Scenario,
    args: &Args,
    faults: &Arc<Faults>,
    round_trip: Duration,
) -> Findings {
    let bytes = (args.megabytes * 1e6) as u64;
    let visit = tunnel.visit;
    let seen = AtomicU64::new(0);
    let (done, is_done) = mpsc::channel::<()>();
    let pause = Duration::from_millis(500) + 3 * round_trip;
    let (echo, answers, visits) = thread::scope(|scope| {
        // Rebinding as often per byte, but a black hole as long as ever.
        let scale = (args.megabytes / 20.0).clamp(0.02, 1.0);
        let rebinding = scenario.rebinding.mul_f64(scale);
        let black_hole = scenario.black_hole;
        let under_way = || seen.load(Ordering::Relaxed) >= bytes / 4;
        let disturbing = scope.spawn(move || {
            let goes_on = |pause| is_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout);
            disturb(faults, black_hole, rebinding, under_way, goes_on);
        });
        let echo = scope.spawn(|| {
            let began = Instant::now();
            exact::echo(visit, bytes, 1, PATIENCE, &seen).map(|()| began.elapsed())
        });
        let answers =
            scope.spawn(|| exact::questions(visit, args.datagrams, pause, PATIENCE_IN_ALL));
        let visits = exact::visits(visit, args.visitors, VISITORS_AT_A_TIME, PATIENCE);
        let results = (echo.join(), answers.join(), visits);
        drop(done);
        let _panicked = disturbing.join();
        results
    });
    let mut wrong = Vec::new();
    let echo = told("TCP", echo, &mut wrong);
    let answers = told("UDP", answers, &mut wrong).unwrap_or_default();
    if let Some(first) = visits.wrong.first() {
        let count = visits.wrong.len();
        wrong.push(format!("{count} visitors, the first: {first}"));
    }
    Findings {
        echo,
        answers,
        visits,
        wrong,
        ..Findings::default()
    }
}

/// What a load's thread has found; else why it has not.
fn told<T>(what: &str, found: thread::Result<Result<T>>, wrong: &mut Vec<String>) -> Option<T> {
    let found = found.unwrap_or_else(|_| bail!("its thread panicked"));
    found
        .map_err(|error| wrong.push(format!("{what}: {error:#}")))
        .ok()
}

/// Lets go wrong what is to go wrong, as long as it `goes_on` behind a pause.
fn disturb(
    faults: &Faults,
    black_hole: Duration,
    rebinding: Duration,
    under_way: impl Fn() -> bool,
    goes_on: impl Fn(Duration) -> bool,
) {
    if !black_hole.is_zero() {
        while !under_way() {
            if !goes_on(POLL) {
                return;
            }
        }
        faults.set_black_hole(true);
        let _done = goes_on(black_hole);
        faults.set_black_hole(false);
    }
    while !rebinding.is_zero() && goes_on(rebinding) {
        faults.rebind();
    }
}

/// The counters of the programs that do not agree with each other, and what did not end by itself.
fn unbalanced(farewell: &Farewell) -> Vec<String> {
    let mut wrong = Vec::new();
    for (side, counters) in farewell.sides() {
        let count = |name: &str| counters.get(name).copied().unwrap_or_default();
        let tcp_ended = count("tcp_flows_completed") + count("tcp_flows_reset");
        let tcp = (count("tcp_flows_opened"), tcp_ended);
        let udp = (count("udp_flows_opened"), count("udp_flows_ended"));
        for (opened, ended) in [tcp, udp].into_iter().filter(|it| it.0 != it.1) {
            wrong.push(format!("{side}: {opened} flows opened, {ended} ended"));
        }
        if count("panics") > 0 {
            wrong.push(format!("{side}: a panic"));
        }
    }
    let killed = |line: &&String| line.contains("was killed") || line.contains("panicked");
    wrong.extend(farewell.complaints.iter().filter(killed).cloned());
    wrong
}
