//! `quinn-dp`: the baseline. The same tunnel as `qmux-dp` on quinn, tokio and rustls.
//!
//! It speaks the same wire protocol (crate `qmux-proto`), reads the same `dp.toml` (crate
//! `qmux-config`) and has the same command line, so that either end of a tunnel can be either
//! program and any difference in a measurement comes from what is different: quinn in place of
//! quiche, tokio's work-stealing scheduler in place of one runtime per core, one QUIC socket per
//! listener in place of one per core.
//!
//! It is written to be as fast as that stack allows. A flow's bytes are handed to quinn without a
//! copy, and taken from it in many pieces per system call; UDP is received and sent in batches with
//! GRO and GSO; nothing is logged per packet. What quinn itself allocates and locks per packet is
//! part of what is measured.
//!
//! # The two settings
//!
//! Without a switch quinn runs as it comes: only what the protocol and dp.toml's timeouts ask for
//! is set. With `--tuned` it gets what qmux-dp gets; module `transport` lists each setting with its
//! reason.
//!
//! # What it leaves out
//!
//! Token authentication, 0-RTT, the rotation of ticket keys, the admin endpoint and `sd_notify`:
//! none of them is on the path of a byte. A config that asks for token authentication is refused,
//! the others are passed over with a warning.

#![forbid(unsafe_code)]

mod cid;
mod cli;
mod client;
mod clock;
mod control;
mod datagram;
mod endpoint;
mod flows;
mod gso_socket;
mod lane;
mod logging;
mod process;
mod receiver;
mod relay;
mod server;
mod shutdown;
mod start_error;
mod tls;
mod transport;
mod udp_flow;

use std::process::ExitCode;

use clap::Parser;
use qmux_config::Config;
use tracing::{error, info, warn};

use crate::cli::Args;
use crate::shutdown::Shutdown;
use crate::start_error::StartError;

/// qmux-dp's allocator, so that it makes no difference between the two.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Failed while running.
const EXIT_FAILED: u8 = 1;
/// Bad command line, config, certificate or address; also what clap exits with.
const EXIT_BAD_CONFIG: u8 = 2;

/// The roles of this process, bound and ready to run.
struct Program {
    server: Option<server::Bound>,
    client: Option<client::Prepared>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    args.log.start();
    let program = match prepare(&args) {
        Ok(program) => program,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    if args.check {
        print!("{}", program.describe(&args));
        return ExitCode::SUCCESS;
    }
    match run(program, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "failed");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Reads the config and binds every address: all that can be wrong before anything runs.
fn prepare(args: &Args) -> Result<Program, StartError> {
    let config = Config::load(&args.config)?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    if config.admin.is_some() {
        warn!("[admin]: quinn-dp has no admin endpoint; the section has no effect");
    }
    let settings = transport::Settings::new(&config.quic, args.tuned);
    if settings.bbr() {
        warn!(
            "quinn's BBR is version 1 and experimental: its results vary widely; measure with \
             congestion_control = \"cubic\""
        );
    }
    let server = match &config.server {
        Some(server) => Some(server::Bound::bind(server, &config.udp, settings.clone())?),
        None => None,
    };
    let client = match &config.client {
        Some(client) => Some(client::Prepared::new(client, &config.udp, settings)?),
        None => None,
    };
    Ok(Program { server, client })
}

impl Program {
    fn describe(&self, args: &Args) -> String {
        let setting = if args.tuned {
            "tuned"
        } else {
            "quinn's defaults"
        };
        let mut text = format!("quinn-dp: {} cores, {setting}\n", args.cores());
        if let Some(server) = &self.server {
            text.push_str(&server.describe());
        }
        if let Some(client) = &self.client {
            text.push_str(&client.describe());
        }
        text
    }
}

fn run(program: Program, args: &Args) -> std::io::Result<()> {
    let (cores, cpus) = (args.cores(), process::cpus());
    if cores > cpus {
        warn!("--cores {cores} is more than the {cpus} CPUs of this process: threads share them");
    }
    let open_files_max = process::raise_open_files_limit();
    info!(cores, tuned = args.tuned, open_files_max, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.get())
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        // The roles run on the workers; this thread only waits.
        let server = program
            .server
            .map(|server| tokio::spawn(server.run(shutdown.clone())));
        let client = program
            .client
            .map(|client| tokio::spawn(client.run(shutdown)));
        for role in [server, client].into_iter().flatten() {
            role.await.map_err(std::io::Error::other)??;
        }
        Ok(())
    })
}
