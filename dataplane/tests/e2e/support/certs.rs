//! Certificates: good ones made once per process, and bad ones of every kind.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::OnceLock;

use qmux_config::certs::{CertsRequest, Generated, generate};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// The name in the server's certificate.
pub(crate) const SERVER_NAME: &str = "tunnel.test";

/// The CA that both sides trust, a server's and a client's certificate.
pub(crate) fn ours() -> &'static Generated {
    static OURS: OnceLock<Generated> = OnceLock::new();
    OURS.get_or_init(fresh)
}

/// The CA that nobody trusts, with the same name, and its certificates.
pub(crate) fn strangers() -> &'static Generated {
    static STRANGERS: OnceLock<Generated> = OnceLock::new();
    STRANGERS.get_or_init(fresh)
}

fn fresh() -> Generated {
    let server_names = vec![SERVER_NAME.into(), "127.0.0.1".into(), "::1".into()];
    generate(&CertsRequest {
        server_names,
        days: 30,
    })
    .expect("certificates")
}

/// A certificate and its key in PEM form.
pub(crate) struct Identity {
    pub(crate) cert_pem: String,
    pub(crate) key_pem: String,
}

impl Identity {
    /// The identity of our client.
    pub(crate) fn client() -> Self {
        Self {
            cert_pem: ours().client_cert_pem.clone(),
            key_pem: ours().client_key_pem.clone(),
        }
    }

    /// The identity of a client, by a CA that nobody trusts.
    pub(crate) fn strange_client() -> Self {
        Self {
            cert_pem: strangers().client_cert_pem.clone(),
            key_pem: strangers().client_key_pem.clone(),
        }
    }

    /// The identity of our server, which is valid for servers alone.
    pub(crate) fn server() -> Self {
        Self {
            cert_pem: ours().server_cert_pem.clone(),
            key_pem: ours().server_key_pem.clone(),
        }
    }

    /// The identity of a client by our CA, with this common name.
    pub(crate) fn client_named(common_name: &str) -> Self {
        issue(&leaf(common_name))
    }

    /// The identity of a client by our CA, which expired yesterday.
    pub(crate) fn expired_client() -> Self {
        let now = OffsetDateTime::now_utc();
        let mut params = leaf("qmux-dp client");
        params.not_before = now - Duration::days(10);
        params.not_after = now - Duration::days(1);
        issue(&params)
    }

    /// The identity of a client by our CA, which is valid from tomorrow.
    pub(crate) fn future_client() -> Self {
        let now = OffsetDateTime::now_utc();
        let mut params = leaf("qmux-dp client");
        params.not_before = now + Duration::days(1);
        params.not_after = now + Duration::days(10);
        issue(&params)
    }

    /// The identity of a client, from our CA, that expires in `seconds`, and the time of that.
    pub(crate) fn client_for_seconds(seconds: i64) -> (Self, OffsetDateTime) {
        let mut params = leaf("qmux-dp client");
        params.not_after = now() + Duration::seconds(seconds);
        (issue(&params), params.not_after + Duration::seconds(1))
    }

    /// The identity of a server, from our CA, that expires in `seconds`, and the time of that.
    pub(crate) fn server_for_seconds(seconds: i64) -> (Self, OffsetDateTime) {
        let mut params = server_leaf();
        params.not_after = now() + Duration::seconds(seconds);
        (issue(&params), params.not_after + Duration::seconds(1))
    }

    /// The identity of a server by our CA that is valid between these seconds from now.
    pub(crate) fn server_between(from: i64, until: i64) -> Self {
        let mut params = server_leaf();
        params.not_before = now() + Duration::seconds(from);
        params.not_after = now() + Duration::seconds(until);
        issue(&params)
    }

    /// The identity of a client that only itself vouches for.
    pub(crate) fn self_signed_client() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let cert = leaf("qmux-dp client").self_signed(&key).expect("signed");
        Self {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// Writes the pair as `{name}.crt` and `{name}.key`.
    pub(crate) fn write(&self, dir: &Path, name: &str) {
        std::fs::write(dir.join(format!("{name}.crt")), &self.cert_pem).expect("written");
        let key = dir.join(format!("{name}.key"));
        std::fs::write(&key, &self.key_pem).expect("written");
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(key, owner_only).expect("our own file");
    }
}

/// The time at which certificates are checked.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn leaf(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(30);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn server_leaf() -> CertificateParams {
    let mut params = leaf(SERVER_NAME);
    let name = SERVER_NAME.try_into().expect("a name");
    params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// The revocation list of a CA, ours or not, with these certificates.
pub(crate) fn revoking(revoked: &[&Identity], by: &Generated) -> String {
    revoking_for_seconds(7 * 24 * 60 * 60, revoked, by)
}

/// A revocation list whose next update is due in `seconds`.
pub(crate) fn revoking_for_seconds(seconds: i64, revoked: &[&Identity], by: &Generated) -> String {
    revoking_between(-2 * 60 * 60, seconds, revoked, by)
}

/// A revocation list that is issued, by the CA's clock, `issued` seconds from now, and whose next
/// update is due in `seconds`.
pub(crate) fn revoking_between(
    issued: i64,
    seconds: i64,
    revoked: &[&Identity],
    by: &Generated,
) -> String {
    let serial = |identity: &&Identity| {
        let cert = boring::x509::X509::from_pem(identity.cert_pem.as_bytes());
        let serial = cert.expect("a certificate").serial_number().to_bn();
        serial.expect("a number").to_vec()
    };
    let now = OffsetDateTime::now_utc();
    let revoked = revoked.iter().map(|it| RevokedCertParams {
        serial_number: SerialNumber::from(serial(it)),
        revocation_time: now - Duration::hours(2),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: now + Duration::seconds(issued),
        next_update: now + Duration::seconds(seconds),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let ca_key = KeyPair::from_pem(&by.ca_key_pem).expect("the CA's key");
    let list = list.signed_by(&Issuer::new(ca(), &ca_key)).expect("signed");
    list.pem().expect("PEM")
}

fn ca() -> CertificateParams {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "qmux-dp CA");
    ca
}

/// Signs with our CA's key and name.
fn issue(params: &CertificateParams) -> Identity {
    let ca_key = KeyPair::from_pem(&ours().ca_key_pem).expect("the CA's key");
    let issuer = Issuer::new(ca(), &ca_key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let cert = params.signed_by(&key, &issuer).expect("signed");
    Identity {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    }
}
