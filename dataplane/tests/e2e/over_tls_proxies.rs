//! Lanes over TLS through proxies as they are found in offices: tinyproxy (CONNECT) and microsocks
//! (SOCKS5).

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use rustix::process::Signal;
use serde_json::json;

use crate::support::program::{Launch, Program};
use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::tunnel::{
    ClientSetup, Server, ServerSetup, Site, client_launch, client_launch_to,
};
use crate::support::visits::{Visits, summary};
use crate::support::{http, ports, subject, visitor, wait};

const WHY: &str = "only qmux-dp goes through proxies";

/// A proxy that is ready.
struct Proxy {
    address: SocketAddr,
    _program: Program,
}

impl Proxy {
    fn started(launch: Launch, address: SocketAddr) -> Self {
        let program = launch.start();
        wait::until_true("the proxy listens", || TcpStream::connect(address).is_ok());
        Self {
            address,
            _program: program,
        }
    }

    fn http(site: &Site, server: SocketAddr, credentials: Option<(&str, &str)>) -> Self {
        let address = ports::free_address();
        let (ip, port, to) = (address.ip(), address.port(), server.port());
        let mut config = format!("Listen {ip}\nPort {port}\nTimeout 600\nConnectPort {to}\n");
        config += "MaxClients 100\nLogLevel Critical\n";
        if let Some((user, password)) = credentials {
            config += &format!("BasicAuth {user} {password}\n");
        }
        let config = site.write("tinyproxy.conf", &config);
        let launch = Launch::new("tinyproxy", "tinyproxy").args(["-d", "-c", &config]);
        Self::started(launch, address)
    }

    fn socks5(credentials: Option<(&str, &str)>) -> Self {
        let address = ports::free_address();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut launch = Launch::new("microsocks", "microsocks").args(["-i", &ip, "-p", &port]);
        if let Some((user, password)) = credentials {
            launch = launch.args(["-u", user, "-P", password]);
        }
        Self::started(launch, address)
    }
}

/// Lines of a config live as long as the tests.
fn line(text: String) -> &'static str {
    text.leak()
}

fn through(proxy: &str, more: &[&'static str]) -> ClientSetup {
    let mut server = vec!["transport = \"tls\"", line(format!("proxy = {proxy:?}"))];
    server.extend(more);
    ClientSetup {
        server,
        ..ClientSetup::default()
    }
}

fn assert_serves(site: &Site, setup: &ClientSetup, server: &Server) {
    let service = TcpService::echo();
    let mut client = client_launch(site, setup, server.quic(), service.address).start();
    if let Err(log) = client.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    visitor::echo(server.traffic(), &Random::new(1).bytes(1_000_003));
    // One that is killed would be sent the next one's visitor.
    client.signal(Signal::TERM);
    client.wait_for_exit();
}

fn assert_says(site: &Site, setup: &ClientSetup, server: SocketAddr, words: &[&str]) {
    let client = client_launch(site, setup, server, ports::free_address()).start();
    client.wait_for_line("why there is no way", |line| {
        line.contains("cannot connect") && words.iter().all(|word| line.contains(word))
    });
}

#[test]
fn a_client_comes_through_a_proxy_of_either_kind_with_and_without_a_password() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let known = Some(("me", "correct"));
    site.write("password", "correct\n");
    for (scheme, open, closed) in [
        (
            "http",
            Proxy::http(&site, server.quic(), None),
            Proxy::http(&site, server.quic(), known),
        ),
        ("socks5", Proxy::socks5(None), Proxy::socks5(known)),
    ] {
        assert_serves(
            &site,
            &through(&format!("{scheme}://{}", open.address), &[]),
            &server,
        );
        let with_user = format!("{scheme}://me@{}", closed.address);
        let of_file = ["password_file = \"password\""];
        assert_serves(&site, &through(&with_user, &of_file), &server);
        let with_both = format!("{scheme}://me:correct@{}", closed.address);
        assert_serves(&site, &through(&with_both, &[]), &server);
    }
}

