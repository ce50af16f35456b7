//! A tunnel for one test: a directory with certificates and configs, a server, a client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tempfile::TempDir;

use super::certs::{self, SERVER_NAME};
use super::program::{Launch, Program};
use super::{limits, ports, subject};

/// Starts of a server on other ports before a clash of ports counts as a defect.
const STARTS_MAX: usize = 5;

/// Timings for tests in which a side must notice that the other one is gone.
pub(crate) const ROLE_NOTICES_SOON: [&str; 2] =
    ["heartbeat_interval = \"500ms\"", "health_timeout = \"4s\""];
/// Timings of the transport for tests in which a side must notice that the other one is gone.
pub(crate) const QUIC_NOTICES_SOON: [&str; 2] =
    ["keep_alive_period = \"500ms\"", "max_idle_timeout = \"4s\""];

/// The directory of a test: certificates, keys, configs. Gone when the test is.
pub(crate) struct Site {
    dir: TempDir,
}

impl Site {
    /// A directory with the valid certificates.
    pub(crate) fn new() -> Self {
        limits::raise_open_files();
        // On the disk that holds the build, because /tmp may be memory and one test makes a
        // gigabyte.
        let dir = TempDir::with_prefix_in("e2e-", env!("CARGO_TARGET_TMPDIR")).expect("directory");
        qmux_config::certs::write(certs::ours(), dir.path(), false).expect("certificates");
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file and returns its path as text.
    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

/// The settings in which a server differs from a plain one.
pub(crate) struct ServerSetup {
    /// The server's name in failures; servers of one site need different names.
    pub(crate) name: &'static str,
    pub(crate) cores: usize,
    /// One listener for each: tcp, udp or both.
    pub(crate) listeners: Vec<&'static str>,
    /// Listen on `[::1]` rather than on 127.0.0.1.
    pub(crate) ipv6: bool,
    /// Further lines of `[server]`, `[quic]`, `[udp]` and `[limits]`.
    pub(crate) server: Vec<&'static str>,
    pub(crate) quic: Vec<&'static str>,
    pub(crate) udp: Vec<&'static str>,
    pub(crate) limits: Vec<&'static str>,
    /// The lines of `[server.auth]` instead of those for mTLS, and further ones of `[server.tls]`.
    pub(crate) auth: Option<&'static str>,
    pub(crate) tls: Vec<&'static str>,
    /// Names of files in the site, without their endings.
    pub(crate) ca: &'static str,
    pub(crate) identity: &'static str,
    pub(crate) env: Option<(&'static str, &'static str)>,
    /// The address at which the program's admin endpoint listens.
    pub(crate) admin: Option<SocketAddr>,
    /// The program's log level instead of the default one. What becomes of single lanes is logged
    /// at debug.
    pub(crate) log_level: Option<&'static str>,
}

impl Default for ServerSetup {
    fn default() -> Self {
        Self {
            name: "server",
            cores: 1,
            listeners: vec!["both"],
            ipv6: false,
            server: Vec::new(),
            quic: Vec::new(),
            udp: Vec::new(),
            limits: Vec::new(),
            auth: None,
            tls: Vec::new(),
            ca: "ca",
            identity: "server",
            env: None,
            admin: None,
            log_level: Some("debug"),
        }
    }
}

/// The settings in which a client differs from a plain one.
pub(crate) struct ClientSetup {
    /// The client's name in failures; clients of one site need different names.
    pub(crate) name: &'static str,
    pub(crate) cores: usize,
    pub(crate) server_name: &'static str,
    /// Further lines of `[client]`, `[client.local]`, `[quic]`, `[udp]` and `[limits]`.
    pub(crate) client: Vec<&'static str>,
    /// Further lines of each of `[[client.servers]]`.
    pub(crate) server: Vec<&'static str>,
    pub(crate) local: Vec<&'static str>,
    pub(crate) quic: Vec<&'static str>,
    pub(crate) udp: Vec<&'static str>,
    pub(crate) limits: Vec<&'static str>,
    /// The lines of `[client.auth]`.
    pub(crate) auth: Vec<&'static str>,
    /// Names of files in the site, without their endings; no identity if it is empty.
    pub(crate) ca: &'static str,
    pub(crate) identity: &'static str,
    pub(crate) env: Option<(&'static str, &'static str)>,
    /// The address at which the program's admin endpoint listens.
    pub(crate) admin: Option<SocketAddr>,
    /// The program's log level instead of the default one. What becomes of single lanes is logged
    /// at debug.
    pub(crate) log_level: Option<&'static str>,
}

impl Default for ClientSetup {
    fn default() -> Self {
        Self {
            name: "client",
            cores: 1,
            server_name: SERVER_NAME,
            client: Vec::new(),
            server: Vec::new(),
            local: Vec::new(),
            quic: Vec::new(),
            udp: Vec::new(),
            limits: Vec::new(),
            auth: Vec::new(),
            ca: "ca",
            identity: "client",
            env: None,
            admin: None,
            log_level: Some("debug"),
        }
    }
}

/// A pair of addresses of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    pub(crate) quic: SocketAddr,
    pub(crate) traffic: SocketAddr,
}

impl Listener {
    /// A pair of addresses whose ports are free.
    pub(crate) fn free(ipv6: bool) -> Self {
        let mut listener = Self {
            quic: ports::free_address(),
            traffic: ports::free_address(),
        };
        if ipv6 {
            listener.quic.set_ip(IpAddr::V6(Ipv6Addr::LOCALHOST));
            listener.traffic.set_ip(IpAddr::V6(Ipv6Addr::LOCALHOST));
        }
        listener
    }
}

/// A server that is ready.
pub(crate) struct Server {
    pub(crate) program: Program,
    pub(crate) listeners: Vec<Listener>,
}

impl Server {
    /// Starts it and waits until it is ready; takes other ports if these are taken meanwhile.
    pub(crate) fn start(site: &Site, setup: &ServerSetup) -> Self {
        for _ in 0..STARTS_MAX {
            let listeners: Vec<Listener> = setup
                .listeners
                .iter()
                .map(|_| Listener::free(setup.ipv6))
                .collect();
            let program = Self::launch(site, setup, &listeners).start();
            match program.wait_until_ready() {
                Ok(()) => return Self { program, listeners },
                Err(log) if log.contains("in use") => {}
                Err(log) => panic!("the server ended instead of becoming ready:\n{log}"),
            }
        }
        panic!("the server found its ports in use {STARTS_MAX} times");
    }

