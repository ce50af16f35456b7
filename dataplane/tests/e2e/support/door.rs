//! A server with one door for many services, and clients that offer some of them.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::certs::{Identity, SERVER_NAME};
use super::ports;
use super::program::{Launch, Program};
use super::subject;
use super::tunnel::Site;

/// Starts of a server before its ports are given up.
const STARTS_MAX: usize = 5;

/// The first of `count` addresses in a row whose ports are free for TCP and UDP.
pub(crate) fn free_range(count: u16) -> SocketAddr {
    let is_free = |address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
    for _ in 0..1_000 {
        let first = ports::free_address();
        let above = |more: u16| SocketAddr::new(first.ip(), first.port() + more);
        if (1..count).all(|more| is_free(above(more))) {
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}

/// A service as a server's config has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    pub(crate) name: &'static str,
    pub(crate) protocol: &'static str,
    /// How many ports it has.
    pub(crate) ports: u16,
}

/// A service with one port.
pub(crate) fn published(name: &'static str, protocol: &'static str) -> Published {
    Published {
        name,
        protocol,
        ports: 1,
    }
}

/// The settings in which servers differ.
#[derive(Debug, Default)]
pub(crate) struct DoorSetup {
    pub(crate) services: Vec<Published>,
    /// Further lines of `[server]`.
    pub(crate) server: &'static str,
    /// The tables of `[[server.clients]]`, and whatever else.
    pub(crate) config: String,
    /// The lines of `[server.auth]`; by certificate if there are none.
    pub(crate) auth: &'static str,
    /// How many addresses the door has; one if it is 0.
    pub(crate) addresses: usize,
    pub(crate) cores: usize,
}

/// A server that is ready.
pub(crate) struct Door {
    pub(crate) program: Program,
    /// The door's addresses.
    pub(crate) quic: Vec<SocketAddr>,
    /// The first address of each service.
    traffic: Vec<(&'static str, SocketAddr)>,
    pub(crate) admin: SocketAddr,
}

impl Door {
    /// Starts it and waits until it is ready; takes other ports if these are taken meanwhile.
    pub(crate) fn start(site: &Site, setup: &DoorSetup) -> Self {
        for _ in 0..STARTS_MAX {
            let (door, launch) = Self::prepare(site, setup);
            let program = launch.start();
            match program.wait_until_ready() {
                Ok(()) => return door(program),
                Err(log) if log.contains("in use") => {}
                Err(log) => panic!("the server ended instead of becoming ready:\n{log}"),
            }
        }
        panic!("the server found its ports in use {STARTS_MAX} times");
    }

    /// The command that starts a server on ports that are free, and the server once it has started.
    pub(crate) fn prepare(
        site: &Site,
        setup: &DoorSetup,
    ) -> (impl FnOnce(Program) -> Self, Launch) {
        let addresses = setup.addresses.max(1);
        let quic: Vec<_> = (0..addresses).map(|_| ports::free_address()).collect();
        let admin = ports::free_address();
        let place = |it: &Published| (it.name, free_range(it.ports));
        let traffic: Vec<_> = setup.services.iter().map(place).collect();
        let config = site.write("door.toml", &config(setup, &quic, &traffic, admin));
        let launch = Launch::new("server", subject::server())
            .args(["--config", &config])
            .args(["--cores", &setup.cores.max(1).to_string()])
            .args(["--log-level", "debug"]);
        let started = move |program| Self {
            program,
            quic,
            traffic,
            admin,
        };
        (started, launch)
    }

    /// The address at which visitors of a service connect, with its lowest port.
    pub(crate) fn traffic(&self, service: &str) -> SocketAddr {
        let found = self.traffic.iter().find(|(name, _)| *name == service);
        found.expect("a service of this server").1
    }
}

fn config(
    setup: &DoorSetup,
    quic: &[SocketAddr],
    traffic: &[(&str, SocketAddr)],
    admin: SocketAddr,
) -> String {
    let quic: Vec<String> = quic.iter().map(|it| format!("\"{it}\"")).collect();
    let mut text = format!(
        "[server]\n{}\nquic_addr = [{}]\n",
        setup.server,
        quic.join(", ")
    );
    for (service, (name, first)) in setup.services.iter().zip(traffic) {
        let last = first.port() + (service.ports - 1);
        let range = if service.ports > 1 {
            format!("{first}-{last}")
        } else {
            first.to_string()
        };
        text += &format!(
            "[[server.services]]\nname = \"{name}\"\ntraffic_addr = \"{range}\"\n\
             protocol = \"{}\"\n",
            service.protocol
        );
    }
    let auth = match setup.auth {
        "" => "method = \"mtls\"\nca_cert_file = \"ca.crt\"",
        auth => auth,
    };
    text + &setup.config
        + &format!(
            "[server.auth]\n{auth}\n[server.tls]\nserver_cert_file = \"server.crt\"\n\
             server_key_file = \"server.key\"\n[admin]\nlisten = \"{admin}\"\n"
        )
}

/// A table of `[[server.clients]]` for a certificate.
pub(crate) fn entry(name: &str, services: &[&str]) -> String {
    entry_by(name, &format!("certificate = \"{name}\""), services)
}

/// A table of `[[server.clients]]` with another key.
pub(crate) fn entry_by(name: &str, key: &str, services: &[&str]) -> String {
    format!("[[server.clients]]\nname = \"{name}\"\n{key}\nservices = {services:?}\n")
}

/// The settings in which clients differ.
pub(crate) struct Offering<'a> {
    /// The client's name in failures.
    pub(crate) name: &'static str,
    /// The common name of its certificate.
    pub(crate) certificate: &'a str,
    /// The client's token, in place of a certificate.
    pub(crate) token: Option<&'a str>,
    /// Name, protocol and first local address of each of its services, and the number of ports.
    pub(crate) services: Vec<(&'a str, &'a str, SocketAddr, u16)>,
    /// Further lines of `[client]`.
    pub(crate) client: &'a str,
}

impl Offering<'_> {
    /// The command that starts it.
    pub(crate) fn launch(&self, site: &Site, quic: SocketAddr) -> Launch {
        let mut text = format!(
            "[client]\n{}\n[[client.servers]]\naddress = \"{quic}\"\n\
             server_name = \"{SERVER_NAME}\"\n",
            self.client
        );
        for (name, protocol, local, ports) in &self.services {
            let (host, first) = (local.ip(), local.port());
            let port = match ports {
                1 => first.to_string(),
                count => format!("\"{first}-{}\"", first + (count - 1)),
            };
            let name = match *name {
                "" => String::new(),
                name => format!("name = \"{name}\"\n"),
            };
            let table = if name.is_empty() {
                "[client.local]"
            } else {
                "[[client.services]]"
            };
            let protocol = match name.is_empty() {
                true => String::new(),
                false => format!("protocol = \"{protocol}\"\n"),
            };
            text += &format!("{table}\n{name}host = \"{host}\"\nport = {port}\n{protocol}");
        }
        text += "[client.tls]\nca_cert_file = \"ca.crt\"\n";
        match self.token {
            Some(token) => text += &format!("[client.auth]\ntoken = \"{token}\"\n"),
            None => {
                Identity::client_named(self.certificate).write(site.path(), self.name);
                text += &format!(
                    "client_cert_file = \"{0}.crt\"\nclient_key_file = \"{0}.key\"\n",
                    self.name
                );
            }
        }
        let config = site.write(&format!("{}.toml", self.name), &text);
        Launch::new(self.name, subject::client())
            .args(["--config", &config])
            .args(["--cores", "1", "--log-level", "debug"])
    }

    /// Starts it and waits until it has a lane.
    pub(crate) fn start(&self, site: &Site, quic: SocketAddr) -> Program {
        let program = self.launch(site, quic).start();
        program.wait_for_line("a lane", |line| line.contains("lane registered"));
        program
    }
}
