//! The certificates that TLS can use: kinds of keys, and the chain above a leaf.
//!
//! A leaf's key signs the handshake, and the other side accepts what BoringSSL accepts by default:
//! ECDSA with P-256 and P-384, and RSA. Ed25519 could be turned on, but only in peers that are new
//! enough, and a certificate that works with some of them is worse than one that is refused at
//! once. Keys of CAs only sign certificates; for these BoringSSL also accepts P-521 and Ed25519.

use boring::nid::Nid;
use boring::pkey::{Id, PKeyRef, Public};
use boring::x509::X509;

/// The shortest RSA key in bits (NIST SP 800-57, part 1, section 5.6: 112 bits of strength; 1,024
/// are broken).
const RSA_BITS_MIN: u32 = 2_048;

/// The kinds of keys that a leaf may have, for messages.
const ALLOWED: &str = "ECDSA with P-256 or P-384, or RSA of 2048 bits or more";

/// Why no peer would accept the key of this leaf; `None` if peers would.
pub(crate) fn useless_for_leaf(leaf: &X509) -> Option<String> {
    let Ok(key) = leaf.public_key() else {
        return Some(format!(
            "has a key of an unknown kind; it must be {ALLOWED}"
        ));
    };
    if let Some(why) = weak(&key) {
        return Some(why);
    }
    let kind = match key.id() {
        Id::RSA => return None,
        Id::EC => match curve(&key) {
            Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1) => return None,
            Some(Nid::SECP521R1) => "a P-521 key",
            _ => "an elliptic curve key of another curve",
        },
        Id::ED25519 => "an Ed25519 key",
        Id::RSA_PSS => "an RSA key for PSS alone",
        _ => "a key of another kind",
    };
    Some(format!(
        "has {kind}, which no peer accepts in TLS; it must be {ALLOWED}"
    ))
}

/// Why this CA or intermediate certificate must not be relied on; `None` if it may be.
pub(crate) fn weak_authority(cert: &X509) -> Option<String> {
    match cert.public_key() {
        Ok(key) => weak(&key),
        Err(_) => Some("has a key of an unknown kind".to_owned()),
    }
}

fn weak(key: &PKeyRef<Public>) -> Option<String> {
    let short = matches!(key.id(), Id::RSA | Id::RSA_PSS) && key.bits() < RSA_BITS_MIN;
    short.then(|| {
        format!(
            "has an RSA key of {} bits; {RSA_BITS_MIN} or more are needed",
            key.bits()
        )
    })
}

fn curve(key: &PKeyRef<Public>) -> Option<Nid> {
    key.ec_key().ok()?.group().curve_name()
}

/// The chain of certificates above `certs[0]`, lowest first, as far as the file has them. If
/// several of one name could be next, one that `is_good` is preferred.
pub(crate) fn chain(certs: &[X509], is_good: impl Fn(&X509) -> bool) -> Vec<&X509> {
    let Some(mut below) = certs.first() else {
        return Vec::new();
    };
    let mut chain: Vec<&X509> = Vec::new();
    while chain.len() < certs.len() {
        let mut issuers = certs[1..].iter().filter(|cert| {
            cert.issued(below).is_ok() && !chain.iter().any(|it| std::ptr::eq(*it, *cert))
        });
        let first = issuers.next();
        let good = first.filter(|cert| is_good(cert));
        let Some(next) = good
            .or_else(|| issuers.find(|cert| is_good(cert)))
            .or(first)
        else {
            break;
        };
        chain.push(next);
        below = next;
    }
    chain
}
