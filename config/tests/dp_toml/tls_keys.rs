//! A certificate that passes must work: each kind is tried in a handshake with BoringSSL's own
//! rules, which are the data plane's, and judged by the check.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use boring::asn1::Asn1Time;
use boring::bn::BigNum;
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::rsa::Rsa;
use boring::ssl::{SslContextBuilder, SslMethod, SslStream, SslVerifyMode};
use boring::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use boring::x509::{X509, X509Name};
use qmux_config::Config;
use tempfile::TempDir;

use crate::fixture::{CLIENT, SERVER};

const DAY_SECONDS: i64 = 24 * 60 * 60;

fn ec(curve: Nid) -> PKey<Private> {
    let group = EcGroup::from_curve_name(curve).expect("a curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
}

fn rsa(bits: u32) -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(bits).expect("a key")).expect("a key")
}

fn ed25519() -> PKey<Private> {
    // From RFC 8410, section 10.3.
    let pem = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    PKey::private_key_from_pem(pem.as_bytes()).expect("a key")
}

/// The properties of a certificate.
struct Plan<'a> {
    name: &'a str,
    is_ca: bool,
    /// Days from now, from and until.
    days: (i64, i64),
    may_sign: bool,
    has_names: bool,
}

impl Plan<'_> {
    fn leaf() -> Self {
        Plan {
            name: "server.example.com",
            is_ca: false,
            days: (-1, 90),
            may_sign: true,
            has_names: true,
        }
    }

    fn authority(name: &str) -> Plan<'_> {
        Plan {
            name,
            is_ca: true,
            ..Plan::leaf()
        }
    }
}

fn name(common_name: &str) -> X509Name {
    let mut name = X509Name::builder().expect("a name");
    let text = name.append_entry_by_text("CN", common_name);
    text.expect("a common name");
    name.build()
}

fn issue(plan: &Plan<'_>, key: &PKey<Private>, issuer: &str, issuer_key: &PKey<Private>) -> X509 {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let at = |days: i64| Asn1Time::from_unix(now + days * DAY_SECONDS).expect("a time");
    let mut cert = X509::builder().expect("a certificate");
    let serial = BigNum::from_u32(u32::from(plan.is_ca) + 7).expect("a number");
    let serial = serial.to_asn1_integer().expect("a number");
    cert.set_version(2).expect("set");
    cert.set_serial_number(&serial).expect("set");
    cert.set_subject_name(&name(plan.name)).expect("set");
    cert.set_issuer_name(&name(issuer)).expect("set");
    cert.set_pubkey(key).expect("set");
    cert.set_not_before(&at(plan.days.0)).expect("set");
    cert.set_not_after(&at(plan.days.1)).expect("set");
    let mut extensions = Vec::new();
    if plan.is_ca {
        extensions.push(BasicConstraints::new().critical().ca().build());
    } else {
        let mut purposes = ExtendedKeyUsage::new();
        extensions.push(purposes.server_auth().client_auth().build());
        let mut usage = KeyUsage::new();
        extensions.push(if plan.may_sign {
            usage.digital_signature().build()
        } else {
            usage.key_encipherment().build()
        });
    }
    for extension in extensions {
        let extension = extension.expect("built");
        cert.append_extension(&extension).expect("set");
    }
    if plan.has_names && !plan.is_ca {
        let mut names = SubjectAlternativeName::new();
        let names = names.dns(plan.name).build(&cert.x509v3_context(None, None));
        cert.append_extension(&names.expect("built")).expect("set");
    }
    cert.sign(issuer_key, MessageDigest::sha256())
        .expect("signed");
    cert.build()
}

/// A leaf with its key and the certificates above it, lowest first; the last one is the CA that is
/// trusted.
struct Chain {
    key: PKey<Private>,
    leaf: X509,
    above: Vec<X509>,
}

impl Chain {
    fn new(plan: &Plan<'_>, key: PKey<Private>, ca_key: &PKey<Private>) -> Chain {
        let leaf = issue(plan, &key, "CA", ca_key);
        let ca = issue(&Plan::authority("CA"), ca_key, "CA", ca_key);
        Chain {
            key,
            leaf,
            above: vec![ca],
        }
    }