    /// Starts one that must find its config bad; returns what it says.
    pub(crate) fn start_refused(site: &Site, setup: &ServerSetup) -> String {
        let listeners = vec![Listener::free(setup.ipv6)];
        let mut program = Self::launch(site, setup, &listeners).start();
        assert_eq!(program.wait_for_exit().code(), Some(2));
        program.stderr()
    }

    /// The command that starts a server on these addresses.
    pub(crate) fn launch(site: &Site, setup: &ServerSetup, listeners: &[Listener]) -> Launch {
        let file = format!("{}.toml", setup.name);
        let config = site.write(&file, &server_config(setup, listeners));
        launch(
            setup.name,
            subject::server(),
            &config,
            setup.cores,
            setup.env,
            setup.log_level,
        )
    }

    /// The only listener's traffic address.
    pub(crate) fn traffic(&self) -> SocketAddr {
        self.listeners[0].traffic
    }

    /// The only listener's QUIC address.
    pub(crate) fn quic(&self) -> SocketAddr {
        self.listeners[0].quic
    }
}

fn server_config(setup: &ServerSetup, listeners: &[Listener]) -> String {
    let mut config = section("server", &setup.server);
    for (listener, protocol) in listeners.iter().zip(&setup.listeners) {
        let Listener { quic, traffic } = listener;
        config += &format!(
            "[[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
             protocol = \"{protocol}\"\n"
        );
    }
    let (ca, identity) = (setup.ca, setup.identity);
    let mtls = format!("method = \"mtls\"\nca_cert_file = \"{ca}.crt\"");
    let (auth, tls) = (setup.auth.unwrap_or(&mtls), setup.tls.join("\n"));
    config += &format!(
        "[server.auth]\n{auth}\n\
         [server.tls]\nserver_cert_file = \"{identity}.crt\"\nserver_key_file = \"{identity}.key\"\n{tls}\n"
    );
    config
        + &section("quic", &setup.quic)
        + &section("udp", &setup.udp)
        + &section("limits", &setup.limits)
        + &admin_section(setup.admin)
}

/// The command that starts a client of the server at `quic` with the service at `service`.
pub(crate) fn client_launch(
    site: &Site,
    setup: &ClientSetup,
    quic: SocketAddr,
    service: SocketAddr,
) -> Launch {
    client_launch_to(site, setup, &[&quic.to_string()], service)
}

/// The command that starts a client of several servers, by name or address, each with its port.
pub(crate) fn client_launch_to(
    site: &Site,
    setup: &ClientSetup,
    servers: &[&str],
    service: SocketAddr,
) -> Launch {
    let file = format!("{}.toml", setup.name);
    let config = site.write(&file, &client_config(setup, servers, service));
    launch(
        setup.name,
        subject::client(),
        &config,
        setup.cores,
        setup.env,
        setup.log_level,
    )
}

/// Starts a client and waits until it is ready.
pub(crate) fn start_client(
    site: &Site,
    setup: &ClientSetup,
    quic: SocketAddr,
    service: SocketAddr,
) -> Program {
    let program = client_launch(site, setup, quic, service).start();
    if let Err(log) = program.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    program
}

/// The text of its config.
pub(crate) fn client_config(setup: &ClientSetup, servers: &[&str], service: SocketAddr) -> String {
    let (server_name, ca, identity) = (setup.server_name, setup.ca, setup.identity);
    let (host, port) = (service.ip(), service.port());
    let further: String = lines(&setup.server);
    let servers: String = servers
        .iter()
        .map(|address| {
            format!(
                "[[client.servers]]\naddress = \"{address}\"\nserver_name = \"{server_name}\"\n{further}"
            )
        })
        .collect();
    let local = lines(&setup.local);
    let certificate = match identity {
        "" => String::new(),
        name => {
            format!("client_cert_file = \"{name}.crt\"\nclient_key_file = \"{name}.key\"\n")
        }
    };
    section("client", &setup.client)
        + &servers
        + &format!("[client.local]\nhost = \"{host}\"\nport = {port}\n{local}")
        + &section("client.auth", &setup.auth)
        + &format!("[client.tls]\nca_cert_file = \"{ca}.crt\"\n{certificate}")
        + &section("quic", &setup.quic)
        + &section("udp", &setup.udp)
        + &section("limits", &setup.limits)
        + &admin_section(setup.admin)
}

fn admin_section(listen: Option<SocketAddr>) -> String {
    listen.map_or_else(String::new, |listen| {
        section("admin", &[&format!("listen = \"{listen}\"")])
    })
}

fn section(name: &str, of_section: &[&str]) -> String {
    format!("[{name}]\n{}", lines(of_section))
}

fn lines(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// A program with a config, as it is about to start.
pub(crate) fn launch(
    name: &str,
    program: std::path::PathBuf,
    config: &str,
    cores: usize,
    env: Option<(&str, &str)>,
    log_level: Option<&str>,
) -> Launch {
    let mut launch = Launch::new(name, program)
        .args(["--config", config])
        .args(["--cores", &cores.to_string()]);
    if let Some(level) = log_level {
        launch = launch.args(["--log-level", level]);
    }
    match env {
        Some((name, value)) => launch.env(name, value),
        None => launch,
    }
}

/// A server and a client, both ready. (Fields are dropped in this order.)
pub(crate) struct Tunnel {
    pub(crate) client: Program,
    pub(crate) server: Server,
    pub(crate) site: Site,
}

impl Tunnel {
    /// A tunnel with one core on each side, and everything at its default.
    pub(crate) fn to(service: SocketAddr) -> Self {
        Self::with(&ServerSetup::default(), &ClientSetup::default(), service)
    }

    pub(crate) fn with(server: &ServerSetup, client: &ClientSetup, service: SocketAddr) -> Self {
        let site = Site::new();
        let server = Server::start(&site, server);
        let client = start_client(&site, client, server.quic(), service);
        Self {
            client,
            server,
            site,
        }
    }

    /// The address that visitors connect to.
    pub(crate) fn traffic(&self) -> SocketAddr {
        self.server.traffic()
    }
}
