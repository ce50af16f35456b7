//! The directory of a measurement: certificates and configs. Gone when the measurement is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use qmux_config::certs::{CertsRequest, DAYS_DEFAULT, generate, write};
use tempfile::TempDir;

use super::BenchError;
use super::cleanup::{Guard, Undo};

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

    /// Each line, with its section before it.
    pub fn list(&self) -> Vec<String> {
        let lines = self.0.iter();
        lines
            .map(|(section, line)| format!("[{section}] {line}"))
            .collect()
    }

    /// Those of a section.
    pub(super) fn of(&self, section: &str) -> impl Iterator<Item = &str> {
        let lines = self.0.iter().filter(move |(own, _)| *own == section);
        lines.map(|(_, line)| line.as_str())
    }

    fn lines(&self, section: &str) -> String {
        self.of(section).flat_map(|line| [line, "\n"]).collect()
    }
}

/// The addresses of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where the client dials the server.
    pub quic: SocketAddr,
    /// Where visitors go.
    pub traffic: SocketAddr,
    /// What the client dials for them.
    pub service: SocketAddr,
    /// Where the server says what it counts, if it is to.
    pub admin: Option<SocketAddr>,
}

/// The directory.
#[derive(Debug)]
pub struct Site {
    directory: TempDir,
    _guard: Guard,
}

impl Site {
    /// With fresh certificates in it.
    pub fn new() -> Result<Self, BenchError> {
        let directory =
            TempDir::with_prefix("qmux-bench-").map_err(BenchError::io("a temporary directory"))?;
        let guard = Guard::new(Undo::Directory(directory.path().to_owned()));
        let certs = generate(&CertsRequest {
            server_names: vec![SERVER_NAME.to_owned()],
            days: DAYS_DEFAULT,
        });
        let certs = certs.map_err(|error| BenchError::Failed(error.to_string()))?;
        write(&certs, directory.path(), false)
            .map_err(|error| BenchError::Failed(error.to_string()))?;
        Ok(Self {
            directory,
            _guard: guard,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf, BenchError> {
        let path = self.path().join(name);
        std::fs::write(&path, content)
            .map_err(BenchError::io(format!("writing {}", path.display())))?;
        Ok(path)
    }
}

/// The time of flows that a measurement leaves behind, on either side: less than the harness waits
/// for a program's end.
const DRAIN: &str = "drain_timeout = \"1s\"";

/// The server's dp.toml.
pub fn server_toml(addresses: &Addresses, overrides: &Overrides) -> String {
    let Addresses { quic, traffic, .. } = addresses;
    let admin = addresses
        .admin
        .map(|admin| format!("[admin]\nlisten = \"{admin}\"\n"))
        .unwrap_or_default();
    format!(
        "[server]\n{DRAIN}\n\
         [[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
         protocol = \"both\"\n\
         [server.auth]\nmethod = \"mtls\"\nca_cert_file = \"ca.crt\"\n\
         [server.tls]\nserver_cert_file = \"server.crt\"\nserver_key_file = \"server.key\"\n\
         {admin}{}",
        shared_toml(overrides)
    )
}

/// The client's dp.toml.
pub fn client_toml(addresses: &Addresses, overrides: &Overrides) -> String {
    let Addresses { quic, service, .. } = addresses;
    let (host, port) = (service.ip(), service.port());
    format!(
        "[client]\n{DRAIN}\n{}\
         [[client.servers]]\naddress = \"{quic}\"\nserver_name = \"{SERVER_NAME}\"\n{}\
         [client.local]\nhost = \"{host}\"\nport = {port}\n\
         [client.tls]\nca_cert_file = \"ca.crt\"\nclient_cert_file = \"client.crt\"\n\
         client_key_file = \"client.key\"\n\
         {}",
        overrides.lines("client"),
        overrides.lines("client.servers"),
        shared_toml(overrides)
    )
}

fn shared_toml(overrides: &Overrides) -> String {
    let (quic, udp) = (overrides.lines("quic"), overrides.lines("udp"));
    // Programs that do not know this section are given none.
    let limits = match overrides.lines("limits") {
        limits if limits.is_empty() => limits,
        limits => format!("[limits]\n{limits}"),
    };
    format!("[quic]\n{quic}[udp]\n{udp}{limits}")
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
        let server = site.write("server.toml", &server_toml(&addresses, &overrides));
        let server = Config::load(&server.expect("written")).expect("valid");
        let listener = &server.server.as_ref().expect("a server").listeners()[0];
        assert_eq!(listener.quic_addr, addresses.quic);
        assert_eq!(listener.traffic_addr, addresses.traffic);
        assert_eq!(server.udp.session_timeout.as_secs(), 7);
        assert_eq!(server.limits.stall_timeout.as_secs(), 9);
        let admin = addresses.admin.map(qmux_config::AdminListen::Tcp);
        assert_eq!(server.admin.map(|it| it.listen), admin);

        let client = site.write("client.toml", &client_toml(&addresses, &overrides));
        let client = Config::load(&client.expect("written")).expect("valid");
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
