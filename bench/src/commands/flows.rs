//! `qmux-bench flows`: what open flows cost.

use anyhow::{Context as _, Result};
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::harness::meter::{Role, Usage};
use crate::harness::proc_stat;
use crate::load::idle::Flows;
use crate::report::{Metric, lower, neither};

use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Behind, Case, Outcome, Session};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Flows at a time
    #[arg(long, value_name = "LIST", default_value = "1000,10000")]
    flows: List<usize>,
    /// Small messages per second, over all flows, that active flows exchange
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

const METRICS: &[Metric] = &[
    lower("server_kib_per_flow", "server KiB/flow", 2).main(),
    lower("client_kib_per_flow", "client KiB/flow", 2).main(),
    lower("idle_cpu_percent", "CPU % idle", 2),
    lower("active_cpu_percent", "CPU % active", 1),
    neither("active_messages_per_second", "messages/s", 0),
];

/// After the flows are open, what they have stirred up settles.
const SETTLE: Duration = Duration::from_secs(1);

type Open = fn(SocketAddr, usize) -> io::Result<Flows>;

pub(crate) fn run(args: &Args) -> Result<bool> {
    let kinds: [(&str, Open); 2] = [("tcp", Flows::open_tcp), ("udp", Flows::open_udp)];
    let mut cases = Vec::new();
    for (kind, open) in kinds {
        for &flows in args.flows.iter() {
            let measure = move |session: &Session<'_>| measure(session, open, flows, args);
            cases.push(Case {
                behind: Behind::OwnProcess,
                ..Case::new(format!("{flows} {kind} flows"), measure)
            });
        }
    }
    runner::run(&args.common, "flows", METRICS, &cases)
}

/// Resident bytes of the process of each side.
fn resident(session: &Session<'_>) -> [Option<f64>; 2] {
    [Role::Server, Role::Client].map(|role| {
        let process = session.processes.iter().find(|it| it.role == role)?;
        Some(proc_stat::memory(process.pid)?.resident_bytes as f64)
    })
}

fn measure(session: &Session<'_>, open: Open, count: usize, args: &Args) -> Result<Outcome> {
    let what = |what: &'static str| move || format!("{what} {count} flows");
    // One flow of the kind first, so that what exists once is there before.
    drop(open(session.visit, 1).with_context(what("before"))?);
    thread::sleep(SETTLE / 4);
    let before = resident(session);
    let mut flows = open(session.visit, count).with_context(what("opening"))?;
    thread::sleep(SETTLE);
    let ((), idle) = session.metered(|| thread::sleep(args.common.measure()));
    let after = resident(session);
    let chatter = || flows.chatter(args.rate, args.common.measure());
    let (messages, active) = session.metered(chatter);
    let messages = messages.with_context(what("talking over"))?;

    let mut values = Vec::new();
    let names = ["server_kib_per_flow", "client_kib_per_flow"];
    for (name, (before, after)) in names.into_iter().zip(before.into_iter().zip(after)) {
        let grown = before.zip(after).map(|(before, after)| after - before);
        values.extend(grown.map(|bytes| (name, bytes / 1_024.0 / count as f64)));
    }
    if idle.has_tunnel() {
        let percent = |usage: &Usage| usage.tunnel_cpu_seconds() / usage.seconds * 100.0;
        values.push(("idle_cpu_percent", percent(&idle)));
        values.push(("active_cpu_percent", percent(&active)));
    }
    let rate = f64::from(messages) / active.seconds;
    values.push(("active_messages_per_second", rate));
    Ok(Outcome::of(values, active))
}
