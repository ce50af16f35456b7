//! Why a lane ended, in sentences for whoever runs this side. The sentences themselves are those of
//! [`qmux_config::explain`], which `qmux-ctl doctor` uses as well.

pub(crate) use qmux_config::explain::{
    ClientView, STALE_SESSION, TOKEN_WANTED, WRONG_TOKEN, is_without_route, unreachable,
};
use qmux_config::explain::{bad_client, bad_server, client_refused, no_handshake, server_refused};

use qmux_config::FileOrText;

use super::end::LaneEnd;

/// Why a client's attempt ended, and what to do.
pub(crate) fn at_client(end: &LaneEnd, view: &ClientView<'_>) -> String {
    match end {
        LaneEnd::HandshakeTimeout => no_handshake(view),
        LaneEnd::Unreachable(kind) => unreachable(*kind, view.server),
        LaneEnd::BadCertificate(bad) => {
            let sentence = bad_server(bad.why, bad.facts.as_ref(), view);
            format!("{sentence} ({end})")
        }
        LaneEnd::TransportErrorByPeer(code, _) => match client_refused(*code, view) {
            Some(sentence) => format!("{sentence} ({end})"),
            None => end.to_string(),
        },
        _ => end.to_string(),
    }
}

/// Why a server refused a client in the handshake, or the client left it.
pub(crate) fn at_server(end: &LaneEnd, ca_cert: Option<&FileOrText>) -> String {
    match (end, ca_cert) {
        (LaneEnd::BadCertificate(bad), Some(ca)) => {
            let sentence = bad_client(bad.why, bad.facts.as_ref(), ca);
            format!("{sentence} ({end})")
        }
        (LaneEnd::TransportErrorByPeer(code, _), _) => match server_refused(*code) {
            Some(sentence) => format!("{sentence} ({end})"),
            None => end.to_string(),
        },
        _ => end.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::LazyLock;

    use std::io::ErrorKind;
    use std::time::Duration;

    use boring::x509::X509VerifyError;
    use qmux_config::CertificateFacts;
    use qmux_config::explain::alert;

    use super::super::end::BadCertificate;
    use super::*;

    static CA: LazyLock<FileOrText> = LazyLock::new(|| PathBuf::from("certs/ca.crt").into());
    static CERT: LazyLock<FileOrText> = LazyLock::new(|| PathBuf::from("certs/client.crt").into());

    fn view(was_answered: bool) -> ClientView<'static> {
        ClientView {
            server: "192.0.2.1:8443".parse().expect("literal"),
            server_name: "tunnel.test",
            ca_cert: &CA,
            client_cert: Some(&CERT),
            handshake_timeout: Duration::from_secs(5),
            was_answered,
        }
    }

    fn bad(why: X509VerifyError) -> LaneEnd {
        LaneEnd::BadCertificate(Box::new(BadCertificate {
            code: 0x130,
            why,
            facts: Some(CertificateFacts {
                subject: "CN=edge".into(),
                issuer: "CN=some CA".into(),
                names: vec!["a.test".into(), "b.test".into()],
                not_before: "2030-01-01 00:00 UTC".into(),
                not_after: "2020-01-01 00:00 UTC".into(),
                has_expired: true,
                is_early: true,
            }),
        }))
    }

    fn assert_says(sentence: &str, words: &[&str]) {
        for word in words {
            assert!(sentence.contains(word), "no {word:?} in: {sentence}");
        }
    }

    #[test]
    fn silence_is_said_to_be_about_udp_the_host_the_port_and_firewalls() {
        let sentence = at_client(&LaneEnd::HandshakeTimeout, &view(false));
        assert_says(&sentence, &["UDP port 8443 of 192.0.2.1", "firewall", "5s"]);
        let answered = at_client(&LaneEnd::HandshakeTimeout, &view(true));
        assert_says(&answered, &["answered", "handshake_idle_timeout"]);
    }

    #[test]
    fn each_word_of_the_network_has_its_own_sentence() {
        for (kind, words) in [
            (
                ErrorKind::ConnectionRefused,
                ["nobody listens", "quic_addr"],
            ),
            (
                ErrorKind::PermissionDenied,
                ["not permitted", "own firewall"],
            ),
            (ErrorKind::NetworkUnreachable, ["no route", "IPv4"]),
            (ErrorKind::HostUnreachable, ["ICMP", "rejects UDP"]),
        ] {
            let sentence = at_client(&LaneEnd::Unreachable(kind), &view(false));
            assert_says(&sentence, &words);
            assert_says(&sentence, &["UDP port 8443 of 192.0.2.1"]);
        }
    }

    #[test]
    fn a_servers_bad_certificate_names_the_file_the_names_or_the_time() {
        let says = |why, words: &[&str]| assert_says(&at_client(&bad(why), &view(true)), words);
        let issuer = "CN=edge, issued by CN=some CA";
        says(
            X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
            &[
                "ca_cert_file certs/ca.crt",
                issuer,
                "unable to get local issuer",
            ],
        );
        says(
            X509VerifyError::HOSTNAME_MISMATCH,
            &["a.test, b.test", "server_name = \"tunnel.test\""],
        );
        says(
            X509VerifyError::CERT_HAS_EXPIRED,
            &["expired at 2020-01-01"],
        );
        says(
            X509VerifyError::CERT_NOT_YET_VALID,
            &["from 2030-01-01", "clocks"],
        );
        says(X509VerifyError::INVALID_PURPOSE, &["serverAuth"]);
    }

    #[test]
    fn a_clients_bad_certificate_names_the_servers_file() {
        let end = bad(X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
        let sentence = at_server(&end, Some(&PathBuf::from("/etc/ca.crt").into()));
        assert_says(&sentence, &["ca_cert_file /etc/ca.crt of [server.auth]"]);
        let purpose = at_server(
            &bad(X509VerifyError::INVALID_PURPOSE),
            Some(&PathBuf::from("ca").into()),
        );
        assert_says(&purpose, &["clientAuth"]);
    }

    #[test]
    fn a_refusal_by_alert_names_what_the_peer_does_not_accept() {
        let refused = |code| LaneEnd::TransportErrorByPeer(code, String::new());
        let at = |code| at_client(&refused(code), &view(true));
        assert_says(
            &at(alert::UNKNOWN_CA),
            &["certs/client.crt", "ca_cert_file"],
        );
        assert_says(
            &at(alert::CERTIFICATE_EXPIRED),
            &["certs/client.crt", "expired"],
        );
        assert_says(&at(alert::NO_APPLICATION_PROTOCOL), &["no qmux-dp server"]);
        let mut without = view(true);
        without.client_cert = None;
        let required = at_client(&refused(alert::CERTIFICATE_REQUIRED), &without);
        assert_says(
            &required,
            &["client_cert_file", "a client certificate is required"],
        );
        let server = at_server(&refused(alert::UNKNOWN_CA), None);
        assert_says(
            &server,
            &["the client does not accept this server's certificate"],
        );
    }
}
