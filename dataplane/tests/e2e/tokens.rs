//! Authentication by token: who knows it is served, without a client certificate; whoever does not
//! learns nothing.

use qmux_proto::control::{RefuseReason, RegisterOutcome};
use rustix::process::Signal;

use crate::support::certs::Identity;
use crate::support::counters;
use crate::support::program::Program;
use crate::support::quic_probe::{self, Probe};
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, client_launch, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;

const TOKEN: &str = "method = \"token\"\ntoken = \"correct horse battery\"";

/// The secrets that must not be in any log.
const SECRETS: [&str; 2] = ["correct horse", "wrong pony"];

fn server_with_token() -> ServerSetup {
    ServerSetup {
        auth: Some(TOKEN),
        ..ServerSetup::default()
    }
}

/// A client with this line in `[client.auth]` and no certificate.
fn client_with(token: &'static str) -> ClientSetup {
    ClientSetup {
        auth: vec![token],
        identity: "",
        ..ClientSetup::default()
    }
}

fn stop(program: &mut Program) -> impl Fn(&str) -> u64 {
    program.signal(Signal::TERM);
    assert_eq!(program.wait_for_exit().code(), Some(0));
    let lines = program.lines().join("\n");
    for secret in SECRETS {
        assert!(!lines.contains(secret), "a token is in the log");
    }
    let counters = counters::of(program);
    move |name| counters::total(&counters, name)
}

#[test]
fn a_client_with_the_token_needs_no_certificate() {
    if subject::only_wire("token authentication") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let site = Site::new();
    let mut server = Server::start(&site, &server_with_token());
    let client = client_with("token = \"correct horse battery\"");
    let mut client = start_client(&site, &client, server.quic(), tcp.address);
    visitor::echo(server.traffic(), b"served");
    UdpVisitor::new(server.traffic()).echo(b"served");
    let _counters = stop(&mut client);
    let at_server = stop(&mut server.program);
    assert_eq!(at_server("registrations_accepted"), 1);
    assert_eq!(at_server("tokens_refused"), 0);
}

#[test]
fn a_client_with_a_certificate_still_needs_the_token() {
    if subject::only_wire("token authentication") {
        return;
    }
    refused(
        &server_with_token(),
        &ClientSetup::default(),
        "it left instead of proving that it knows the token",
        "the server wants a token: set token in [client.auth]",
        "tokens_refused",
    );
}

#[test]
fn a_client_with_another_token_is_refused_without_a_hint() {
    if subject::only_wire("token authentication") {
        return;
    }
    // What the client says is its own conclusion: the server's answer has no text.
    let line = refused(
        &server_with_token(),
        &client_with("token = \"wrong pony battery\""),
        "its token is not ours",
        "token in [client.auth] must be the same as token in [server.auth]",
        "tokens_refused",
    );
    assert!(line.contains("the client is not authenticated"), "{line}");
    let says = "if this client has an entry in [[server.clients]] there, as token of that entry";
    assert!(line.contains(says), "{line}");
}

#[test]
fn a_proof_of_any_length_that_is_not_the_tokens_is_refused_like_a_wrong_token() {
    if subject::only_wire("token authentication") {
        return;
    }
    let site = Site::new();
    let mut server = Server::start(&site, &server_with_token());
    let mut config = quic_probe::config(site.path(), None);
    let mut answer = |change: fn(&mut Vec<u8>)| {
        let mut probe = Probe::dial(server.quic(), &mut config);
        let challenge = probe.challenge("somebody", 1);
        let mut proof = probe.proof("correct horse battery", &challenge);
        change(&mut proof);
        probe.answer(proof)
    };
    assert_eq!(
        answer(|_| ()),
        RegisterOutcome::Accepted,
        "the proof itself"
    );
    let wrong: [fn(&mut Vec<u8>); 4] = [
        |proof| proof[0] ^= 1,
        |proof| proof.clear(),
        |proof| proof.truncate(1),
        |proof| proof.truncate(63),
    ];
    for wrong in wrong {
        let refused = RegisterOutcome::Refused {
            reason: RefuseReason::Unauthenticated,
            text: String::new(),
        };
        assert_eq!(answer(wrong), refused);
    }
    let at_server = stop(&mut server.program);
    assert_eq!(at_server("tokens_refused"), 4);
    assert_eq!(at_server("registrations_accepted"), 1);
}

