//! `qmux-ctl doctor`: finds out from a client's machine why a tunnel does not work.
//!
//! It does what a client does, step by step: it resolves the server's name, completes a QUIC
//! handshake over UDP or inside TLS, through a proxy if there is one, registers, and says at once
//! that it stops, before it could be given a visitor to serve. Then it connects to the local
//! service. It registers under a name of its own, so that a client that runs meanwhile keeps its
//! place.
//!
//! | file | what it owns |
//! | --- | --- |
//! | `report` | the lines and the sentence |
//! | `name` | addresses of the server |
//! | `connection` | an attempt: what it needs, and what was seen |
//! | `dialed` | the handshake and the registration |
//! | `carrier` | the UDP socket, or what stands for it |
//! | `over_tls` | TLS over TCP, and the packets inside |
//! | `path` | what a connection that failed says about the path to the server |
//! | `echo` | whether packets of a size are answered (ICMP) |
//! | `credentials` | certificates, and the CAs that are trusted |
//! | `clock` | the time by another clock, and whether this one is wrong |
//! | `judge` | what the end of a connection says about certificates, token and permission |
//! | `service` | the local service |

mod carrier;
mod clock;
mod connection;
mod credentials;
mod dialed;
mod echo;
mod judge;
mod name;
mod over_tls;
mod path;
mod report;
mod service;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use qmux_config::proxy::{self, Place};
use qmux_config::{Client, Config, ProxyAddress, ServerTarget, Transport};

use crate::failure::Failure;
use connection::{Attempt, Seen};
use credentials::Credentials;
use report::{Cause, Report, Step};

/// Addresses of one name that are tried: as many as a name with several hosts of two families has.
const ADDRESSES_MAX: usize = 8;

