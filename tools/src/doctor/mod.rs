//! `qmux-ctl doctor`: finds out from a client's machine why a tunnel does not work.
//!
//! It does what a client does, step by step: it resolves the server's name, completes a QUIC
//! handshake, registers, and says at once that it stops, before it could be given a visitor to
//! serve. Then it connects to the local service. It registers under a name of its own, so that a
//! client that runs meanwhile keeps its place.
//!
//! | file | what it owns |
//! | --- | --- |
//! | `report` | the lines and the sentence |
//! | `name` | addresses of the server |
//! | `connection` | the handshake and the registration |
//! | `over_tls` | whether TLS over TCP gets through |
//! | `path` | what a connection that failed says about the path to the server |
//! | `echo` | whether packets of a size are answered (ICMP) |
//! | `credentials` | certificates, and the CAs that are trusted |
//! | `clock` | the time by another clock, and whether this one is wrong |
//! | `judge` | what the end of a connection says about certificates, token and permission |
//! | `service` | the local service |

mod clock;
mod connection;
mod credentials;
mod echo;
mod judge;
mod name;
mod over_tls;
mod path;
mod report;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;

use qmux_config::{Client, Config, Proxy, ServerTarget, Transport};

use crate::failure::Failure;
use connection::{Attempt, Seen};
use credentials::Credentials;
use report::{Cause, Report, Step};

/// Addresses of one name that are tried: as many as a name with several hosts of two families has.
const ADDRESSES_MAX: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The client's config.
    #[arg(long, value_name = "dp.toml")]
    config: PathBuf,
    /// Whom to ask for the time (NTP), if a certificate is not valid now: HOST or HOST:PORT; "none"
    /// asks nobody.
    #[arg(long, value_name = "HOST", default_value = "pool.ntp.org")]
    time_server: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let config = Config::load_whatever_the_time(&args.config)
        .map_err(|errors| Failure::Input(errors.to_string()))?;
    let Some(client) = &config.client else {
        return Err(Failure::Input(format!(
            "{} has no [client] section; doctor looks for what is wrong from a client's machine",
            args.config.display()
        )));
    };
    let credentials = Credentials::read(client).map_err(Failure::Input)?;
    let mut report = Report::default();
    for server in &client.servers {
        if client.servers.len() > 1 {
            report.heading(&format!("server {}", server.address))?;
        }
        let doctor = Doctor {
            args,
            config: &config,
            client,
            credentials: &credentials,
            server,
        };
        if let Err(mut cause) = doctor.examine(&report)? {
            if client.servers.len() > 1 {
                cause.sentence = format!("server {}: {}", server.address, cause.sentence);
            }
            report.failed(cause)?;
        }
    }
    service::examine(client, &mut report)?;
    report.finish()
}

/// The facts about one server before anything is sent.
struct Doctor<'a> {
    args: &'a Args,
    config: &'a Config,
    client: &'a Client,
    credentials: &'a Credentials,
    server: &'a ServerTarget,
}

impl Doctor<'_> {
    /// Examines the steps up to the registration. What is wrong is the inner error.
    fn examine(&self, report: &Report) -> Result<Result<(), Cause>, Failure> {
        let addresses = match name::resolve(self.server) {
            Ok(addresses) => addresses,
            Err(mut cause) => {
                cause.sentence += &over_tls::beside_the_name(self.server);
                return Ok(Err(cause));
            }
        };
        report.ok(Step::Name, &name::shown(self.server, &addresses))?;
        if self.server.transport == Transport::Tls && self.server.proxy == Proxy::None {
            return self.examine_tls(report, &addresses);
        }
        let seen = self.connect(&addresses)?;
        let findings = path::judge(&seen, self.config.quic.handshake_idle_timeout);
        for (step, what) in &findings.fine {
            report.ok(*step, what)?;
        }
        if let Some(mut cause) = findings.cause {
            if matches!(cause.step, Step::Udp | Step::Mtu) {
                cause.sentence += &over_tls::beside_udp(self.server, self.credentials, seen.peer);
            }
            return Ok(Err(cause));
        }
        let judged = judge::judge(self, &seen);
        for (step, what) in &judged.fine {
            report.ok(*step, what)?;
        }
        Ok(judged.cause.map_or(Ok(()), Err))
    }

    /// Examines a server that is reached over TLS alone: whether TLS gets through. What the server
    /// thinks of the client is in the client's log.
    fn examine_tls(
        &self,
        report: &Report,
        addresses: &[SocketAddr],
    ) -> Result<Result<(), Cause>, Failure> {
        let mut last = "a name without an address".to_owned();
        for &peer in addresses.iter().take(ADDRESSES_MAX) {
            match over_tls::try_it(self.server, self.credentials, peer) {
                Ok(()) => {
                    report.ok(Step::Tls, &format!("{peer} answers over TLS"))?;
                    return Ok(Ok(()));
                }
                Err(why) => last = format!("TLS to {peer} over TCP does not get through: {why}"),
            }
        }
        Ok(Err(Cause::new(Step::Tls, last)))
    }

    /// Tries the addresses; returns the first attempt that was answered, or the last one.
    fn connect(&self, addresses: &[SocketAddr]) -> Result<Seen, Failure> {
        let mut last = None;
        for &peer in addresses.iter().take(ADDRESSES_MAX) {
            let attempt = Attempt {
                client: self.client,
                quic: &self.config.quic,
                server: self.server,
                credentials: self.credentials,
                peer,
            };
            let seen = attempt.run().map_err(Failure::Internal)?;
            if seen.was_answered {
                return Ok(seen);
            }
            last = Some(seen);
        }
        last.ok_or_else(|| Failure::Internal("a name without an address".into()))
    }
}
