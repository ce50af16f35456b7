//! Lists of revoked certificates: whether they can be used, and when the next ones are due.

use x509_parser::extensions::{DistributionPointName, IssuingDistributionPoint, ParsedExtension};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT,
};
use x509_parser::prelude::{FromDer, Pem, X509Extension};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// The properties of a list that are checked before it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    /// The time at which the CA has issued it, by the CA's clock.
    pub(crate) issued: ASN1Time,
    /// The time at which the next list is due, if it says so.
    pub(crate) next_update: Option<ASN1Time>,
    /// Whether it covers only certificates that name the place where it is published.
    pub(crate) is_of_a_part: bool,
}

/// The lists of a PEM text.
///
/// # Errors
/// What is wrong with the text; the caller adds where it is from.
pub(crate) fn lists(pem: &[u8]) -> Result<Vec<List>, &'static str> {
    let wrong =
        "holds no list of revoked certificates in valid PEM form (-----BEGIN X509 CRL-----)";
    let mut lists = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|_| wrong)?;
        if block.label != "X509 CRL" {
            return Err(wrong);
        }
        let (_, list) = CertificateRevocationList::from_der(&block.contents).map_err(|_| wrong)?;
        if has_unknown_conditions(&list) {
            return Err(
                "holds a list with a critical extension that is not supported (a delta or an \
                        indirect list has one); it must be a complete list of the CA's own",
            );
        }
        let scope = scope(&list);
        if scope.is_some_and(|scope| !covers_clients(scope)) {
            return Err(
                "holds a list that is not about client certificates (its issuing \
                        distribution point says which ones it is about); it must be a list of all \
                        that the CA has revoked",
            );
        }
        lists.push(List {
            issued: list.last_update(),
            next_update: list.next_update(),
            is_of_a_part: scope.is_some_and(|scope| scope.distribution_point.is_some()),
        });
    }
    if lists.is_empty() {
        return Err(wrong);
    }
    Ok(lists)
}

/// Whether the list contains a condition that must be understood to use it, and is not: TLS then
/// refuses everybody whose certificate is of this CA.
fn has_unknown_conditions(list: &CertificateRevocationList<'_>) -> bool {
    let is_unknown = |extension: &X509Extension<'_>| {
        extension.critical
            && extension.oid != OID_X509_EXT_ISSUER_DISTRIBUTION_POINT
            && extension.oid != OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER
    };
    let mut revoked = list.iter_revoked_certificates();
    list.extensions().iter().any(is_unknown)
        || revoked.any(|it| it.extensions().iter().any(|extension| extension.critical))
}

/// The certificates that the list covers, if it says so.
fn scope<'a>(list: &'a CertificateRevocationList<'_>) -> Option<&'a IssuingDistributionPoint<'a>> {
    let mut extensions = list.extensions().iter();
    extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::IssuingDistributionPoint(scope) => Some(scope),
        _ => None,
    })
}

/// Whether TLS looks for client certificates on a list with this scope. On others it does not, and
/// so would let in clients who are on them.
fn covers_clients(scope: &IssuingDistributionPoint<'_>) -> bool {
    let relative = matches!(
        scope.distribution_point,
        Some(DistributionPointName::NameRelativeToCRLIssuer(_))
    );
    !(scope.only_contains_ca_certs
        || scope.only_contains_attribute_certs
        || scope.only_some_reasons.is_some()
        || scope.indirect_crl
        || relative)
}

/// The time at which the earliest of a PEM text's revocation lists is to be replaced by its next
/// one, in seconds since 1970 (UTC); `None` if none of them says so, or they cannot be read.
#[must_use]
pub fn first_next_update_unix_s(pem: &[u8]) -> Option<i64> {
    let lists = lists(pem).ok()?;
    let all = lists.into_iter().filter_map(|list| list.next_update);
    all.map(|time| time.timestamp()).min()
}
