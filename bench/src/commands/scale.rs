//! `qmux-bench scale`: what a byte costs with more cores, and what crosses them.
//!
//! A client's lanes to all cores of a server come up within some round trips after the first one,
//! and whoever visits a core before its lane is there is handed to another. So what crosses cores
//! is counted twice: over the whole life of the tunnel, and from the moment when every core has its
//! lane, which is what the tunnel does from then on.

use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::admin::Scrape;
use crate::load::bulk::Way;
use crate::load::connect::{self, Ask};
use crate::load::latency::Period;
use crate::report::{Metric, higher, lower, neither};

use crate::commands::discard;
use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Case, Outcome, Session};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Cores of each side (in place of --cores)
    #[arg(long, value_name = "LIST", default_value = "1,2,4,8")]
    core_counts: List<usize>,
    /// TCP connections at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
}

const METRICS: &[Metric] = &[
    higher("throughput_gbit_s", "Gbit/s", 2).main(),
    neither("steady_visitors", "visitors", 0),
    lower("steady_visitors_handed_over", "of them handed over", 0),
    lower("steady_packets_handed_over", "packets handed over", 0),
    lower("steady_mail", "mail", 0),
    lower(
        "visitors_handed_over",
        "visitors handed over, start included",
        0,
    ),
    lower("packets_handed_over", "packets, start included", 0),
    lower("mail_received", "mail, start included", 0),
];

/// How long the lanes to all cores may take.
const LANES_LIMIT: Duration = Duration::from_secs(10);

/// Visitors that come at a time beside the bulk, and for how long: sixteen connections alone would
/// say little about where visitors end up.
const VISITORS: usize = 16;
const VISITS_TIME: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut cases = Vec::new();
    for &cores in args.core_counts.iter() {
        let measure = move |session: &Session<'_>| measure(session, cores, args);
        cases.push(Case {
            cores: Some(cores),
            asks: true,
            ..Case::new(format!("{cores} core(s)"), measure)
        });
    }
    runner::run(&args.common, "scale", METRICS, &cases)
}

fn measure(session: &Session<'_>, cores: usize, args: &Args) -> Result<Outcome> {
    let admin = admin(session.tunnel.admin, session.spec.names_program())?;
    let before = admin.map(|admin| all_lanes(admin, cores)).transpose()?;
    let mut outcome = discard::measure_tcp(session, Way::Up, args.connections, &args.common)?;
    let Some((admin, before)) = admin.zip(before) else {
        return Ok(outcome);
    };
    // After the bulk, so that they cost it nothing.
    connect::visits(session.visit, Ask::Echo, VISITORS, Period::of(VISITS_TIME))
        .context("visitors")?;
    let after = Scrape::read(admin)?;
    let counters = [
        ("steady_visitors", "visitors_accepted"),
        ("steady_visitors_handed_over", "visitors_handed_over"),
        ("steady_packets_handed_over", "quic_packets_handed_over"),
        ("steady_mail", "mail_received"),
    ];
    let grown = counters.map(|(metric, name)| (metric, after.growth(&before, name)));
    outcome.values.extend(grown);
    Ok(outcome)
}

/// The admin endpoint, if there is one. An older program may have none, and says so by its silence;
/// then there are only the counters of its whole life. Of this build it is an error, not a reason
/// to leave the counters out.
fn admin(admin: Option<SocketAddr>, is_other_build: bool) -> Result<Option<SocketAddr>> {
    let Some(asked) = admin else {
        return Ok(None);
    };
    match Scrape::read(asked) {
        Ok(_) => Ok(Some(asked)),
        Err(error) if is_other_build => {
            eprint!("no counters: {error:#}  ");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Waits until the client has a lane to every core of the server, and as many of its own.
fn all_lanes(admin: SocketAddr, cores: usize) -> Result<Scrape> {
    let wanted = cores as f64;
    Scrape::until(admin, "a lane for every core", LANES_LIMIT, |scrape| {
        scrape.get("listener_lanes") >= wanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_build_may_have_no_counters() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let closed = closed.ok();
        assert!(admin(closed, false).is_err());
        assert_eq!(admin(closed, true).expect("older"), None);
        assert_eq!(admin(None, false).expect("no qmux-dp"), None);
    }
}
