//! `qmux-bench service`: the service behind a tunnel as a process of its own.

use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use crate::harness::cleanup::say;
use crate::harness::place::Place;
use crate::harness::requests::Server;
use crate::load::service::Service;
use qmux_harness::Launch;

/// How long the process may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// What stands before the address in the line that says that it listens.
const LISTENS: &str = "listening on ";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The address; its port is chosen
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    ip: IpAddr,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut place = Place::loopback();
    place.service_ip = args.ip;
    let service = Service::start(&place, &[])?;
    say!("{LISTENS}{}", service.address);
    loop {
        thread::park();
    }
}

/// Starts this very program as a service on the far side.
pub(crate) fn start(place: &Place) -> Result<Server> {
    let own = std::env::current_exe().context("this program's path")?;
    let launch =
        Launch::new("the service", own).words(&format!("service --ip {}", place.service_ip));
    let program = launch.at(place.far()).start()?;
    let listens = |line: &str| line.starts_with(LISTENS);
    let line = program.wait_for_line("its address", LISTEN_LIMIT, listens)?;
    let address = line.strip_prefix(LISTENS).and_then(|it| it.parse().ok());
    let address = address.with_context(|| format!("the service: no address in {line:?}"))?;
    Ok(Server::of(program, address))
}
