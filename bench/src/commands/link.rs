//! `qmux-bench link`: bytes and round trips over emulated links, which every tunnel and the raw
//! connection cross alike.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use qmux_link::DirectionStats;

use crate::commands::discard;
use crate::commands::options::{Common, List, Mistake, repeated};
use crate::commands::path::{Link, Path};
use crate::commands::runner::{self, Case, Outcome, Session};
use crate::harness::place::Place;
use crate::load::bulk::Way;
use crate::load::ping_pong::{RoundTrip as _, Tcp};
use crate::load::wire::Command;
use crate::report::{Metric, higher, lower, neither};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// A link: NAME[,KEY=NUMBER…] with rate-mbit, delay-ms (one way), loss-percent, jitter-ms, mtu;
    /// may be repeated
    #[arg(long = "profile", value_name = "LINK", required = true)]
    profiles: Vec<Link>,
    /// Parallel TCP connections; each number is a case of its own
    #[arg(long, value_name = "LIST", default_value = "1")]
    connections: List<NonZeroUsize>,
}

const METRICS: &[Metric] = &[
    higher("throughput_gbit_s", "Gbit/s", 4).main(),
    higher("link_share_percent", "% of the link", 1).charted(),
    lower("p50_ms", "p50 ms", 1),
    lower("p99_ms", "p99 ms", 1),
    neither("link_lost_percent", "link lost %", 2),
    neither("link_late_p99_us", "link late p99 µs", 0),
];

pub(crate) fn run(args: &Args) -> Result<bool> {
    let common = &args.common;
    let mut report = runner::new_report(common, "link", METRICS)?;
    let names: Vec<&str> = args.profiles.iter().map(|it| it.name.as_str()).collect();
    if let Some(twice) = repeated(&names) {
        bail!(Mistake(format!(
            "--profile: {twice} is given twice; once is enough"
        )));
    }
    report.settings.path = format!("emulated links: {}", names.join("; "));
    for link in &args.profiles {
        let path = Path::Link(Box::new(link.clone()));
        let cases = cases(link, args);
        let measured = runner::measure(common, path.open()?, METRICS, &cases)?;
        report.cases.extend(measured);
    }
    runner::finish(common, report)
}

fn cases<'a>(link: &'a Link, args: &'a Args) -> Vec<Case<'a>> {
    let common = &args.common;
    let mut cases = Vec::new();
    for way in [Way::Up, Way::Down] {
        for connections in args.connections.iter() {
            cases.push(bulk(link, way, connections.get(), common));
        }
    }
    let name = format!("{}: ping-pong", link.name);
    cases.push(Case::new(name, |session| round_trips(session, common)));
    cases
}

/// Bulk over this many connections.
fn bulk<'a>(link: &'a Link, way: Way, connections: usize, common: &'a Common) -> Case<'a> {
    let to = match way {
        Way::Up => "to service",
        Way::Down => "to visitor",
    };
    let many = match connections {
        1 => String::new(),
        _ => format!(" ×{connections}"),
    };
    let name = format!("{}: {to}{many}", link.name);
    Case::new(name, move |session| {
        let before = crossed(&session.setup.place, way);
        let mut outcome = discard::measure_tcp(session, way, connections, common)?;
        let share = link_share(link, way, &outcome);
        outcome.values.extend(share);
        if let Some((before, after)) = before.zip(crossed(&session.setup.place, way)) {
            outcome.values.extend(link_values(&before, &after));
        }
        Ok(outcome)
    })
}

/// What bulk has used of the link's rate, if it has one. Visitors and the server are on the link's
/// public side: what they send goes down to the service.
fn link_share(link: &Link, way: Way, outcome: &Outcome) -> Option<(&'static str, f64)> {
    let profile = match way {
        Way::Up => &link.preset.left_to_right,
        Way::Down => &link.preset.right_to_left,
    };
    let rate = profile.rate_bits_per_s? as f64;
    let (_, gbit_per_second) = outcome.values.first()?;
    Some(("link_share_percent", gbit_per_second * 1e9 / rate * 100.0))
}

/// What the link did so far in the direction of this bulk.
fn crossed(place: &Place, way: Way) -> Option<DirectionStats> {
    let stats = place.link_stats()?;
    Some(match way {
        Way::Up => stats.left_to_right,
        Way::Down => stats.right_to_left,
    })
}

fn link_values(before: &DirectionStats, after: &DirectionStats) -> [(&'static str, f64); 2] {
    let dropped =
        |it: &DirectionStats| it.counters.lost_packets + it.counters.dropped_by_queue_packets;
    let lost = (dropped(after) - dropped(before)) as f64;
    let offered = after.counters.offered_packets - before.counters.offered_packets;
    let late = after.lateness.p99.as_secs_f64();
    [
        ("link_lost_percent", lost / offered.max(1) as f64 * 100.0),
        ("link_late_p99_us", late * 1e6),
    ]
}

fn round_trips(session: &Session<'_>, common: &Common) -> Result<Outcome> {
    // A round trip may take longer than a short measurement.
    thread::sleep(Duration::from_millis(100));
    let round_trips = || Tcp::open(session.visit, Command::PingPong)?.repeat(common.period());
    let (times, usage) = session.metered(round_trips);
    let times = times.context("round trips")?;
    ensure!(times.count() > 0, "no message came back");
    let values = [50.0, 99.0].map(|percent| times.percentile_ms(percent));
    let values = ["p50_ms", "p99_ms"].into_iter().zip(values);
    Ok(Outcome::of(values.collect(), usage))
}
