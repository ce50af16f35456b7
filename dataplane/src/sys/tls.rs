//! Functions of BoringSSL that its safe binding lacks: ticket key callbacks, session lifetimes, the
//! context of early data, and checking a peer's certificate again.

use std::ffi::{CStr, c_int};

use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::ssl::{SslContextBuilder, SslRef, TicketKeyCallbackResult};
use boring::stack::Stack;
use boring::symm::Cipher;
use boring::x509::store::{X509StoreBuilderRef, X509StoreRef};
use boring::x509::verify::X509VerifyFlags;
use boring::x509::{X509, X509Name, X509NameRef, X509StoreContext, X509VerifyError};
use foreign_types::{ForeignType as _, ForeignTypeRef};
use qmux_config::{TICKET_KEY_NAME_BYTES, TicketKey};

/// The source of a context's ticket keys, which is asked at each ticket.
pub(crate) trait TicketKeySource: Send + Sync + 'static {
    /// The key that seals a new ticket.
    fn seal(&self) -> TicketKey;
    /// The key that opens a ticket, by the name in the ticket, and whether new tickets get another
    /// one.
    fn open(&self, name: &[u8; TICKET_KEY_NAME_BYTES]) -> Option<(TicketKey, bool)>;
}

/// Makes `tls` seal and open tickets with the keys of `source`: AES-CBC, then HMAC-SHA-256 (RFC
/// 5077, section 4).
pub(crate) fn set_ticket_keys(tls: &mut SslContextBuilder, source: impl TicketKeySource) {
    // SAFETY: the callback must fill in the name and the initialization vector and set up both
    // contexts when it seals, and set up both contexts when it opens, before it answers `Success`
    // or `DecryptSuccessRenew`. It does, below; on any other way out it answers `Noop` (no ticket)
    // or `Error`.
    unsafe {
        tls.set_ticket_key_callback(move |_ssl, name, iv, cipher, mac, sealing| {
            let (key, renew) = if sealing {
                (source.seal(), false)
            } else {
                match source.open(name) {
                    Some(found) => found,
                    None => return TicketKeyCallbackResult::Noop,
                }
            };
            let algorithm = if key.cipher_key().len() == 16 {
                Cipher::aes_128_cbc()
            } else {
                Cipher::aes_256_cbc()
            };
            if sealing {
                *name = key.name();
                rand::fill(iv);
            }
            let set_up = if sealing {
                cipher.init_encrypt(&algorithm, key.cipher_key(), iv)
            } else {
                cipher.init_decrypt(&algorithm, key.cipher_key(), iv)
            };
            match set_up.and_then(|()| mac.init(key.mac_key(), &MessageDigest::sha256())) {
                Ok(()) if renew => TicketKeyCallbackResult::DecryptSuccessRenew,
                Ok(()) => TicketKeyCallbackResult::Success,
                Err(_) => TicketKeyCallbackResult::Error,
            }
        });
    }
}

/// How long a session may be resumed after the handshake that made it, full or resumed, in seconds.
pub(crate) fn set_session_lifetime(tls: &mut SslContextBuilder, seconds: u32) {
    // SAFETY: the pointer is that of a live context that we alone hold, and the call only stores a
    // number in it.
    unsafe { boring_sys::SSL_CTX_set_session_psk_dhe_timeout(tls.as_ptr(), seconds) }
}

/// Sets what must be the same now as when a ticket was made, for early data to be accepted (RFC
/// 9001, section 4.6.1). Sessions are resumed nevertheless. For servers, before the ClientHello is
/// processed. Returns false if there is no memory.
pub(crate) fn set_early_data_context(ssl: &mut SslRef, context: &[u8]) -> bool {
    // SAFETY: the connection is live and borrowed mutably; BoringSSL copies the bytes, whose length
    // is passed with them.
    let set = unsafe {
        boring_sys::SSL_set_quic_early_data_context(ssl.as_ptr(), context.as_ptr(), context.len())
    };
    set == 1
}

/// A copy of a distinguished name.
///
/// # Errors
/// If there is no memory.
pub(crate) fn copy_name(name: &X509NameRef) -> Result<X509Name, ErrorStack> {
    // SAFETY: the name is live and borrowed; the copy is new, not null where it is taken over, and
    // nobody else's.
    unsafe {
        let copy = boring_sys::X509_NAME_dup(name.as_ptr());
        if copy.is_null() {
            return Err(ErrorStack::get());
        }
        Ok(X509Name::from_ptr(copy))
    }
}

/// Why a peer's certificate is not good now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerRefused {
    /// The session has no certificate.
    #[error("the session has no certificate")]
    NoCertificate,
    /// The certificate is not valid.
    #[error("{0}")]
    Invalid(X509VerifyError),
    /// The certificate could not be checked.
    #[error("the certificate could not be checked")]
    Failed,
}