    /// A chain with an intermediate of these days between the leaf and the CA.
    fn with_intermediate(days: (i64, i64)) -> Chain {
        let [key, between, ca_key] = [(); 3].map(|()| ec(Nid::X9_62_PRIME256V1));
        let plan = Plan {
            days,
            ..Plan::authority("between")
        };
        Chain {
            leaf: issue(&Plan::leaf(), &key, "between", &between),
            key,
            above: vec![
                issue(&plan, &between, "CA", &ca_key),
                issue(&Plan::authority("CA"), &ca_key, "CA", &ca_key),
            ],
        }
    }

    fn ca(&self) -> &X509 {
        self.above.last().expect("a CA")
    }

    fn intermediates(&self) -> &[X509] {
        &self.above[..self.above.len() - 1]
    }

    /// Whether a handshake works in which both sides show this chain.
    fn works(&self) -> bool {
        let context = || {
            let mut tls = SslContextBuilder::new(SslMethod::tls()).expect("a context");
            let version = Some(boring::ssl::SslVersion::TLS1_3);
            tls.set_min_proto_version(version).expect("set");
            let set = tls.set_certificate(&self.leaf).is_ok()
                && tls.set_private_key(&self.key).is_ok()
                && self.intermediates().iter().all(|cert| {
                    let added = tls.add_extra_chain_cert(cert.clone());
                    added.is_ok()
                });
            tls.cert_store_mut()
                .add_cert(self.ca().clone())
                .expect("trusted");
            tls.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            set.then(|| tls.build())
        };
        let (Some(server), Some(client)) = (context(), context()) else {
            return false;
        };
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let serving = thread::spawn(move || {
            let ssl = boring::ssl::Ssl::new(&server).expect("a connection");
            let mut stream = SslStream::new(ssl, theirs).expect("a stream");
            stream.accept().is_ok() && echo(&mut stream).is_ok()
        });
        let mut ssl = boring::ssl::Ssl::new(&client).expect("a connection");
        ssl.param_mut().set_host("server.example.com").expect("set");
        let mut stream = SslStream::new(ssl, ours).expect("a stream");
        // The server checks the client's certificate after the client is done, so only an answer
        // proves it.
        let mut answer = [0; 4];
        let asked = stream.connect().is_ok()
            && stream.write_all(b"ping").is_ok()
            && stream.read_exact(&mut answer).is_ok();
        drop(stream);
        serving.join().expect("it ends") && asked && answer == *b"ping"
    }

    /// The verdict of the check, for a server and for a client.
    fn judged(&self) -> Result<(), String> {
        let dir = TempDir::new().expect("a directory");
        let certs = dir.path().join("certs");
        fs::create_dir(&certs).expect("a directory");
        let pem = |cert: &X509| String::from_utf8(cert.to_pem().expect("PEM")).expect("text");
        let chain: String = [&self.leaf]
            .into_iter()
            .chain(self.intermediates())
            .map(pem)
            .collect();
        let key = self.key.private_key_to_pem_pkcs8().expect("PEM");
        fs::write(certs.join("ca.crt"), pem(self.ca())).expect("written");
        for role in ["server", "client"] {
            fs::write(certs.join(format!("{role}.crt")), &chain).expect("written");
            fs::write(certs.join(format!("{role}.key")), &key).expect("written");
        }
        judge(SERVER, dir.path()).and_then(|()| judge(CLIENT, dir.path()))
    }
}

fn judge(text: &str, dir: &Path) -> Result<(), String> {
    match Config::parse(text, &dir.join("dp.toml")) {
        Ok(_) => Ok(()),
        Err(errors) => Err(errors.to_string()),
    }
}

fn echo(stream: &mut SslStream<UnixStream>) -> io::Result<()> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)
}

