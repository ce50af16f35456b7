//! What the successor's configuration does not have any more: the predecessor serves it to its end.

use super::{BULK_BYTES, setup, successor, visit};
use crate::support::ports;
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Listener, Server, ServerSetup, Site, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};

#[test]
fn flows_of_a_door_that_moved_and_of_one_that_was_removed_go_on_to_their_end() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let setup = ServerSetup {
        listeners: vec!["both", "both"],
        ..setup(2, admin)
    };
    let mut server = Server::start(&site, &setup);
    let (tcp, _udp) = echo_both();
    let [moved, removed] = server.listeners[..] else {
        panic!("two listeners");
    };
    let client = |name, quic| {
        let setup = ClientSetup {
            name,
            cores: 2,
            ..ClientSetup::default()
        };
        start_client(&site, &setup, quic, tcp.address)
    };
    let _clients = [
        client("of the moved one", moved.quic),
        client("of the removed one", removed.quic),
    ];
    let mut flows = Vec::new();
    for traffic in [moved.traffic, removed.traffic] {
        visitor::wait_until_served(traffic);
        flows.push(visitor::connect(traffic));
    }
    for flow in &mut flows {
        visitor::exchange(flow, b"before");
    }
    let mut datagrams = UdpVisitor::new(removed.traffic);
    datagrams.echo(b"before");

    let next = ServerSetup {
        name: "successor",
        listeners: vec!["both"],
        ..setup
    };
    let now = Listener {
        quic: ports::free_address(),
        traffic: moved.traffic,
    };
    let next = successor(&site, &next, &[now]);
    next.wait_until_ready().expect("the successor is ready");
    let says = |line: &str| line.contains("handed over");
    server
        .program
        .wait_for_line("that it has handed over", says);
    for flow in &mut flows {
        visitor::exchange(flow, &vec![7; BULK_BYTES]);
    }
    datagrams.echo(b"after");
    let _client = client("of the successor", now.quic);
    visitor::wait_until_served(now.traffic);
    visit(now.traffic).expect("served by the successor");
    for mut flow in flows {
        visitor::finish(&flow);
        assert_eq!(visitor::read_to_end(&mut flow), Ending::Clean(Vec::new()));
    }
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    visitor::try_connect(removed.traffic).expect_err("nobody serves it");
    visit(now.traffic).expect("served without the predecessor");
}
