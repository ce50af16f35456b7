//! The command line: what a person at a terminal sees, and the exit code that a script sees.

#[path = "e2e/support/ports.rs"]
mod ports;
#[expect(dead_code, reason = "ports needs little of it")]
#[path = "e2e/support/random.rs"]
mod random;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use qmux_config::certs::{CertsRequest, generate, write};
use tempfile::TempDir;

use crate::ports::free_address;

const SERVER: &str = r#"
[server]
load_balancer = "least-connections"
[[server.listeners]]
quic_addr = "QUIC"
traffic_addr = "TRAFFIC"
protocol = "both"
[server.auth]
method = "mtls"
ca_cert_file = "ca.crt"
[server.tls]
server_cert_file = "server.crt"
server_key_file = "server.key"
"#;

const CLIENT: &str = r#"
[client]
[[client.servers]]
address = "127.0.0.1:8443"
server_name = "tunnel.test"
[client.local]
host = "127.0.0.1"
port = 3000
[client.tls]
ca_cert_file = "ca.crt"
client_cert_file = "client.crt"
client_key_file = "client.key"
"#;

/// A directory with certificates and a config.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new(config: &str) -> Self {
        let dir = TempDir::with_prefix_in("cli-", env!("CARGO_TARGET_TMPDIR")).expect("directory");
        let request = CertsRequest {
            server_names: vec!["tunnel.test".into()],
            days: 30,
        };
        let certs = generate(&request).expect("certificates");
        write(&certs, dir.path(), false).expect("written");
        fs::write(dir.path().join("dp.toml"), config).expect("written");
        Self { dir }
    }

    /// With a server whose two addresses are free.
    fn server() -> Self {
        Self::new(&at(SERVER, free_address(), free_address()))
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("dp.toml")
    }

    fn run(&self, args: &[&str]) -> Output {
        let config = self.config();
        let config = config.to_str().expect("UTF-8");
        qmux_dp(&[&["--config", config], args].concat())
    }
}

fn at(config: &str, quic: SocketAddr, traffic: SocketAddr) -> String {
    config
        .replace("QUIC", &quic.to_string())
        .replace("TRAFFIC", &traffic.to_string())
}