#[test]
fn what_a_proxy_says_against_it_is_named_with_the_proxy() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let known = Some(("me", "correct"));
    let http = Proxy::http(&site, server.quic(), known);
    let named = http.address.to_string();
    for wrong in ["http://me:wrong@", "http://"] {
        let setup = through(&format!("{wrong}{named}"), &[]);
        assert_says(
            &site,
            &setup,
            server.quic(),
            &[&named, "it answers 40", "password_file"],
        );
    }
    let elsewhere = through(&format!("http://me:correct@{named}"), &[]);
    assert_says(&site, &elsewhere, ports::free_address(), &[&named, "403"]);
    let socks = Proxy::socks5(known);
    let named = socks.address.to_string();
    let setup = through(&format!("socks5://me:wrong@{named}"), &[]);
    assert_says(&site, &setup, server.quic(), &[&named, "password"]);
    let nobody = ports::free_address().to_string();
    let setup = through(&format!("socks5://{nobody}"), &[]);
    assert_says(&site, &setup, server.quic(), &[&nobody, "refused"]);
}

#[test]
fn the_proxy_of_the_environment_is_taken_and_its_exceptions_hold() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let proxy = Proxy::http(&site, server.quic(), None);
    let named = line(format!("http://{}", proxy.address));
    let of_environment = |name: &'static str, value: &'static str| ClientSetup {
        env: Some((name, value)),
        ..through("env", &[])
    };
    assert_serves(&site, &of_environment("HTTPS_PROXY", named), &server);
    let nobody = line(format!("http://{}", ports::free_address()));
    let setup = of_environment("HTTPS_PROXY", nobody);
    assert_says(&site, &setup, server.quic(), &[nobody, "refused"]);
    let excepted = client_launch(&site, &setup, server.quic(), ports::free_address());
    let excepted = excepted.env("NO_PROXY", "127.0.0.0/8").start();
    if let Err(log) = excepted.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    let wrong = of_environment("HTTPS_PROXY", "nonsense://proxy");
    let mut client = client_launch(&site, &wrong, server.quic(), ports::free_address()).start();
    assert_eq!(client.wait_for_exit().code(), Some(2));
    assert!(
        client.stderr().contains("HTTPS_PROXY"),
        "{}",
        client.stderr()
    );
}

/// A name that no resolver knows (RFC 6761, section 6.4).
const INSIDE: &str = "tunnel.example.invalid";

/// A proxy that knows [`INSIDE`]: it is where `server` is.
fn proxy_that_resolves(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("bound");
    let wanted = format!("CONNECT {INSIDE}:{} HTTP/1.1\r\n", server.port());
    thread::spawn(move || {
        for near in listener.incoming() {
            let (near, wanted) = (near.expect("a client"), wanted.clone());
            thread::spawn(move || carry(&near, &wanted, server));
        }
    });
    address
}

/// Answers one request of a client, and carries its bytes.
fn carry(near: &TcpStream, wanted: &str, server: SocketAddr) -> io::Result<()> {
    let mut head = Vec::new();
    let mut reader = BufReader::with_capacity(1, near);
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            return Ok(());
        }
    }
    let mut near = near;
    if !head.starts_with(wanted.as_bytes()) {
        return near.write_all(b"HTTP/1.1 404 No such host\r\n\r\n");
    }
    let far = TcpStream::connect(server)?;
    near.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (from, to) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || io::copy(&mut &from, &mut &to));
    io::copy(&mut &far, &mut &*near)?;
    Ok(())
}

#[test]
fn a_server_whose_name_only_the_proxy_can_resolve_is_reached_by_that_name() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let proxy = proxy_that_resolves(server.quic());
    let address = format!("{INSIDE}:{}", server.quic().port());
    for (transport, because) in [("tls", "transport = \"tls\""), ("auto", "proxy")] {
        let admin = ports::free_address();
        let setup = ClientSetup {
            admin: Some(admin),
            server: vec![
                line(format!("transport = {transport:?}")),
                line(format!("proxy = \"http://{proxy}\"")),
            ],
            ..ClientSetup::default()
        };
        let mut client = client_launch_to(&site, &setup, &[&address], service.address).start();
        if let Err(log) = client.wait_until_ready() {
            panic!("the client ended instead of becoming ready:\n{log}");
        }
        client.wait_for_line("who resolves it", |line| {
            line.contains(INSIDE) && line.contains("its proxy is asked for the name")
        });
        visitor::echo(server.traffic(), &Random::new(1).bytes(100_003));
        let seen = server_in_status(admin);
        assert_eq!(seen["name"], address, "{seen}");
        assert_eq!(seen["address"], address, "nobody knows another one: {seen}");
        assert_eq!(seen["transport"], "tls");
        let why = seen["transport_why"].as_str().expect("text");
        assert!(why.contains(because), "{why}");
        client.signal(Signal::TERM);
        client.wait_for_exit();
    }
}