/// Why revocation lists are not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListRefused {
    /// There is no list.
    #[error("holds no list of revoked certificates in valid PEM form (-----BEGIN X509 CRL-----)")]
    Unreadable,
    /// Anybody may have made the list.
    #[error(
        "holds a list that none of the CAs in ca_cert_file has signed; it must be theirs, all of it"
    )]
    NotSigned,
    /// With this list TLS would refuse everybody.
    #[error(
        "holds a list whose CA in ca_cert_file must not sign lists; the key usage of the CA's \
         certificate must include cRLSign"
    )]
    MayNotSign,
    /// TLS might apply the list of one CA to the clients of the other, and refuse them.
    #[error(
        "holds a list without the key identifier of the CA that has signed it, and ca_cert_file \
         has several of that name; the list must have an authority key identifier"
    )]
    Ambiguous,
    /// The list could not be checked.
    #[error("could not be taken up")]
    Failed,
}

/// Makes `store` refuse the certificates on the revocation lists of `pem`, each of which must be
/// signed by one of `authorities`.
///
/// # Errors
/// What is wrong with the lists; the store is not to be used then.
pub(crate) fn refuse_revoked(
    store: &mut X509StoreBuilderRef,
    pem: &[u8],
    authorities: &[X509],
) -> Result<(), ListRefused> {
    let bytes = isize::try_from(pem.len()).map_err(|_| ListRefused::Unreadable)?;
    let mut lists = 0;
    // SAFETY: the memory of `pem` outlives the reader, which is freed on every way out, as is each
    // list; both are checked not to be null before they are used. Names and keys of the CAs are
    // borrowed; the store takes a reference of its own to the list.
    unsafe {
        let reader = boring_sys::BIO_new_mem_buf(pem.as_ptr().cast(), bytes);
        if reader.is_null() {
            return Err(ListRefused::Failed);
        }
        let result = loop {
            let none = std::ptr::null_mut();
            let list = boring_sys::PEM_read_bio_X509_CRL(reader, none, None, std::ptr::null_mut());
            if list.is_null() {
                let is_end = is_end_of_pem(&ErrorStack::get());
                break match lists {
                    1.. if is_end => Ok(()),
                    _ => Err(ListRefused::Unreadable),
                };
            }
            lists += 1;
            let judged = judge_list(list, authorities);
            let added = boring_sys::X509_STORE_add_crl(store.as_ptr(), list) == 1;
            boring_sys::X509_CRL_free(list);
            if judged.is_err() {
                break judged;
            }
            if !added {
                break Err(ListRefused::Failed);
            }
        };
        boring_sys::BIO_free_all(reader);
        result?;
    }
    store.set_flags(X509VerifyFlags::CRL_CHECK);
    Ok(())
}

/// Whether the PEM text has ended, rather than contained something that could not be read.
fn is_end_of_pem(errors: &ErrorStack) -> bool {
    let last = errors.errors().last();
    last.is_none_or(|error| {
        let reason = error.library_reason(boring_sys::ERR_LIB_PEM);
        reason == Some(boring_sys::PEM_R_NO_START_LINE)
    })
}

/// Whether TLS can use a list: each CA that the list may be taken to belong to must be able to sign
/// it, not only the one that has signed it.
///
/// # Safety
/// `list` must be one that lives.
unsafe fn judge_list(
    list: *mut boring_sys::X509_CRL,
    authorities: &[X509],
) -> Result<(), ListRefused> {
    // SAFETY: the list lives, as the caller says. Its name, and names and keys of the CAs, are only
    // borrowed.
    unsafe {
        let issuer = boring_sys::X509_CRL_get_issuer(list);
        let named: Vec<_> = authorities
            .iter()
            .filter(|it| boring_sys::X509_NAME_cmp(issuer, it.subject_name().as_ptr()) == 0)
            .collect();
        let has_signed = |authority: &&&X509| {
            let key = authority.public_key();
            key.is_ok_and(|key| boring_sys::X509_CRL_verify(list, key.as_ptr()) == 1)
        };
        let signers: Vec<_> = named.iter().filter(has_signed).collect();
        drop(ErrorStack::get());
        if signers.is_empty() {
            return Err(ListRefused::NotSigned);
        }
        // All bits are set where the certificate does not restrict the use of its key.
        let may_sign = |authority: &&&&X509| {
            let usage = boring_sys::X509_get_key_usage(authority.as_ptr());
            usage & boring_sys::X509v3_KU_CRL_SIGN.cast_unsigned() != 0
        };
        if !signers.iter().all(|it| may_sign(&it)) {
            return Err(ListRefused::MayNotSign);
        }
        let identifier = boring_sys::NID_authority_key_identifier;
        let says_whose = boring_sys::X509_CRL_get_ext_by_NID(list, identifier, -1) >= 0;
        if signers.len() < named.len() && !says_whose {
            return Err(ListRefused::Ambiguous);
        }
    }
    Ok(())
}