#[test]
fn nobody_takes_the_name_of_an_entry_with_the_token_of_all() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let setup = ServerSetup {
        auth: Some(
            "method = \"token\"\ntoken = \"correct horse battery\"\n\
             [[server.clients]]\nname = \"nas\"\ntoken = \"wrong pony battery\"\n\
             services = [\"\"]",
        ),
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let mut config = quic_probe::config(site.path(), None);
    let mut register = |client_id, instance, token| {
        let mut probe = Probe::dial(server.quic(), &mut config);
        let challenge = probe.challenge(client_id, instance);
        let proof = probe.proof(token, &challenge);
        probe.answer(proof)
    };
    let nas = register("nas", 1, "wrong pony battery");
    assert_eq!(nas, RegisterOutcome::Accepted, "by its own token");
    let others = "correct horse battery";
    let other = register("other", 2, others);
    assert_eq!(other, RegisterOutcome::Accepted);
    let RegisterOutcome::Refused { reason, text } = register("nas", 3, others) else {
        panic!("it was let in under the name of another");
    };
    assert_eq!(reason, RefuseReason::BadRequest, "{text}");
    assert!(text.contains("the name of another client"), "{text}");
}

#[test]
fn a_client_with_a_token_is_refused_by_a_server_that_wants_a_certificate() {
    if subject::only_wire("token authentication") {
        return;
    }
    refused(
        &ServerSetup::default(),
        &client_with("token = \"correct horse battery\""),
        "a client certificate is required",
        "a client certificate is required",
        "handshakes_failed",
    );
}

#[test]
fn a_client_with_the_token_checks_the_servers_certificate() {
    if subject::only_wire("token authentication") {
        return;
    }
    refused(
        &server_with_token(),
        &ClientSetup {
            server_name: "other.test",
            ..client_with("token = \"correct horse battery\"")
        },
        "certificate",
        "other.test",
        "handshakes_failed",
    );
}

#[test]
fn a_client_without_certificate_and_token_does_not_start() {
    if subject::only_wire("token authentication") {
        return;
    }
    let site = Site::new();
    let nobody = crate::support::ports::free_address();
    let nothing = ClientSetup {
        identity: "",
        ..ClientSetup::default()
    };
    let mut client = client_launch(&site, &nothing, nobody, nobody).start();
    assert_eq!(client.wait_for_exit().code(), Some(2));
    let stderr = client.stderr();
    assert!(stderr.contains("client_cert_file"), "{stderr}");
}

#[test]
fn a_certificate_with_the_wrong_purpose_does_not_replace_the_token() {
    if subject::only_wire("token authentication") {
        return;
    }
    // Whatever certificate a client has, it is not asked for: only the token counts.
    let service = TcpService::echo();
    let site = Site::new();
    Identity::strange_client().write(site.path(), "strange");
    let server = Server::start(&site, &server_with_token());
    let client = ClientSetup {
        identity: "strange",
        ..client_with("token = \"correct horse battery\"")
    };
    let _client = start_client(&site, &client, server.quic(), service.address);
    visitor::echo(server.traffic(), b"served");
}

/// Starts two that do not go together: each says what is wrong, nobody is served, and the client
/// goes on trying with pauses. Returns the client's line.
fn refused(
    server: &ServerSetup,
    client: &ClientSetup,
    server_says: &str,
    client_says: &str,
    counter: &str,
) -> String {
    let service = TcpService::echo();
    let site = Site::new();
    let mut server = Server::start(&site, server);
    let mut client = client_launch(&site, client, server.quic(), service.address).start();
    let line = client.wait_for_line("what is wrong", |line| line.contains(client_says));
    assert!(
        line.contains("next_ms="),
        "it does not say when it tries again: {line}"
    );
    server
        .program
        .wait_for_line("what is wrong", |line| line.contains(server_says));
    assert!(
        !visitor::echo_works(server.traffic()),
        "a visitor was served"
    );
    client.signal(Signal::TERM);
    assert_eq!(client.wait_for_exit().code(), Some(0));
    let at_server = stop(&mut server.program);
    assert!(at_server(counter) > 0, "{counter} is 0");
    assert_eq!(at_server("registrations_accepted"), 0);
    assert_eq!(service.accepted(), 0);
    line
}