#[test]
fn a_server_that_only_its_proxy_knows_is_served_when_a_reload_takes_the_proxy_away() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let proxy = format!(
        "proxy = \"http://{}\"\n",
        proxy_that_resolves(server.quic())
    );
    let address = format!("{INSIDE}:{}", server.quic().port());
    let admin = ports::free_address();
    let setup = ClientSetup {
        admin: Some(admin),
        server: vec![line(proxy.clone())],
        ..ClientSetup::default()
    };
    let client = client_launch_to(&site, &setup, &[&address], service.address).start();
    if let Err(log) = client.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    visitor::wait_until_served(server.traffic());
    let mut flow = visitor::connect(server.traffic());
    visitor::exchange(&mut flow, b"before");
    let config = site.path().join(format!("{}.toml", setup.name));
    let with_proxy = std::fs::read_to_string(&config).expect("the config");
    assert!(with_proxy.contains(&proxy), "{with_proxy}");
    let reload = |text: &str| {
        std::fs::write(&config, text).expect("written");
        let request = format!(
            "POST /reload HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
        let answer = http::request(admin, &request).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    };
    let visits = Visits::start(server.traffic(), 100);
    for _ in 0..3 {
        let said = reload(&with_proxy.replace(&proxy, ""));
        assert!(
            said.contains("cannot resolve") && said.contains(INSIDE),
            "{said}"
        );
        let seen = server_in_status(admin);
        let why = seen["outdated_why"].as_str().expect("a reason");
        assert!(why.contains(INSIDE), "{why}");
        assert_eq!(seen["transport"], "tls");
        reload(&with_proxy);
        assert_eq!(server_in_status(admin)["outdated_why"], json!(null));
    }
    let visits = visits.finish();
    let failed = visits.iter().filter(|visit| visit.result.is_err()).count();
    assert_eq!(failed, 0, "{}", summary(&visits));
    visitor::exchange(&mut flow, b"after");
}

/// The one server in `/status` of a client.
fn server_in_status(admin: SocketAddr) -> serde_json::Value {
    let status: serde_json::Value =
        serde_json::from_str(&http::get(admin, "/status").body).expect("JSON");
    let servers = status["client"]["servers"].as_array().expect("a list");
    assert_eq!(servers.len(), 1, "{status}");
    servers[0].clone()
}

#[test]
fn status_names_each_server_as_configured_and_why_tls_carries_its_lanes() {
    if subject::only_wire("/status") {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let admin = ports::free_address();
    let tls = ClientSetup {
        server: vec!["transport = \"tls\""],
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let by_name = format!("localhost:{}", server.quic().port());
    let mut client = client_launch_to(&site, &tls, &[&by_name], service.address).start();
    if let Err(log) = client.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    let is_served = |it: &&serde_json::Value| it["lanes"].as_u64() > Some(0);
    // The client is ready a moment before its lane is counted.
    let servers = wait::until("one with a lane", || {
        let status = http::get(admin, "/status").body;
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let servers = status["client"]["servers"].as_array().expect("a list");
        servers.iter().find(is_served)?;
        Some(servers.clone())
    });
    let served = servers.iter().find(is_served).expect("it was there");
    assert_eq!(served["address"], server.quic().to_string());
    // An address without a lane is spoken of in the same way.
    for seen in &servers {
        assert_eq!(seen["name"], by_name);
        assert_eq!(seen["transport"], "tls", "{seen}");
        assert_eq!(seen["transport_why"], "transport = \"tls\"", "{seen}");
    }
    client.signal(Signal::TERM);
    client.wait_for_exit();
    // A name that does not resolve has no address, and is not left out.
    let unknown = format!("{INSIDE}:{}", server.quic().port());
    let admin = ports::free_address();
    let setup = ClientSetup {
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let _client = client_launch_to(&site, &setup, &[&unknown], service.address).start();
    http::wait_for(admin, "/healthz", 200);
    let seen = server_in_status(admin);
    assert_eq!(
        (&seen["name"], &seen["address"]),
        (&json!(unknown), &json!(unknown))
    );
    assert_eq!(
        (&seen["state"], &seen["lanes"]),
        (&json!("unresolved"), &json!(0))
    );
}
