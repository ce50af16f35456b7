//! dnsmasq behind the tunnel, dig in front of it, over UDP and TCP.

use std::net::SocketAddr;

use crate::support::peers;
use crate::support::program::Launch;
use crate::support::tunnel::{Site, Tunnel};

/// A text that makes an answer of more than 512 bytes, in strings of at most 255 (RFC 1035), on a
/// line of dnsmasq's at most 1,025.
fn long_text() -> String {
    (0..4)
        .map(|string| format!(",{}", char::from(b'a' + string).to_string().repeat(200)))
        .collect()
}

fn dig(server: SocketAddr, args: &[&str]) -> String {
    Launch::new("dig", "dig")
        .args([&format!("@{}", server.ip()), "-p"])
        .arg(server.port().to_string())
        .args(["+short", "+tries=5", "+timeout=10"])
        .args(args)
        .output()
}

#[test]
fn names_are_resolved_over_udp_and_tcp() {
    let site = Site::new();
    let text = format!("txt-record=long.tunnel.test{}", long_text());
    let records = [
        "address=/tunnel.test/192.0.2.7",
        "address=/tunnel.test/2001:db8::7",
        &text,
    ];
    let dnsmasq = peers::dnsmasq(&site, &records);
    let tunnel = Tunnel::to(dnsmasq.address);
    let server = tunnel.traffic();
    for transport in ["+notcp", "+tcp"] {
        let answer = dig(server, &[transport, "a.tunnel.test", "A"]);
        assert_eq!(answer, "192.0.2.7\n", "{transport}");
        let answer = dig(server, &[transport, "b.tunnel.test", "AAAA"]);
        assert_eq!(answer, "2001:db8::7\n", "{transport}");
        // Over UDP this is one large datagram, because of the advertised buffer.
        let answer = dig(
            server,
            &[transport, "+bufsize=4096", "long.tunnel.test", "TXT"],
        );
        assert_eq!(answer.matches('d').count(), 200, "{transport}: {answer}");
    }
}

#[test]
fn a_hundred_queries_are_answered() {
    let site = Site::new();
    let dnsmasq = peers::dnsmasq(&site, &["address=/tunnel.test/192.0.2.7"]);
    let tunnel = Tunnel::to(dnsmasq.address);
    let names: Vec<String> = (0..100).map(|i| format!("host{i}.tunnel.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let answers = dig(tunnel.traffic(), &names);
    assert_eq!(answers.lines().count(), 100, "{answers}");
    assert!(answers.lines().all(|line| line == "192.0.2.7"), "{answers}");
}
