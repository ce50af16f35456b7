//! Who may serve what: `[[server.clients]]`.

use qmux_config::{
    Admission, CertificateNames, ClientMatcher, Proof, Secret, Server, show_fingerprint,
};

use crate::fixture::{SERVER, accept, edited, problem, problems};

const NAS: &str = "[[server.clients]]\nname = \"nas\"\ncertificate = \"nas\"\nservices = [\"\"]\n";
const TOKEN: &str = "0123456789abcdef";

fn with_clients(clients: &str) -> String {
    format!("{SERVER}{clients}")
}

/// A server whose clients prove a token; `shared` stands in `[server.auth]`.
fn with_tokens(shared: &str, clients: &str) -> String {
    let auth = "method = \"mtls\"\nca_cert_file = \"certs/ca.crt\"\n";
    let text = edited(SERVER, auth, &format!("method = \"token\"\n{shared}"));
    format!("{text}{clients}")
}

fn token_client(name: &str, token: &str) -> String {
    format!("[[server.clients]]\nname = {name:?}\ntoken = {token:?}\nservices = [\"\"]\n")
}

fn server(text: &str) -> Server {
    accept(text).server.expect("a server")
}

fn names() -> CertificateNames {
    CertificateNames {
        common_names: vec!["nas".to_owned()],
        dns_names: vec!["NAS.example.com".to_owned()],
        uri_names: vec!["spiffe://x/nas".to_owned()],
        fingerprint: [7; 32],
    }
}

/// The identity of [`names`] at a server with these clients.
fn identity(clients: &str) -> Option<String> {
    let admission = ClientMatcher::new(&server(&with_clients(clients))).by_certificate(&names());
    admission.identity().map(str::to_owned)
}

fn entry(name: &str, proof: &str) -> String {
    format!("[[server.clients]]\nname = {name:?}\n{proof}\nservices = [\"*\"]\n")
}

#[test]
fn without_entries_every_client_may_serve_everything() {
    let matcher = ClientMatcher::new(&server(SERVER));
    let admission = matcher.by_certificate(&names());
    assert_eq!(admission, Admission::Anyone);
    assert!(admission.may_serve("") && admission.may_serve("web"));
    assert_eq!(admission.identity(), None);
}

#[test]
fn a_client_is_known_by_a_name_of_its_certificate_or_by_its_fingerprint() {
    let by = |proof: &str| identity(&entry("found", proof));
    for proof in [
        "certificate = \"nas\"",
        "certificate = \"nas.example.com\"",
        "certificate = \"spiffe://x/nas\"",
        &format!("fingerprint = {:?}", show_fingerprint(&[7; 32])),
        &format!(
            "fingerprint = {:?}",
            format!("sha256:{}", "07:".repeat(32).trim_end_matches(':'))
        ),
    ] {
        assert_eq!(by(proof).as_deref(), Some("found"), "{proof}");
    }
    for proof in [
        "certificate = \"NAS\"",
        "certificate = \"spiffe://X/nas\"",
        "certificate = \"example.com\"",
        "certificate = \"*\"",
        &format!("fingerprint = {:?}", show_fingerprint(&[8; 32])),
    ] {
        assert_eq!(by(proof), None, "{proof}");
    }
}

#[test]
fn a_fingerprint_goes_before_names_and_the_first_entry_before_others() {
    let fingerprint = format!("fingerprint = {:?}", show_fingerprint(&[7; 32]));
    let dns = entry("dns", "certificate = \"nas.example.com\"");
    let common = entry("common", "certificate = \"nas\"");
    let print = entry("print", &fingerprint);
    assert_eq!(identity(&format!("{dns}{common}")).as_deref(), Some("dns"));
    assert_eq!(
        identity(&format!("{common}{dns}")).as_deref(),
        Some("common")
    );
    let all = format!("{dns}{common}{print}");
    assert_eq!(identity(&all).as_deref(), Some("print"));
}

