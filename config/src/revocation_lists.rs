//! Lists of revoked certificates: whether they are some, and when the next ones are due.

use x509_parser::prelude::{FromDer, Pem};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// When each list of a PEM text is to be replaced by the next one; `None` where a list does not say.
///
/// # Errors
/// What is wrong with the text, for who knows where it is from.
pub(crate) fn next_updates(pem: &[u8]) -> Result<Vec<Option<ASN1Time>>, &'static str> {
    let wrong =
        "holds no list of revoked certificates in valid PEM form (-----BEGIN X509 CRL-----)";
    let mut next_updates = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|_| wrong)?;
        if block.label != "X509 CRL" {
            return Err(wrong);
        }
        let (_, list) = CertificateRevocationList::from_der(&block.contents).map_err(|_| wrong)?;
        next_updates.push(list.next_update());
    }
    if next_updates.is_empty() {
        return Err(wrong);
    }
    Ok(next_updates)
}

/// When the first of a PEM text's lists of revoked certificates is to be replaced by the next one, in
/// seconds since 1970 (UTC); `None` if none says so, or they cannot be read.
#[must_use]
pub fn first_next_update_unix_s(pem: &[u8]) -> Option<i64> {
    let next_updates = next_updates(pem).ok()?;
    let all = next_updates.into_iter().flatten();
    all.map(|time| time.timestamp()).min()
}
