//! TLS contexts on boring: who must show which certificate, and what is checked of it.
//!
//! `quiche::Config::verify_peer` alone would let clients in without a certificate. A server
//! therefore builds its own context: mTLS requires a certificate, and boring checks the chain to
//! `ca_cert`, the validity period and the purpose (extended key usage `clientAuth`). A client
//! checks the chain, the purpose `serverAuth` and the server's name.
//!
//! BoringSSL checks certificates in full handshakes only. So a session can be resumed only under
//! the rules under which it was made (its context names the CAs), and the peer's certificate is
//! checked again by [`check_resumed_peer`].

use std::net::IpAddr;

use boring::error::ErrorStack;
use boring::sha::Sha256;
use boring::ssl::{
    AlpnError, SslContext, SslContextBuilder, SslMethod, SslOptions, SslRef, SslVerifyMode,
    SslVersion, select_next_proto,
};
use boring::stack::Stack;
use boring::x509::store::{X509Store, X509StoreBuilder, X509StoreBuilderRef};
use qmux_config::{Client, Server};

use super::credentials::{
    Authorities, ClientCredentials, Pair, ServerCredentials, TlsError, TrustedClients, failed,
};
use super::over_tls;

/// Separates the session contexts of the two kinds of authentication.
const SESSION_CONTEXT_MTLS: &[u8] = b"qmux-dp/1 mtls";
const SESSION_CONTEXT_TOKEN: &[u8] = b"qmux-dp/1 token";

/// How long a session may be resumed after the last handshake: two days, BoringSSL's default. A
/// session that is resumed again and again ends a week after the last certificate was shown
/// (`SSL_DEFAULT_SESSION_AUTH_TIMEOUT`), and long before that when the keys of its tickets are
/// gone.
const SESSION_LIFETIME_SECONDS: u32 = 2 * 24 * 60 * 60;

fn base() -> Result<SslContextBuilder, TlsError> {
    let in_memory = "(TLS context)";
    let mut tls =
        SslContextBuilder::new(SslMethod::tls()).map_err(failed(in_memory, "cannot be created"))?;
    tls.set_min_proto_version(Some(SslVersion::TLS1_3))
        .map_err(failed(in_memory, "refuses TLS 1.3"))?;
    Ok(tls)
}

fn take_pair(tls: &mut SslContextBuilder, pair: &Pair) -> Result<(), TlsError> {
    let (cert, key) = (&pair.cert_from, &pair.key_from);
    let mut chain = pair.chain.iter();
    if let Some(leaf) = chain.next() {
        tls.set_certificate(leaf)
            .map_err(failed(cert, "is no usable certificate"))?;
    }
    for above in chain {
        tls.add_extra_chain_cert(above.clone())
            .map_err(failed(cert, "is no usable certificate chain"))?;
    }
    tls.set_private_key(&pair.key)
        .map_err(failed(key, "is no usable private key"))?;
    tls.check_private_key()
        .map_err(failed(key, "does not belong to the certificate"))
}

fn trust(store: &mut X509StoreBuilderRef, authorities: &Authorities) -> Result<(), TlsError> {
    for cert in &authorities.certs {
        store
            .add_cert(cert.clone())
            .map_err(failed(&authorities.from, "is no usable CA certificate"))?;
    }
    Ok(())
}

/// The server's context, from its files as they are now.
pub(crate) fn server(server: &Server) -> Result<SslContextBuilder, TlsError> {
    server_with(&ServerCredentials::read(server)?)
}

/// The server's context, from files that were read before.
pub(crate) fn server_with(credentials: &ServerCredentials) -> Result<SslContextBuilder, TlsError> {
    let mut tls = base()?;
    take_pair(&mut tls, &credentials.pair)?;
    let mut context = Sha256::new();
    match &credentials.clients {
        Some(trusted) => {
            let authorities = &trusted.authorities;
            let from = &authorities.from;
            admit(tls.cert_store_mut(), trusted)?;
            let mut names = Stack::new().map_err(failed(from, "names no CA"))?;
            for cert in &authorities.certs {
                crate::sys::tls::copy_name(cert.subject_name())
                    .and_then(|name| names.push(name))
                    .map_err(failed(from, "names no CA"))?;
            }
            tls.set_client_ca_list(names);
            let mode = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
            tls.set_verify_callback(mode, |ok, context| {
                let error = context.verify_result().err();
                let tolerated =
                    error.is_some_and(|error| crate::sys::tls::is_tolerated(error.as_raw()));
                if !ok && tolerated {
                    context.set_error(Ok(()));
                }
                ok || tolerated
            });
            context.update(SESSION_CONTEXT_MTLS);
            context.update(&authorities.pem);
        }
        None => context.update(SESSION_CONTEXT_TOKEN),
    }
    // A session is resumed only with the same kind of authentication and the same CAs. Any other
    // handshake is a full one, in which a client has to show what is asked for now.
    tls.set_session_id_context(&context.finish())
        .map_err(failed("(session tickets)", "session id context"))?;
    crate::sys::tls::set_session_lifetime(&mut tls, SESSION_LIFETIME_SECONDS);
    Ok(tls)
}