#[test]
fn leaf_keys_are_accepted_exactly_if_a_handshake_works_with_them() {
    let ca = ec(Nid::X9_62_PRIME256V1);
    for (kind, key, works) in [
        ("P-256", ec(Nid::X9_62_PRIME256V1), true),
        ("P-384", ec(Nid::SECP384R1), true),
        ("RSA", rsa(2_048), true),
        ("RSA", rsa(3_072), true),
        ("P-521", ec(Nid::SECP521R1), false),
        ("Ed25519", ed25519(), false),
        ("curve", ec(Nid::SECP224R1), false),
    ] {
        let chain = Chain::new(&Plan::leaf(), key, &ca);
        assert_eq!(chain.works(), works, "{kind} in a handshake");
        match chain.judged() {
            Ok(()) => assert!(works, "{kind} passes the check and works with nobody"),
            Err(text) => assert!(!works && text.contains(kind), "{kind}: {text}"),
        }
    }
}

#[test]
fn rsa_keys_of_less_than_2048_bits_are_refused_wherever_they_stand() {
    let (good, weak) = (ec(Nid::X9_62_PRIME256V1), rsa(1_024));
    for chain in [
        Chain::new(&Plan::leaf(), weak.clone(), &good),
        Chain::new(&Plan::leaf(), good, &weak),
    ] {
        let text = chain.judged().expect_err("weak");
        assert!(text.contains("an RSA key of 1024 bits"), "{text}");
    }
}

#[test]
fn ca_keys_may_be_of_kinds_that_leaves_may_not() {
    for key in [ec(Nid::SECP384R1), ec(Nid::SECP521R1), rsa(2_048)] {
        let chain = Chain::new(&Plan::leaf(), ec(Nid::X9_62_PRIME256V1), &key);
        assert!(chain.works());
        assert_eq!(chain.judged(), Ok(()));
    }
}

#[test]
fn an_intermediate_outside_its_time_is_refused_as_peers_refuse_it() {
    for (days, works, says) in [
        ((-1, 90), true, ""),
        ((-10, -1), false, "\"CN=between\" in its chain expired on "),
        (
            (1, 90),
            false,
            "\"CN=between\" in its chain is valid only from ",
        ),
    ] {
        let chain = Chain::with_intermediate(days);
        assert_eq!(chain.works(), works, "{days:?}");
        match chain.judged() {
            Ok(()) => assert!(works, "{days:?} passes the check and works with nobody"),
            Err(text) => assert!(!works && text.contains(says), "{days:?}: {text}"),
        }
    }
}

#[test]
fn a_leaf_that_must_not_sign_is_refused_as_peers_refuse_it() {
    let plan = Plan {
        may_sign: false,
        ..Plan::leaf()
    };
    // RSA: boring does not even take such a certificate for an elliptic curve key.
    for key in [rsa(2_048), ec(Nid::X9_62_PRIME256V1)] {
        let chain = Chain::new(&plan, key, &ec(Nid::X9_62_PRIME256V1));
        assert!(!chain.works());
        let text = chain.judged().expect_err("cannot work");
        assert!(text.contains("must include digitalSignature"), "{text}");
    }
}

#[test]
fn a_leaf_whose_only_name_is_its_common_name_is_accepted_as_peers_accept_it() {
    let plan = Plan {
        has_names: false,
        ..Plan::leaf()
    };
    let chain = Chain::new(&plan, rsa(2_048), &ec(Nid::X9_62_PRIME256V1));
    assert!(chain.works());
    assert_eq!(chain.judged(), Ok(()));
}

#[test]
fn a_byte_order_mark_before_the_pem_is_no_mistake() {
    let chain = Chain::new(
        &Plan::leaf(),
        ec(Nid::X9_62_PRIME256V1),
        &ec(Nid::X9_62_PRIME256V1),
    );
    let dir = TempDir::new().expect("a directory");
    let certs = dir.path().join("certs");
    fs::create_dir(&certs).expect("a directory");
    let marked = |pem: Vec<u8>| [b"\xef\xbb\xbf".to_vec(), pem].concat();
    let key = chain.key.private_key_to_pem_pkcs8().expect("PEM");
    for (file, pem) in [
        ("ca.crt", chain.ca().to_pem().expect("PEM")),
        ("server.crt", chain.leaf.to_pem().expect("PEM")),
        ("server.key", key),
    ] {
        fs::write(certs.join(file), marked(pem)).expect("written");
    }
    assert_eq!(judge(SERVER, dir.path()), Ok(()));
}