#[test]
fn an_entry_serves_what_its_patterns_stand_for_and_nobody_else_serves_anything() {
    let text = with_clients(&edited(NAS, "[\"\"]", "[\"web\", \"ssh-*\", \"\"]"));
    let matcher = ClientMatcher::new(&server(&text));
    let admission = matcher.by_certificate(&names());
    assert_eq!(admission.identity(), Some("nas"));
    for (service, allowed) in [("web", true), ("ssh-a", true), ("", true), ("db", false)] {
        assert_eq!(admission.may_serve(service), allowed, "{service}");
    }
    let stranger = CertificateNames {
        common_names: vec!["tenant-b".to_owned()],
        dns_names: Vec::new(),
        uri_names: Vec::new(),
        fingerprint: [9; 32],
    };
    let refused = matcher.by_certificate(&stranger);
    assert_eq!(refused, Admission::Refused);
    assert!(!refused.may_serve("web") && !refused.may_serve(""));
}

#[test]
fn a_client_is_known_by_its_own_token() {
    let other = "fedcba9876543210";
    let clients = token_client("nas", TOKEN) + &token_client("pi", other);
    let server = server(&with_tokens("", &clients));
    let matcher = ClientMatcher::new(&server);
    let who = |token: &str| matcher.by_token(|secret| secret.expose() == token.as_bytes());
    assert_eq!(who(TOKEN).identity(), Some("nas"));
    assert_eq!(who(other).identity(), Some("pi"));
    assert_eq!(who("another token of none"), Admission::Refused);
    assert!(matches!(server.clients[0].proof, Proof::Token(_)));
    assert!(!format!("{server:?}").contains(TOKEN), "it shows a token");
}

#[test]
fn the_token_of_all_lets_serve_the_nameless_service_and_nothing_else_beside_entries() {
    let shared = "token = \"shared by everybody\"\n";
    let knows = |secret: &Secret| secret.expose() == b"shared by everybody";
    let alone = ClientMatcher::new(&server(&with_tokens(shared, "")));
    assert_eq!(alone.by_token(knows), Admission::Anyone);
    assert_eq!(alone.by_token(|_| false), Admission::Refused);
    let beside = with_tokens(shared, &token_client("nas", TOKEN));
    let admission = ClientMatcher::new(&server(&beside)).by_token(knows);
    assert_eq!(admission, Admission::Nameless);
    assert!(admission.may_serve("") && !admission.may_serve("web"));
}

#[test]
fn a_token_of_all_may_be_left_out_only_beside_entries() {
    accept(&with_tokens("", &token_client("nas", TOKEN)));
    let message = problem(&with_tokens("", ""));
    assert!(
        message.contains("server.auth.token: is missing"),
        "{message}"
    );
}

