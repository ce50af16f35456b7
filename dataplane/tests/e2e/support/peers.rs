//! Programs of other people, in the foreground, from a config of the test.

use std::fs;
use std::net::SocketAddr;

use super::ports;
use super::program::{Launch, Program};
use super::tunnel::Site;
use super::wait;

/// A server of somebody else that takes TCP connections.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Runs as long as this does.
    _program: Program,
}

/// Starts of a peer on other ports before a clash of ports counts as a defect.
const STARTS_MAX: usize = 5;

impl Peer {
    /// Starts what `launch` describes for a free address and waits until it is ready.
    fn start(
        launch: impl Fn(SocketAddr) -> Launch,
        ready: impl Fn(&Program, SocketAddr) -> bool,
    ) -> Self {
        for _ in 0..STARTS_MAX {
            let address = ports::free_address();
            let mut program = launch(address).start();
            let serves = wait::until("a peer serves", || {
                if program.exited().is_some() {
                    return Some(false);
                }
                ready(&program, address).then_some(true)
            });
            if serves {
                return Self {
                    address,
                    _program: program,
                };
            }
            program.wait_for_exit();
            let log = program.lines().join("\n");
            let clash = log.to_lowercase().contains("in use");
            assert!(clash, "a peer ended instead of serving:\n{log}");
        }
        panic!("a peer found its port in use {STARTS_MAX} times");
    }
}

/// nginx that serves the files of `root` (and keeps connections alive).
pub(crate) fn nginx(site: &Site, root: &str) -> Peer {
    nginx_with(site, root, "", "access_log off;")
}

/// nginx that is told by PROXY headers who its visitors are, and writes that to `visitors.log`.
pub(crate) fn nginx_behind_proxy(site: &Site, root: &str) -> Peer {
    let log = format!(
        "log_format told '$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
         $proxy_protocol_server_port $uri';\n  access_log {}/visitors.log told;",
        site.path().display()
    );
    nginx_with(site, root, " proxy_protocol", &log)
}

fn nginx_with(site: &Site, root: &str, listen: &str, log: &str) -> Peer {
    let dir = site.path().display().to_string();
    Peer::start(
        |address| {
            let config = format!(
                "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  {log}\n  sendfile on;\n  keepalive_requests 10000;\n\
             \x20 client_body_temp_path {dir}/t1;\n  proxy_temp_path {dir}/t2;\n  fastcgi_temp_path {dir}/t3;\n\
             \x20 uwsgi_temp_path {dir}/t4;\n  scgi_temp_path {dir}/t5;\n\
             \x20 server {{ listen {address}{listen}; root {root}; }}\n}}\n"
            );
            let config = site.write("nginx.conf", &config);
            // The error log before the config is read, too.
            Launch::new("nginx", "nginx").args(["-e", "stderr", "-p", &dir, "-c", &config])
        },
        listens,
    )
}

/// HAProxy in TCP mode in front of `backend`, without the PROXY protocol.
pub(crate) fn haproxy(site: &Site, backend: SocketAddr) -> Peer {
    haproxy_with(site, backend, "")
}

/// HAProxy in TCP mode with further words for the server, such as "send-proxy".
pub(crate) fn haproxy_with(site: &Site, backend: SocketAddr, words: &str) -> Peer {
    Peer::start(
        |address| {
            let config = format!(
                "global\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 30s\n  timeout client 60s\n\
             \x20 timeout server 60s\nlisten tunnel\n  bind {address}\n  server tunnel {backend} {words}\n"
            );
            let config = site.write("haproxy.cfg", &config);
            Launch::new("haproxy", "haproxy").args(["-db", "-f", &config])
        },
        listens,
    )
}

/// HAProxy in TCP mode in front of several servers, each with its admin endpoint, which tells
/// whether to send visitors there. The lines that matter are those of `scripts/deploy/haproxy.cfg`;
/// checks are more frequent.
pub(crate) fn haproxy_checking(site: &Site, backends: &[(SocketAddr, SocketAddr)]) -> Peer {
    let mut servers = String::new();
    for (index, (traffic, admin)) in backends.iter().enumerate() {
        let (ip, port) = (admin.ip(), admin.port());
        servers += &format!(
            "  server s{index} {traffic} check addr {ip} port {port} inter 200ms fall 1 rise 1\n"
        );
    }
    Peer::start(
        |address| {
            let config = format!(
                "global\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n\
                 \x20 timeout server 60s\n  timeout check 5s\n  retries 3\n  option redispatch 1\n\
                 listen tunnel\n  bind {address}\n  balance roundrobin\n  option httpchk GET /readyz\n\
                 \x20 http-check expect status 200\n{servers}"
            );
            let config = site.write("haproxy.cfg", &config);
            Launch::new("haproxy", "haproxy").args(["-db", "-f", &config])
        },
        listens,
    )
}

/// dnsmasq that answers for `tunnel.test` alone, over UDP and TCP.
pub(crate) fn dnsmasq(site: &Site, records: &[&str]) -> Peer {
    Peer::start(
        |address| {
            let config = format!(
                "port={}\nlisten-address={}\nbind-interfaces\nno-resolv\nno-hosts\nno-daemon\nuser=root\npid-file=\n{}\n",
                address.port(),
                address.ip(),
                records.join("\n")
            );
            let config = site.write("dnsmasq.conf", &config);
            Launch::new("dnsmasq", "dnsmasq").arg(format!("--conf-file={config}"))
        },
        listens,
    )
}

/// An iperf3 server.
pub(crate) fn iperf3_server() -> Peer {
    Peer::start(
        |address| {
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            Launch::new("iperf3 server", "iperf3").args([
                "--server",
                "--bind",
                &ip,
                "--port",
                &port,
                "--forceflush",
            ])
        },
        |program, _| program.stdout().contains("Server listening"),
    )
}

/// Whether somebody listens there. A connection would find that out too, but HAProxy would pass it
/// on.
fn listens(_program: &Program, address: SocketAddr) -> bool {
    const LISTEN: &str = "0A";
    let port = format!(":{:04X}", address.port());
    let sockets = fs::read_to_string("/proc/net/tcp").expect("Linux");
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| local.ends_with(&port));
        local && fields.nth(1) == Some(LISTEN)
    })
}
