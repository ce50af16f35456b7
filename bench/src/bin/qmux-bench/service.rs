//! `qmux-bench service`: the service behind a tunnel as a process of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::place::Place;
use qmux_bench::harness::server::Server;
use qmux_bench::load::service::Service;
use qmux_harness::Launch;

/// How long the process may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// What stands before the address in the line that says that it listens.
const LISTENS: &str = "listening on ";

/// Where to listen.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The address; its port is chosen
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    ip: IpAddr,
}

/// Serves until it is killed.
pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let mut place = Place::loopback();
    place.service_ip = args.ip;
    let service = Service::start(&place, &[])?;
    println!("{LISTENS}{}", service.address);
    loop {
        thread::park();
    }
}

/// Starts this very program as a service on the far side.
pub(crate) fn start(place: &Place) -> Result<Server, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("this program's path"))?;
    let ip = place.service_ip.to_string();
    let launch = Launch::new("the service", own).args(["service", "--ip", &ip]);
    let program = launch.at(place.far()).start()?;
    let listens = |line: &str| line.starts_with(LISTENS);
    let line = program.wait_for_line("its address", LISTEN_LIMIT, listens)?;
    let address = line.strip_prefix(LISTENS).and_then(|it| it.parse().ok());
    match address {
        Some(address) => Ok(Server::of(program, address)),
        None => Err(BenchError::Output {
            what: "the service".into(),
            problem: format!("no address in {line:?}"),
        }),
    }
}
