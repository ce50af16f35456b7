//! `qmux-bench service`: the service behind a tunnel as a process of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::place::Place;
use qmux_bench::load::service::Service;
use qmux_harness::{Launch, Program, Where};

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
pub(crate) fn start(place: &Place) -> Result<(Program, SocketAddr), BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("this program's path"))?;
    let program = Launch::new("the service", own)
        .args([
            "service".to_owned(),
            "--ip".to_owned(),
            place.service_ip.to_string(),
        ])
        .at(Where {
            cpus: Vec::new(),
            namespace: place.far_namespace.clone(),
        })
        .start()?;
    program.wait_for_line("its address", LISTEN_LIMIT, |line| {
        line.starts_with(LISTENS)
    })?;
    let lines = program.lines();
    let address = lines
        .iter()
        .find_map(|line| line.strip_prefix(LISTENS)?.parse().ok())
        .ok_or_else(|| BenchError::Output {
            what: "the service".into(),
            problem: format!("no address in {lines:?}"),
        })?;
    Ok((program, address))
}
