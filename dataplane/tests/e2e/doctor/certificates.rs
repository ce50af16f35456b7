//! Certificates that are not accepted, and the clock, the name and the CA that may be the cause.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::certs::{self, Identity};
use crate::support::program::Launch;
use crate::support::service::TcpService;
use crate::support::tunnel::{ClientSetup, Listener, Server, ServerSetup, Site};

use super::{NETWORK, doctor_launch, examine, is_left_out, run};

const DAY_S: i64 = 24 * 60 * 60;

/// A program whose clock is so far off.
fn with_clock_off(launch: Launch, seconds: i64) -> Launch {
    let library = ["x86_64", "aarch64"]
        .map(|arch| format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1"));
    let library = library.iter().find(|path| PathBuf::from(path).is_file());
    let library = library.expect("libfaketime; scripts/setup.sh installs what the tests need");
    launch
        .env("LD_PRELOAD", library)
        .env("FAKETIME", &format!("{seconds:+}s"))
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// A time server (RFC 4330), for as long as the tests run.
fn time_server() -> String {
    const NTP_TO_UNIX_S: u64 = 2_208_988_800;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut question = [0; 48];
        while let Ok((48, from)) = socket.recv_from(&mut question) {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970");
            let mut answer = [0; 48];
            (answer[0], answer[1]) = (0x24, 1);
            answer[24..32].copy_from_slice(&question[40..]);
            let seconds = (now.as_secs() + NTP_TO_UNIX_S) as u32;
            answer[40..44].copy_from_slice(&seconds.to_be_bytes());
            if socket.send_to(&answer, from).is_err() {
                return;
            }
        }
    });
    address.to_string()
}

#[test]
fn a_client_certificate_out_of_its_time_is_named_with_its_file() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    Identity::expired_client().write(site.path(), "expired");
    Identity::future_client().write(site.path(), "future");
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let time_server = time_server();
    for (identity, words) in [
        ("expired", ["expired.crt", "expired at", "renew"]),
        (
            "future",
            ["future.crt", "is valid only from", "clock agrees with"],
        ),
    ] {
        let setup = ClientSetup {
            identity,
            ..ClientSetup::default()
        };
        let launch = doctor_launch(&site, &setup, &server.quic().to_string(), service.address);
        let said = run(launch.args(["--time-server", &time_server]));
        said.assert_finds("certificate", &NETWORK, &words);
    }
}

#[test]
fn a_server_certificate_that_has_expired_is_told_with_its_end() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    Identity::server_between(-30 * DAY_S, -10 * DAY_S).write(site.path(), "old");
    let setup = ServerSetup {
        identity: "old",
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..ServerSetup::default()
    };
    let listener = Listener::free(false);
    // By its clock the server has been running for long.
    let launch = Server::launch(&site, &setup, &[listener]);
    let program = with_clock_off(launch, -20 * DAY_S).start();
    program.wait_until_ready().expect("it serves");
    let service = TcpService::echo();
    let setup = ClientSetup {
        auth: vec!["token = \"correct horse battery\""],
        identity: "",
        ..ClientSetup::default()
    };
    let said = examine(&site, &setup, listener.quic, service.address);
    let words = [
        "the server's certificate",
        "CN=tunnel.test",
        "expired at",
        "renew",
    ];
    said.assert_finds("certificate", &NETWORK, &words);
}

#[test]
fn a_server_name_that_its_certificate_has_not_is_told_with_those_that_it_has() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    for server_name in ["other.test", "192.0.2.9"] {
        let setup = ClientSetup {
            server_name,
            ..ClientSetup::default()
        };
        let said = examine(&site, &setup, server.quic(), service.address);
        let key = format!("server_name = \"{server_name}\"");
        let words = [
            "is for tunnel.test",
            &key,
            "set server_name to one of its names",
        ];
        said.assert_finds("server_name", &["udp", "mtu", "certificate"], &words);
    }
}

#[test]
fn a_clock_that_is_wrong_is_told_from_a_certificate_that_is() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let ours = time_server();
    let nobody = "none".to_owned();
    for (off, time_server, words) in [
        (-2_000 * DAY_S, &ours, ["behind the time of", "timedatectl"]),
        (
            2_000 * DAY_S,
            &ours,
            ["ahead of the time of", "timedatectl"],
        ),
        // The server's answer tells.
        (
            -2_000 * DAY_S,
            &nobody,
            ["the server has accepted that certificate", "timedatectl"],
        ),
        (
            2_000 * DAY_S,
            &nobody,
            ["the server has accepted that certificate", "timedatectl"],
        ),
    ] {
        let setup = ClientSetup::default();
        let server = server.quic().to_string();
        let launch = doctor_launch(&site, &setup, &server, service.address);
        let launch = launch.args(["--time-server", time_server]);
        let said = run(with_clock_off(launch, off));
        said.assert_finds("clock", &NETWORK, &words);
    }

    // The client's own files tell.
    let setup = ServerSetup {
        name: "server-with-token",
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let setup = ClientSetup {
        auth: vec!["token = \"correct horse battery\""],
        identity: "",
        ..ClientSetup::default()
    };
    let server = server.quic().to_string();
    let launch = doctor_launch(&site, &setup, &server, service.address);
    let said = run(with_clock_off(
        launch.args(["--time-server", "none"]),
        -2_000 * DAY_S,
    ));
    said.assert_finds(
        "clock",
        &NETWORK,
        &["were made: it is behind", "timedatectl"],
    );
}

#[test]
fn a_ca_that_the_other_side_has_not_is_told_on_either_side() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    site.write("strange.crt", &certs::strangers().ca_cert_pem);
    Identity::strange_client().write(site.path(), "stranger");
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let setup = ClientSetup {
        ca: "strange",
        ..ClientSetup::default()
    };
    let said = examine(&site, &setup, server.quic(), service.address);
    let words = [
        "is not signed by a CA in ca_cert_file",
        "strange.crt",
        "[client.tls]",
    ];
    let fine = ["udp", "mtu", "certificate", "server_name", "clock"];
    said.assert_finds("ca", &fine, &words);
    let setup = ClientSetup {
        identity: "stranger",
        ..ClientSetup::default()
    };
    let said = examine(&site, &setup, server.quic(), service.address);
    let words = [
        "does not accept",
        "stranger.crt",
        "not signed by a CA in the server's",
    ];
    said.assert_finds("ca", &fine, &words);
}