#[test]
fn an_entrys_kind_fits_the_method() {
    let message = problem(&with_clients(&token_client("nas", TOKEN)));
    let expected = "server.clients[0].token: does not fit method = \"mtls\" of [server.auth]; it \
        must be certificate or fingerprint";
    assert!(message.ends_with(expected), "{message}");
    let message = problem(&with_tokens("", NAS));
    let expected = "server.clients[0].certificate: does not fit method = \"token\" of \
        [server.auth]; it must be token or token_file";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn an_entry_is_known_by_exactly_one_thing() {
    let none = edited(NAS, "certificate = \"nas\"\n", "");
    let message = problem(&with_clients(&none));
    assert!(
        message.ends_with(
            "server.clients[0]: says not by what the client is known; it must have certificate or \
             fingerprint"
        ),
        "{message}"
    );
    let two = edited(NAS, "services", "fingerprint = \"sha256:00\"\nservices");
    let message = problem(&with_clients(&two));
    assert!(
        message.contains("has certificate and fingerprint; it must have one"),
        "{message}"
    );
}

#[test]
fn two_entries_never_stand_for_one_client() {
    let twice = |first: &str, second: &str| problems(&with_clients(&format!("{first}{second}")));
    let pi =
        |from: &str, to: &str| edited(&NAS.replace("name = \"nas\"", "name = \"pi\""), from, to);
    for (second, expected) in [
        (
            edited(NAS, "certificate = \"nas\"", "certificate = \"pi\""),
            "server.clients[1].name: is the name of line 19 again",
        ),
        (
            pi("\"nas\"", "\"NAS\""),
            "server.clients[1].certificate: is the certificate name of line 20 again",
        ),
    ] {
        let said = twice(NAS, &second);
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(said[0].contains(expected), "{said:#?}");
    }
    let print = entry(
        "a",
        &format!("fingerprint = {:?}", show_fingerprint(&[7; 32])),
    );
    let said = twice(&print, &print.replace("\"a\"", "\"b\""));
    assert!(
        said[0].contains("clients[1].fingerprint: is the fingerprint of line"),
        "{said:#?}"
    );

    let tokens = token_client("nas", TOKEN) + &token_client("pi", TOKEN);
    let message = problem(&with_tokens("", &tokens));
    assert!(
        message.contains("clients[1].token: is the token of line"),
        "{message}"
    );
    assert!(!message.contains(TOKEN), "{message}");
    let shared = format!("token = {TOKEN:?}\n");
    let message = problem(&with_tokens(&shared, &token_client("nas", TOKEN)));
    assert!(
        message.contains("clients[0].token: is the token of line"),
        "{message}"
    );
}

#[test]
fn a_wrong_value_of_an_entry_says_what_it_must_be() {
    for (from, to, expected) in [
        (
            "name = \"nas\"\n",
            "",
            "server.clients[0].name: is missing; it must be 1 to 253 bytes",
        ),
        (
            "name = \"nas\"",
            "name = \"\"",
            "server.clients[0].name: must be 1 to 253 bytes",
        ),
        (
            "services = [\"\"]\n",
            "",
            "server.clients[0].services: is missing; it must be a list",
        ),
        (
            "[\"\"]",
            "[]",
            "server.clients[0].services: is empty; it must be a list of names",
        ),
        (
            "[\"\"]",
            "\"web\"",
            "server.clients[0].services: is a string; it must be a list",
        ),
        (
            "[\"\"]",
            "[1]",
            "server.clients[0].services[0]: is an integer; it must be a string",
        ),
        (
            "[\"\"]",
            "[\"a b\"]",
            "\"a b\" is no pattern; it must be at most 64 of A-Z",
        ),
        (
            "certificate = \"nas\"",
            "fingerprint = \"sha256:0\"",
            "\"sha256:0\" is no fingerprint",
        ),
        (
            "certificate",
            "certificat",
            "unknown key; did you mean \"certificate\"?",
        ),
    ] {
        let said = problems(&with_clients(&edited(NAS, from, to)));
        assert!(
            said.iter().any(|it| it.contains(expected)),
            "{said:#?}\n{expected}"
        );
    }
}

#[test]
fn what_fits_nothing_is_warned_of() {
    let service = "quic_addr = \"0.0.0.0:9443\"\n[[server.services]]\nname = \"web\"\n\
        traffic_addr = \"0.0.0.0:80\"\n[[server.listeners]]";
    let text = edited(SERVER, "[[server.listeners]]", service);
    let warnings = |clients: &str| accept(&format!("{text}{clients}")).warnings;
    assert_eq!(
        warnings(""),
        Vec::<String>::new(),
        "everybody may serve everything"
    );
    assert_eq!(
        warnings(&edited(NAS, "[\"\"]", "[\"*\"]")),
        Vec::<String>::new()
    );
    let said = warnings(&edited(NAS, "[\"\"]", "[\"ssh-*\"]"));
    let [pattern, listeners, services] = &said[..] else {
        panic!("three warnings: {said:#?}")
    };
    assert!(
        pattern.ends_with("clients[0].services: \"ssh-*\" stands for no service of this server")
    );
    assert!(
        listeners.contains("server.listeners: no client may serve these"),
        "{listeners}"
    );
    assert!(
        services.contains("server.services: no client may serve \"web\""),
        "{services}"
    );
}