/// Adds the CAs of clients' certificates to the store, and the revocation lists.
fn admit(store: &mut X509StoreBuilderRef, trusted: &TrustedClients) -> Result<(), TlsError> {
    trust(store, &trusted.authorities)?;
    if let Some((from, pem)) = &trusted.revoked {
        crate::sys::tls::refuse_revoked(store, pem, &trusted.authorities.certs)
            .map_err(failed(from, "cannot be used"))?;
    }
    Ok(())
}

/// The store by which certificates of clients that were let in are checked again; `None` if none is
/// asked for.
///
/// # Errors
/// If the files are not usable.
pub(crate) fn client_store(credentials: &ServerCredentials) -> Result<Option<X509Store>, TlsError> {
    let Some(trusted) = &credentials.clients else {
        return Ok(None);
    };
    let mut store =
        X509StoreBuilder::new().map_err(failed("(certificate store)", "cannot be created"))?;
    admit(&mut store, trusted)?;
    Ok(Some(store.build()))
}

/// Whether the handshake resumed an earlier session, so that certificates were not checked.
pub(crate) fn is_resumed(ssl: &SslRef) -> bool {
    ssl.session_reused()
}

/// Checks the certificate of a resumed session's peer as a full handshake would now: chain,
/// validity, purpose, name.
pub(crate) fn check_resumed_peer(
    ssl: &SslRef,
    we_are_server: bool,
) -> Result<(), crate::sys::tls::PeerRefused> {
    crate::sys::tls::check_peer_again(ssl, we_are_server)
}

/// The client's context, from its files as they are now.
pub(crate) fn client(client: &Client) -> Result<SslContextBuilder, TlsError> {
    client_with(&ClientCredentials::read(client)?)
}

/// The client's context, from files that were read before.
pub(crate) fn client_with(credentials: &ClientCredentials) -> Result<SslContextBuilder, TlsError> {
    let mut tls = base()?;
    trust(tls.cert_store_mut(), &credentials.authorities)?;
    tls.set_verify(SslVerifyMode::PEER);
    if let Some(pair) = &credentials.pair {
        take_pair(&mut tls, pair)?;
    }
    Ok(tls)
}

/// The server's context for TLS connections that carry lanes. It shows the server's certificate and
/// asks for none, because QUIC does so inside. It makes no tickets: resuming a session would spare
/// a signature, and keep a state.
pub(crate) fn carrier_server(credentials: &ServerCredentials) -> Result<SslContext, TlsError> {
    let mut tls = base()?;
    take_pair(&mut tls, &credentials.pair)?;
    tls.set_options(SslOptions::NO_TICKET);
    tls.set_alpn_select_callback(|_, offered| {
        select_next_proto(over_tls::ALPN_LIST, offered).ok_or(AlpnError::ALERT_FATAL)
    });
    Ok(tls.build())
}

/// The client's context for TLS connections that carry lanes.
pub(crate) fn carrier_client(credentials: &ClientCredentials) -> Result<SslContext, TlsError> {
    let mut tls = base()?;
    trust(tls.cert_store_mut(), &credentials.authorities)?;
    tls.set_verify(SslVerifyMode::PEER);
    tls.set_alpn_protos(over_tls::ALPN_LIST)
        .map_err(failed("(TLS context)", "refuses the protocol's name"))?;
    Ok(tls.build())
}

/// Makes a client's connection check the server's certificate against a name, or an IP address.
pub(crate) fn expect_server(ssl: &mut SslRef, server_name: &str) -> Result<(), ErrorStack> {
    if let Ok(ip) = server_name.parse() {
        return expect_server_ip(ssl, ip);
    }
    ssl.set_hostname(server_name)?;
    ssl.param_mut().set_host(server_name)
}

/// Makes a client's connection check the server's certificate against an IP address. (A DNS name is
/// passed to quiche, which checks it and sends it as SNI; an address may not be sent as SNI, RFC
/// 6066 section 3.)
pub(crate) fn expect_server_ip(ssl: &mut SslRef, ip: IpAddr) -> Result<(), ErrorStack> {
    ssl.verify_param_mut().set_ip(ip)
}