/// Runs the program to its end.
fn qmux_dp(args: &[&str]) -> Output {
    Command::new("timeout")
        .args(["--signal=KILL", "60", env!("CARGO_BIN_EXE_qmux-dp")])
        .args(args)
        .output()
        .expect("timeout(1) is part of coreutils")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Checks that the program ended with 2 and printed all of `words`.
fn assert_refused(output: &Output, words: &[&str]) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn help_names_every_option_and_ends_with_0() {
    let output = qmux_dp(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for word in [
        "--config",
        "--cores",
        "--log-level",
        "--log-format",
        "--check",
        "demo",
    ] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
    assert_eq!(stderr(&output), "");
    let demo = qmux_dp(&["demo", "--help"]);
    assert_eq!(demo.status.code(), Some(0));
    assert!(stdout(&demo).contains("--once"));
}

#[test]
fn the_last_error_of_a_log_in_json_is_json() {
    let nameless = SERVER.replace("[server]", "[server]\nnonsense = 1");
    let wrong = Site::new(&at(&nameless, free_address(), free_address()));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let traffic = taken.local_addr().expect("bound");
    let in_use = Site::new(&at(SERVER, free_address(), traffic));
    for (site, part) in [
        (wrong, "server.nonsense".to_owned()),
        (in_use, traffic.to_string()),
    ] {
        let output = site.run(&["--log-format", "json", "--log-level", "error"]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        let line = text.trim_end();
        assert!(!line.contains('\n'), "one line: {text}");
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["level"], "ERROR");
        assert!(
            line["timestamp"]
                .as_str()
                .is_some_and(|it| it.ends_with('Z')),
            "{line}"
        );
        let message = line["message"].as_str().expect("a text");
        assert!(message.contains(&part), "{message}");
        let text = stderr(&site.run(&["--log-level", "error"]));
        assert_eq!(
            text.trim_end(),
            format!("qmux-dp: {message}"),
            "the same as text"
        );
    }
}

#[test]
fn the_version_is_the_packages_with_the_commit() {
    let output = qmux_dp(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let expected = format!("qmux-dp {} (", env!("CARGO_PKG_VERSION"));
    let rest = text.strip_prefix(&expected);
    let build = rest.and_then(|rest| rest.strip_suffix(")\n"));
    let build = build.unwrap_or_else(|| panic!("no commit in: {text}"));
    let is_one = build.strip_prefix("commit ").is_some_and(|commit| {
        let is_hash = commit.len() >= 7 && commit.chars().all(|it| it.is_ascii_hexdigit());
        is_hash || commit == "unknown"
    });
    // Commits of developers need not compile everything again.
    assert!(is_one || build == "debug build", "{build}");
}

#[test]
fn a_config_without_its_option_is_told_how() {
    let site = Site::server();
    let path = site.config();
    let path = path.to_str().expect("UTF-8");
    assert_refused(&qmux_dp(&[path]), &[&format!("qmux-dp --config {path}")]);
    // The file does not exist, but it was meant as a config.
    assert_refused(&qmux_dp(&["dp.toml"]), &["qmux-dp --config dp.toml"]);
}

#[test]
fn no_argument_at_all_shows_the_usage() {
    let output = qmux_dp(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage"));
}

#[test]
fn an_unknown_flag_is_named() {
    assert_refused(&qmux_dp(&["--no-such-flag"]), &["--no-such-flag", "Usage"]);
}

#[test]
fn a_misspelt_flag_gets_a_suggestion() {
    let site = Site::server();
    assert_refused(&site.run(&["--core", "2"]), &["--core", "--cores"]);
}

#[test]
fn a_missing_config_file_is_named() {
    let output = qmux_dp(&["--config", "/no/such/dp.toml"]);
    assert_refused(&output, &["/no/such/dp.toml"]);
}

#[test]
fn a_directory_is_no_config_file() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().to_str().expect("UTF-8");
    assert_refused(&qmux_dp(&["--config", path]), &[path]);
}

#[test]
fn a_syntax_error_is_shown_with_its_line() {
    let site = Site::new("[server]\n\nload_balancer = = 1\n");
    let place = format!("{}:3:", site.config().display());
    assert_refused(&site.run(&[]), &[&place]);
}

#[test]
fn an_unknown_key_gets_a_suggestion_with_its_line() {
    let config = at(SERVER, free_address(), free_address());
    let site = Site::new(&config.replace("load_balancer", "load_balancr"));
    let place = format!("{}:3:", site.config().display());
    assert_refused(&site.run(&[]), &[&place, "load_balancr", "load_balancer"]);
}

#[test]
fn a_wrong_value_is_shown_with_what_is_allowed() {
    let config = at(SERVER, free_address(), free_address());
    let site = Site::new(&config.replace("least-connections", "fastest"));
    let words = [
        "load_balancer",
        "fastest",
        "least-connections",
        "round-robin",
    ];
    assert_refused(&site.run(&[]), &words);
}

#[test]
fn a_missing_certificate_is_named() {
    let site = Site::server();
    fs::remove_file(site.dir.path().join("server.crt")).expect("was there");
    assert_refused(&site.run(&[]), &["server.crt"]);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let site = Site::server();
    let (from, to) = ("client.key", "server.key");
    fs::copy(site.dir.path().join(from), site.dir.path().join(to)).expect("copied");
    assert_refused(&site.run(&["--check"]), &["server.key", "does not belong"]);
}

#[test]
fn an_empty_config_is_refused() {
    let site = Site::new("");
    assert_refused(&site.run(&["--check"]), &["[server]", "[client]"]);
}

#[test]
fn check_prints_what_would_run() {
    let (quic, traffic) = (free_address(), free_address());
    let site = Site::new(&at(SERVER, quic, traffic));
    let output = site.run(&["--check", "--cores", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for word in [&quic.to_string(), &traffic.to_string(), "3"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
    // Nothing was left bound.
    TcpListener::bind(traffic).expect("free");
    UdpSocket::bind(quic).expect("free");
}

#[test]
fn check_prints_both_roles_of_one_file() {
    let config = at(SERVER, free_address(), free_address()) + CLIENT;
    let output = Site::new(&config).run(&["--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("server") && text.contains("client"), "{text}");
    assert!(text.contains("127.0.0.1:8443") && text.contains("127.0.0.1:3000"));
}

#[test]
fn check_is_content_with_the_pair_that_the_readme_shows() {
    let readme = include_str!("../../README.md");
    let blocks: Vec<&str> = readme
        .split("\n```toml\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap_or_default())
        .collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        // Addresses that are free here, and a server that can be resolved without the network.
        let config = block
            .replace("0.0.0.0:8443", &free_address().to_string())
            .replace("0.0.0.0:8080", &free_address().to_string())
            .replace("\"tunnel.example.com:8443\"", "\"127.0.0.1:8443\"")
            .replace("certs/", "");
        let output = Site::new(&config).run(&["--check"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}\n{config}",
            stderr(&output)
        );
    }
}

#[test]
fn check_finds_a_bad_config() {
    let config = at(SERVER, free_address(), free_address());
    let site = Site::new(&config.replace("\"both\"", "\"sctp\""));
    assert_refused(&site.run(&["--check"]), &["protocol", "sctp", "udp"]);
}

#[test]
fn check_tries_the_state_directory_and_leaves_nothing_there() {
    let with =
        |dir: &str| CLIENT.replacen("[client]", &format!("[client]\nstate_dir = {dir:?}"), 1);
    let site = Site::new(&with("deep/state"));
    let output = site.run(&["--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("deep/state"));
    assert!(!site.dir.path().join("deep").exists());
    // A file in the way of the directory, and a place where nobody can make one.
    for dir in ["ca.crt", "ca.crt/state", "/proc/no-such/state"] {
        let site = Site::new(&with(dir));
        assert_refused(&site.run(&["--check"]), &["state_dir", dir, "not usable"]);
        assert_refused(&site.run(&[]), &["state_dir", dir, "not usable"]);
    }
}

#[test]
fn check_wants_the_name_of_a_server_resolved_unless_a_proxy_does_that() {
    // No resolver knows it (RFC 6761, section 6.4).
    let unknown = "tunnel.example.invalid:8443";
    let config = CLIENT.replacen("127.0.0.1:8443", unknown, 1);
    let refused = Site::new(&config).run(&["--check"]);
    assert_refused(&refused, &[unknown, "cannot be resolved"]);
    let proxy = format!("{unknown}\"\nproxy = \"http://127.0.0.1:3128");
    let config = CLIENT.replacen("127.0.0.1:8443", &proxy, 1);
    let output = Site::new(&config).run(&["--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(
        text.contains(unknown) && text.contains("its proxy"),
        "{text}"
    );
}

#[test]
fn check_finds_a_taken_address() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let site = Site::new(&at(SERVER, free_address(), address));
    assert_refused(&site.run(&["--check"]), &[&address.to_string()]);
}

#[test]
fn an_address_or_a_name_that_is_of_no_use_is_named_with_its_line_and_its_key() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let taken_udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let udp = taken_udp.local_addr().expect("bound");
    let named = at(SERVER, free_address(), free_address());
    let services = named.replacen(
        "[[server.listeners]]",
        &format!(
            "quic_addr = [\n\"{}\",\n\"{udp}\"]\n[[server.services]]\nname = \"a\"\n\
             traffic_addr = \"{}\"\n[[server.listeners]]",
            free_address(),
            free_address()
        ),
        1,
    );
    let second = services.replacen(&udp.to_string(), &free_address().to_string(), 1)
        + "[[server.services]]\nname = \"b\"\n";
    let second = format!("{second}traffic_addr = \"{address}\"\n");
    let fallback = named.replacen("[server]", "[server]\ntls_fallback = true", 1);
    let quic_line = fallback.lines().find(|line| line.starts_with("quic_addr"));
    let fallback = fallback.replacen(
        quic_line.expect("a door"),
        &format!("quic_addr = \"{address}\""),
        1,
    );
    for (config, place) in [
        (
            at(SERVER, free_address(), address),
            ":6:16: server.listeners[0].traffic_addr: cannot bind TCP",
        ),
        (
            at(SERVER, udp, free_address()),
            ":5:13: server.listeners[0].quic_addr: cannot bind UDP",
        ),
        (services, ":6:1: server.quic_addr: cannot bind UDP"),
        (
            second,
            ":22:16: server.services[1].traffic_addr: cannot bind TCP",
        ),
        (
            at(SERVER, free_address(), free_address())
                + &format!("[admin]\nlisten = \"{address}\"\n"),
            ":15:10: admin.listen: cannot bind TCP",
        ),
        (
            at(SERVER, free_address(), free_address()).replacen(
                "[server]",
                "[server]\naccess_log = \"/proc/no-such/log\"",
                1,
            ),
            ":3:14: server.access_log: /proc/no-such/log cannot be opened",
        ),
    ] {
        let site = Site::new(&config);
        let place = format!("{}{place}", site.config().display());
        assert_refused(&site.run(&["--check"]), &[&place]);
        assert_refused(&site.run(&[]), &[&place]);
    }
    // The port for TLS is bound at a start only.
    let site = Site::new(&fallback);
    let place = format!(
        "{}:6:13: server.listeners[0].quic_addr: cannot bind TCP",
        site.config().display()
    );
    assert_refused(&site.run(&[]), &[&place]);
    // Only a check wants names resolved, and a proxy is looked for at a start as well.
    let unknown = "nowhere.example.invalid";
    let service =
        format!("{CLIENT}[[client.services]]\nname = \"w\"\nhost = \"{unknown}\"\nport = 1\n");
    for (config, place) in [
        (
            CLIENT.replacen("127.0.0.1:8443", &format!("{unknown}:8443"), 1),
            ":4:11: client.servers[0].address: nowhere",
        ),
        (
            CLIENT.replacen("\"127.0.0.1\"", &format!("{unknown:?}"), 1),
            ":7:8: client.local.host: local service",
        ),
        (service, ":15:8: client.services[0].host: local service"),
        (
            CLIENT.replacen("[client]", "[client]\nstate_dir = \"ca.crt\"", 1),
            ":3:13: client.state_dir: ",
        ),
    ] {
        let site = Site::new(&config);
        let place = format!("{}{place}", site.config().display());
        assert_refused(&site.run(&["--check"]), &[&place]);
    }
    let proxy = CLIENT.replacen("server_name", "proxy = \"env\"\nserver_name", 1);
    let site = Site::new(&proxy);
    let config = site.config();
    let output = Command::new("timeout")
        .args([
            "--signal=KILL",
            "60",
            env!("CARGO_BIN_EXE_qmux-dp"),
            "--check",
            "--config",
        ])
        .arg(&config)
        .env("https_proxy", "ftp://me:hunter2@proxy.example:3128")
        .output()
        .expect("timeout(1) is part of coreutils");
    let place = format!(
        "{}:5:9: client.servers[0].proxy: the variable",
        config.display()
    );
    let said = assert_refused(&output, &[&place]);
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn cores_out_of_range_are_refused_with_the_range() {
    let site = Site::server();
    for cores in ["0", "999", "1.5", "many", ""] {
        assert_refused(&site.run(&["--check", "--cores", cores]), &["--cores", "1"]);
    }
}

#[test]
fn more_cores_than_cpus_are_allowed() {
    let output = Site::server().run(&["--check", "--cores", "64"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_taken_tcp_port_gives_one_clear_message() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let site = Site::new(&at(SERVER, free_address(), address));
    let text = assert_refused(&site.run(&["--cores", "4"]), &[&address.to_string()]);
    assert_eq!(text.matches(&address.to_string()).count(), 1, "{text}");
}

#[test]
fn a_taken_udp_port_gives_one_clear_message() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let site = Site::new(&at(SERVER, address, free_address()));
    let text = assert_refused(&site.run(&["--cores", "4"]), &[&address.to_string()]);
    assert_eq!(text.matches(&address.to_string()).count(), 1, "{text}");
}

#[test]
fn an_address_of_another_host_is_refused() {
    let foreign: SocketAddr = "192.0.2.1:8443".parse().expect("a literal");
    let site = Site::new(&at(SERVER, foreign, free_address()));
    assert_refused(&site.run(&[]), &["192.0.2.1:8443"]);
}

#[test]
fn a_bad_log_level_is_refused() {
    let output = Site::server().run(&["--check", "--log-level", "loud=loud"]);
    assert_refused(&output, &["--log-level", "info"]);
}

#[test]
fn a_misspelt_log_level_is_no_module() {
    let site = Site::server();
    for (level, meant) in [
        ("inof", "info"),
        ("info,dbug", "debug"),
        ("qmux_dp=wran", "warn"),
    ] {
        let output = site.run(&["--check", "--log-level", level]);
        assert_refused(&output, &["--log-level", &format!("did you mean {meant}?")]);
    }
    for level in [
        "debug",
        "off",
        "info,qmux_dp::quic=debug",
        "no_such_module=trace",
    ] {
        let output = site.run(&["--check", "--log-level", level]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{level}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_bad_log_format_is_refused_with_the_allowed_ones() {
    let output = Site::server().run(&["--check", "--log-format", "xml"]);
    assert_refused(&output, &["xml", "text", "json"]);
}

#[test]
fn relative_paths_start_at_the_config_file() {
    let site = Site::server();
    let output = Command::new(env!("CARGO_BIN_EXE_qmux-dp"))
        .args(["--check", "--config"])
        .arg(site.config())
        .current_dir(Path::new("/"))
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn json_logs_are_json_and_no_log_has_colours() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let site = Site::new(&at(SERVER, address, free_address()));
    // A key that anybody may read is worth a warning, so that there is something in the log.
    let key = site.dir.path().join("server.key");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(key, everybody).expect("our own file");
    for format in ["json", "text"] {
        let text = stderr(&site.run(&["--log-format", format]));
        assert!(text.contains("server.key"), "{text}");
        assert!(!text.contains('\u{1b}'), "colours: {text:?}");
        if format == "json" {
            let line = text.lines().find(|line| line.contains("server.key"));
            let line = line.expect("the warning");
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(event["level"], "WARN");
        }
    }
}

#[test]
fn the_demo_sends_real_traffic_and_reports() {
    let output = qmux_dp(&["demo", "--once"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", stderr(&output));
    for word in ["TCP", "UDP", "throughput", "p50"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
}
