//! A resolver whose answers change, and programs that ask it instead of the system's.
//!
//! A program's resolver is whatever `/etc/resolv.conf` names, always at port 53. So dnsmasq listens
//! there, on a loopback address of its own, and the program sees another file: that takes a mount
//! namespace, and root.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::program::{Launch, Program};
use super::random::Random;
use super::tunnel::Site;
use super::wait;

/// The port of DNS.
const PORT: u16 = 53;

/// dnsmasq that answers with the addresses that it was last told.
pub(crate) struct Resolver {
    program: Program,
    hosts: String,
    resolv_conf: String,
    nsswitch_conf: String,
}

impl Resolver {
    /// Starts it; `None`, with a message, where that is not allowed.
    pub(crate) fn start(site: &Site, test: &str) -> Option<Self> {
        if !may_unshare() {
            eprintln!("{test}: left out, because a mount namespace takes root");
            return None;
        }
        let Some(ip) = free_ip() else {
            eprintln!("{test}: left out, because port 53 of no loopback address can be had");
            return None;
        };
        let hosts = site.write("hosts", "");
        let config = site.write(
            "resolver.conf",
            &format!(
                "port={PORT}\nlisten-address={ip}\nbind-interfaces\nno-resolv\nno-hosts\nno-daemon\nuser=root\n\
                 pid-file=\ncache-size=0\nlocal=/tunnel.test/\naddn-hosts={hosts}\n"
            ),
        );
        let program = Launch::new("resolver", "dnsmasq")
            .arg(format!("--conf-file={config}"))
            .start();
        let server = SocketAddr::from((ip, PORT));
        wait::until_true("the resolver listens", || {
            std::net::TcpStream::connect(server).is_ok()
        });
        Some(Self {
            program,
            hosts,
            resolv_conf: site.write(
                "resolv.conf",
                &format!("nameserver {ip}\noptions timeout:1 attempts:1\n"),
            ),
            nsswitch_conf: site.write("nsswitch.conf", "hosts: dns\n"),
        })
    }

    /// From now on `name` has these addresses.
    pub(crate) fn answer(&self, name: &str, ips: &[Ipv4Addr]) {
        let lines: String = ips.iter().map(|ip| format!("{ip} {name}\n")).collect();
        std::fs::write(&self.hosts, lines).expect("written");
        // It reads the file again (dnsmasq(8)).
        self.program.signal(Signal::HUP);
    }

    /// From now on nobody answers.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// The program, asking this resolver.
    pub(crate) fn asked_by(&self, launch: Launch) -> Launch {
        launch.with_files(&[
            (&self.resolv_conf, "/etc/resolv.conf"),
            (&self.nsswitch_conf, "/etc/nsswitch.conf"),
        ])
    }
}

/// A resolver that takes every question and answers none.
pub(crate) struct SilentResolver {
    _socket: UdpSocket,
    resolv_conf: String,
    nsswitch_conf: String,
}

impl SilentResolver {
    /// Starts it; `None`, with a message, where that is not allowed.
    pub(crate) fn start(site: &Site, test: &str) -> Option<Self> {
        let socket = free_ip().and_then(|ip| UdpSocket::bind((ip, PORT)).ok());
        let (true, Some(socket)) = (may_unshare(), socket) else {
            eprintln!("{test}: left out, because a mount namespace and port 53 take root");
            return None;
        };
        let ip = socket.local_addr().expect("bound").ip();
        // The timeout is longer than any test waits.
        let text = format!("nameserver {ip}\noptions timeout:30 attempts:5\n");
        Some(Self {
            _socket: socket,
            resolv_conf: site.write("resolv.conf", &text),
            nsswitch_conf: site.write("nsswitch.conf", "hosts: dns\n"),
        })
    }

    /// The program, asking this resolver.
    pub(crate) fn asked_by(&self, launch: Launch) -> Launch {
        launch.with_files(&[
            (&self.resolv_conf, "/etc/resolv.conf"),
            (&self.nsswitch_conf, "/etc/nsswitch.conf"),
        ])
    }
}

fn may_unshare() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "true"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A loopback address whose port 53 is free.
fn free_ip() -> Option<Ipv4Addr> {
    let mut random = Random::new(u64::from(std::process::id()));
    for _ in 0..100 {
        let mut byte = || u8::try_from(random.between(1..=250)).unwrap_or(1);
        let ip = Ipv4Addr::new(127, byte(), byte(), byte());
        let bound = UdpSocket::bind((ip, PORT)).and_then(|_| TcpListener::bind((ip, PORT)));
        match bound {
            Ok(_) => return Some(ip),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(_) => return None,
        }
    }
    None
}