/// Stands for the address of a server that only its proxy knows: nobody's (RFC 1122, section
/// 3.2.1.3).
const STAND_IN: IpAddr = IpAddr::V4(Ipv4Addr::new(0, 0, 0, 1));

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
        let server = self.server;
        let proxy = match proxy::of(&server.proxy, &server.host, server.port) {
            Ok(proxy) => proxy.filter(|_| server.transport != Transport::Quic),
            Err(why) => return Ok(Err(Cause::new(Step::Tls, why))),
        };
        let addresses = match (name::resolve(server), &proxy) {
            (Ok(addresses), _) => addresses,
            (Err(cause), None) => return Ok(Err(cause)),
            (Err(_), Some(proxy)) => {
                let host = &server.host;
                let asked = format!("this host cannot resolve {host}; {proxy} is asked for it");
                report.ok(Step::Name, &asked)?;
                let seen = self.connect_over_tls(&[], Some(proxy))?;
                return self.judge(report, &seen);
            }
        };
        report.ok(Step::Name, &name::shown(server, &addresses))?;
        if server.transport == Transport::Tls {
            let seen = self.connect_over_tls(&addresses, proxy.as_ref())?;
            return self.judge(report, &seen);
        }
        let seen = self.connect(&addresses)?;
        let mut judged = self.judge(report, &seen)?;
        if let Err(cause) = &mut judged
            && matches!(cause.step, Step::Udp | Step::Mtu)
        {
            cause.sentence += &self.beside_udp(&addresses, proxy.as_ref())?;
        }
        Ok(judged)
    }

    /// Reports which steps work for this attempt; what does not is the inner error.
    fn judge(&self, report: &Report, seen: &Seen) -> Result<Result<(), Cause>, Failure> {
        let path = path::judge(seen, self.config.quic.handshake_idle_timeout);
        let rest = match path.cause {
            Some(_) => None,
            None => Some(judge::judge(self, seen)),
        };
        let (fine, cause) = match rest {
            None => (path.fine, path.cause),
            Some(rest) => ([path.fine, rest.fine].concat(), rest.cause),
        };
        for (step, what) in &fine {
            report.ok(*step, &self.named(what, seen.peer))?;
        }
        let named = |cause: Cause| Cause {
            sentence: self.named(&cause.sentence, seen.peer),
            ..cause
        };
        Ok(cause.map_or(Ok(()), |cause| Err(named(cause))))
    }

    /// Calls a server whose address only its proxy knows by its name.
    fn named(&self, sentence: &str, peer: SocketAddr) -> String {
        let ends_a_number = |before: &str| before.ends_with(|it: char| it.is_ascii_digit());
        if peer.ip() != STAND_IN {
            return sentence.to_owned();
        }
        let stand_in = STAND_IN.to_string();
        let mut named = String::new();
        let mut rest = sentence;
        while let Some((before, behind)) = rest.split_once(&stand_in) {
            named += before;
            // Other addresses may end like that: 10.0.0.1.
            named += match ends_a_number(before) {
                true => &stand_in,
                false => &self.server.host,
            };
            rest = behind;
        }
        named + rest
    }

    /// The addition to a sentence that says that UDP does not get through: whether the client can
    /// serve over TLS.
    fn beside_udp(
        &self,
        addresses: &[SocketAddr],
        proxy: Option<&ProxyAddress>,
    ) -> Result<String, Failure> {
        if self.server.transport == Transport::Quic {
            let text = "; transport = \"quic\" keeps the client from going over TLS, which \
                        \"auto\" does not";
            return Ok(text.into());
        }
        let seen = self.connect_over_tls(addresses, proxy)?;
        let peer = seen.peer;
        let path = path::judge(&seen, self.config.quic.handshake_idle_timeout);
        if let Some(cause) = path.cause {
            return Ok(format!("; nor does TLS over TCP: {}", cause.sentence));
        }
        let passes = format!("; TLS to {peer} over TCP gets through,");
        Ok(match judge::judge(self, &seen).cause {
            None => format!(
                "{passes} so the client serves over it meanwhile, and goes over UDP as soon as it \
                 can"
            ),
            Some(cause) => format!(
                "{passes} but the client cannot serve over it, either: {}",
                cause.sentence
            ),
        })
    }

    /// Tries the addresses over TLS; returns the first attempt that was answered, or the last one.
    /// Without an address, or if there is only one, a proxy is given the server's name, as the
    /// client does it.
    fn connect_over_tls(
        &self,
        addresses: &[SocketAddr],
        proxy: Option<&ProxyAddress>,
    ) -> Result<Seen, Failure> {
        let server = self.server;
        let stand_in = [SocketAddr::new(STAND_IN, server.port)];
        let is_name = server.host.parse::<IpAddr>().is_err();
        let by_name = is_name && addresses.len() < 2;
        let peers = match addresses {
            [] => &stand_in,
            addresses => addresses,
        };
        self.first_answered(peers, |attempt| {
            let place = match by_name {
                true => Place::Name(server.host.clone(), server.port),
                false => Place::Address(attempt.peer),
            };
            let through = proxy.map(|proxy| (proxy, &place));
            let tls = over_tls::Carrier::open(server, self.credentials, attempt.peer, through);
            attempt.run_inside(tls)
        })
    }

    /// Tries the addresses over UDP; returns the first attempt that was answered, or the last one.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is one for a certain lifetime, and one for all is needed"
    )]
    fn connect(&self, addresses: &[SocketAddr]) -> Result<Seen, Failure> {
        self.first_answered(addresses, |attempt| attempt.run())
    }

    fn first_answered(
        &self,
        addresses: &[SocketAddr],
        run: impl Fn(&Attempt<'_>) -> Result<Seen, String>,
    ) -> Result<Seen, Failure> {
        let mut last = None;
        for &peer in addresses.iter().take(ADDRESSES_MAX) {
            let attempt = Attempt {
                client: self.client,
                quic: &self.config.quic,
                server: self.server,
                credentials: self.credentials,
                peer,
            };
            let seen = run(&attempt).map_err(Failure::Internal)?;
            if seen.was_answered {
                return Ok(seen);
            }
            last = Some(seen);
        }
        last.ok_or_else(|| Failure::Internal("a name without an address".into()))
    }
}
