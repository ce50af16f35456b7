//! The directory of a measurement: certificates and configs. Gone when the measurement is.

use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use qmux_config::certs::{self, CertsRequest, DAYS_DEFAULT, generate};
use tempfile::TempDir;

use super::cleanup::{Guard, Undo};
use super::write;

/// The name in the server's certificate.
const SERVER_NAME: &str = "server.bench.example";

/// Lines for sections of dp.toml, to try settings out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(Vec<(&'static str, String)>);

impl Overrides {
    /// Adds a line for `[quic]`, `[udp]`, `[limits]`, `[client]`, or `client.servers` for the one
    /// of `[[client.servers]]`.
    pub fn add(&mut self, section: &'static str, line: impl Into<String>) {
        self.0.push((section, line.into()));
    }

    pub(crate) fn list(&self) -> Vec<String> {
        let line = |(section, line): &(&str, String)| format!("[{section}] {line}");
        self.0.iter().map(line).collect()
    }

    pub(super) fn of(&self, section: &str) -> impl Iterator<Item = &str> {
        let lines = self.0.iter().filter(move |(own, _)| *own == section);
        lines.map(|(_, line)| line.as_str())
    }

    fn lines(&self, section: &str) -> String {
        self.of(section).flat_map(|line| [line, "\n"]).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The address at which the client dials the server.
    pub(crate) quic: SocketAddr,
    pub(crate) traffic: SocketAddr,
    /// What the client dials for them.
    pub(crate) service: SocketAddr,
    /// The server's admin endpoint, which says what it counts; `None` if it has none.
    pub(crate) admin: Option<SocketAddr>,
}

#[derive(Debug)]
pub(crate) struct Site {
    directory: TempDir,
    _guard: Guard,
}

impl Site {
    /// With fresh certificates in it.
    pub(crate) fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("qmux-bench-").context("a temporary directory")?;
        let guard = Guard::new(Undo::Directory(directory.path().to_owned()));
        let certs = generate(&CertsRequest {
            server_names: vec![SERVER_NAME.to_owned()],
            days: DAYS_DEFAULT,
        })?;
        certs::write(&certs, directory.path(), false)?;
        Ok(Self {
            directory,
            _guard: guard,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        write(&path, content)?;
        Ok(path)
    }
}

/// The time of flows that a measurement leaves behind, on either side: less than the harness waits
/// for a program's end.
const DRAIN: &str = "drain_timeout = \"1s\"";

pub(super) fn configs(addresses: &Addresses, overrides: &Overrides) -> [String; 2] {
    let Addresses {
        quic,
        traffic,
        service,
        admin,
    } = addresses;
    let [quic_lines, udp, client, servers] =
        ["quic", "udp", "client", "client.servers"].map(|section| overrides.lines(section));
    // Programs that do not know this section are given none.
    let limits = match overrides.lines("limits") {
        limits if limits.is_empty() => limits,
        limits => format!("[limits]\n{limits}"),
    };
    let shared = format!("[quic]\n{quic_lines}[udp]\n{udp}{limits}");
    let admin = admin.map(|admin| format!("[admin]\nlisten = \"{admin}\"\n"));
    let admin = admin.unwrap_or_default();
    let (host, port) = (service.ip(), service.port());
    [
        format!(
            "[server]\n{DRAIN}\n\
             [[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
             protocol = \"both\"\n\
             [server.auth]\nmethod = \"mtls\"\nca_cert_file = \"ca.crt\"\n\
             [server.tls]\nserver_cert_file = \"server.crt\"\nserver_key_file = \"server.key\"\n\
             {admin}{shared}"
        ),
        format!(
            "[client]\n{DRAIN}\n{client}\
             [[client.servers]]\naddress = \"{quic}\"\nserver_name = \"{SERVER_NAME}\"\n{servers}\
             [client.local]\nhost = \"{host}\"\nport = {port}\n\
             [client.tls]\nca_cert_file = \"ca.crt\"\nclient_cert_file = \"client.crt\"\n\
             client_key_file = \"client.key\"\n\
             {shared}"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmux_config::Config;

    #[test]
    fn the_configs_are_valid_and_say_what_they_should() {
        let site = Site::new().expect("a site");
        let addresses = Addresses {
            quic: ([127, 0, 0, 1], 4_433).into(),
            traffic: ([127, 0, 0, 1], 8_080).into(),
            service: ([127, 0, 0, 1], 3_000).into(),
            admin: Some(([127, 0, 0, 1], 9_600).into()),
        };
        let mut overrides = Overrides::default();
        for (section, line) in [
            ("quic", "congestion_control = \"cubic\""),
            ("udp", "session_timeout = \"7s\""),
            ("limits", "stall_timeout = \"9s\""),
            ("client", "lanes = 3"),
            ("client.servers", "transport = \"tls\""),
        ] {
            overrides.add(section, line);
        }
        let load = |config: &str| {
            let file = site.write("dp.toml", config).expect("written");
            Config::load(&file).expect("valid")
        };
        let [server, client] = configs(&addresses, &overrides).map(|config| load(&config));
        let listener = &server.server.as_ref().expect("a server").listeners()[0];
        assert_eq!(listener.quic_addr, addresses.quic);
        assert_eq!(listener.traffic_addr, addresses.traffic);
        assert_eq!(server.udp.session_timeout.as_secs(), 7);
        assert_eq!(server.limits.stall_timeout.as_secs(), 9);
        let admin = addresses.admin.map(qmux_config::AdminListen::Tcp);
        assert_eq!(server.admin.map(|it| it.listen), admin);

        let role = client.client.expect("a client");
        assert_eq!(role.servers[0].transport, qmux_config::Transport::Tls);
        assert_eq!(role.services[0].check_port(), Some(3_000));
        let server_drain = server.server.map(|server| server.drain_timeout);
        assert_eq!(Some(role.drain_timeout), server_drain);
        assert_eq!(
            client.quic.congestion_control,
            qmux_config::CongestionControl::Cubic
        );
    }

    #[test]
    fn the_directory_goes_with_the_site() {
        let site = Site::new().expect("a site");
        let path = site.path().to_owned();
        assert!(path.join("client.key").is_file());
        drop(site);
        assert!(!path.exists());
    }
}