/// Whether a certificate is accepted in spite of this error: its CA has no revocation list here, or
/// none that covers it; or the list should have been replaced by a later one, or was issued by a CA
/// whose clock is ahead. Certificates on the list are refused nevertheless. An operator who forgets
/// to renew it, or has a wrong clock, must not lose every client by that.
pub(crate) fn is_tolerated(error: c_int) -> bool {
    matches!(
        error,
        boring_sys::X509_V_ERR_UNABLE_TO_GET_CRL
            | boring_sys::X509_V_ERR_DIFFERENT_CRL_SCOPE
            | boring_sys::X509_V_ERR_CRL_NOT_YET_VALID
            | boring_sys::X509_V_ERR_CRL_HAS_EXPIRED
    )
}

/// Calls [`is_tolerated`] from BoringSSL. A tolerated error leaves no trace.
unsafe extern "C" fn tolerate(ok: c_int, context: *mut boring_sys::X509_STORE_CTX) -> c_int {
    // SAFETY: BoringSSL calls this with the context that it verifies with.
    unsafe {
        if ok == 1 || !is_tolerated(boring_sys::X509_STORE_CTX_get_error(context)) {
            return ok;
        }
        boring_sys::X509_STORE_CTX_set_error(context, boring_sys::X509_V_OK);
    }
    1
}

/// Checks the certificate of a registered client against what `store` holds now: chain, validity,
/// purpose, revocation.
///
/// # Errors
/// If the client would not be let in.
pub(crate) fn check_client_against(ssl: &SslRef, store: &X509StoreRef) -> Result<(), PeerRefused> {
    check_against(ssl, store, true)
}

/// Checks the certificate of the peer of a resumed session as a full handshake would: chain,
/// validity now, purpose, and the name that this connection expects. BoringSSL itself does that in
/// full handshakes only.
pub(crate) fn check_peer_again(ssl: &SslRef, we_are_server: bool) -> Result<(), PeerRefused> {
    check_against(ssl, ssl.ssl_context().cert_store(), we_are_server)
}

fn check_against(
    ssl: &SslRef,
    trusted: &X509StoreRef,
    we_are_server: bool,
) -> Result<(), PeerRefused> {
    let leaf = ssl.peer_certificate().ok_or(PeerRefused::NoCertificate)?;
    let none;
    let chain = match ssl.peer_cert_chain() {
        Some(chain) => chain,
        None => {
            none = Stack::<X509>::new().map_err(|_| PeerRefused::Failed)?;
            &none
        }
    };
    let purpose = if we_are_server {
        c"ssl_client"
    } else {
        c"ssl_server"
    };
    let mut store = X509StoreContext::new().map_err(|_| PeerRefused::Failed)?;
    store
        .init(trusted, &leaf, chain, |store| {
            if !inherit_expectations(store, ssl, purpose) {
                return Ok(Err(PeerRefused::Failed));
            }
            Ok(if store.verify_cert()? {
                Ok(())
            } else {
                Err(store
                    .verify_result()
                    .map_or_else(PeerRefused::Invalid, |()| PeerRefused::Failed))
            })
        })
        .map_err(|_| PeerRefused::Failed)?
}

/// Sets the purpose, and then whatever the connection expects beyond its defaults, as `ssl_x509.cc`
/// does.
fn inherit_expectations(
    store: &mut boring::x509::X509StoreContextRef,
    ssl: &SslRef,
    purpose: &CStr,
) -> bool {
    // SAFETY: all pointers are of live objects: `store` was initialized by the caller (we are
    // inside `init`) and is borrowed mutably, `ssl` is borrowed, `purpose` is a C string. The
    // parameters of the connection are null only if its configuration was shed, which is checked;
    // they are copied.
    unsafe {
        let expected = boring_sys::SSL_get0_param(ssl.as_ptr());
        boring_sys::X509_STORE_CTX_set_verify_cb(store.as_ptr(), Some(tolerate));
        !expected.is_null()
            && boring_sys::X509_STORE_CTX_set_default(store.as_ptr(), purpose.as_ptr()) == 1
            && boring_sys::X509_VERIFY_PARAM_set1(
                boring_sys::X509_STORE_CTX_get0_param(store.as_ptr()),
                expected,
            ) == 1
    }
}

#[cfg(test)]
mod tests;
