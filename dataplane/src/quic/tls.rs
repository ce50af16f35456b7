//! TLS contexts on boring: who must show which certificate, and what is checked of it.
//!
//! `quiche::Config::verify_peer` alone would let clients in without a certificate. A server therefore builds its own
//! context: mTLS requires a certificate, and boring checks the chain to `ca_cert_file`, the validity period and the
//! purpose (extended key usage `clientAuth`). A client checks the chain, the purpose `serverAuth` and the server's name.
//!
//! BoringSSL checks certificates at full handshakes only. So a session that is resumed was made under the same rules
//! (its context names the CAs), and its certificate is checked again by [`check_resumed_peer`].

use std::net::IpAddr;
use std::path::Path;

use boring::error::ErrorStack;
use boring::sha::Sha256;
use boring::ssl::{SslContextBuilder, SslFiletype, SslMethod, SslRef, SslVerifyMode, SslVersion};
use boring::x509::X509Name;
use qmux_config::{Client, Server, ServerAuth};

/// Separates the session contexts of the two ways of authentication.
const SESSION_CONTEXT_MTLS: &[u8] = b"qmux-dp/1 mtls";
const SESSION_CONTEXT_TOKEN: &[u8] = b"qmux-dp/1 token";

/// How long a session may be resumed after the last handshake: two days, BoringSSL's default. Resumed again and again
/// it ends a week after the last certificate was shown (`SSL_DEFAULT_SESSION_AUTH_TIMEOUT`), and long before that when
/// the keys of its tickets are gone.
const SESSION_LIFETIME_SECONDS: u32 = 2 * 24 * 60 * 60;

/// A certificate, key or CA file that TLS refused.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}: {why}")]
pub(crate) struct TlsError {
    path: String,
    what: &'static str,
    why: String,
}

fn failed<E: std::fmt::Display>(path: &Path, what: &'static str) -> impl FnOnce(E) -> TlsError {
    let path = path.display().to_string();
    move |error| TlsError {
        path,
        what,
        why: error.to_string(),
    }
}

fn base() -> Result<SslContextBuilder, TlsError> {
    let in_memory = Path::new("(TLS context)");
    let mut tls =
        SslContextBuilder::new(SslMethod::tls()).map_err(failed(in_memory, "cannot be created"))?;
    tls.set_min_proto_version(Some(SslVersion::TLS1_3))
        .map_err(failed(in_memory, "refuses TLS 1.3"))?;
    Ok(tls)
}

fn load_pair(tls: &mut SslContextBuilder, cert: &Path, key: &Path) -> Result<(), TlsError> {
    tls.set_certificate_chain_file(cert)
        .map_err(failed(cert, "is no usable certificate chain"))?;
    tls.set_private_key_file(key, SslFiletype::PEM)
        .map_err(failed(key, "is no usable private key"))?;
    tls.check_private_key()
        .map_err(failed(key, "does not belong to the certificate"))
}

/// The server's context.
pub(crate) fn server(server: &Server) -> Result<SslContextBuilder, TlsError> {
    let mut tls = base()?;
    load_pair(
        &mut tls,
        &server.tls.server_cert_file,
        &server.tls.server_key_file,
    )?;
    if let ServerAuth::Mtls { ca_cert_file } = &server.auth {
        tls.set_ca_file(ca_cert_file)
            .map_err(failed(ca_cert_file, "is no usable CA certificate"))?;
        let names = X509Name::load_client_ca_file(ca_cert_file);
        tls.set_client_ca_list(names.map_err(failed(ca_cert_file, "names no CA"))?);
        tls.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    }
    let context = Path::new("(session tickets)");
    tls.set_session_id_context(&session_context(&server.auth)?)
        .map_err(failed(context, "session id context"))?;
    crate::sys::tls::set_session_lifetime(&mut tls, SESSION_LIFETIME_SECONDS);
    Ok(tls)
}

/// What a session must have been made under to be resumed: the same way of authentication, with the same CAs. Others
/// are full handshakes, in which a client has to show what is asked for now.
fn session_context(auth: &ServerAuth) -> Result<[u8; 32], TlsError> {
    let mut digest = Sha256::new();
    match auth {
        ServerAuth::Mtls { ca_cert_file } => {
            let cas =
                std::fs::read(ca_cert_file).map_err(failed(ca_cert_file, "cannot be read"))?;
            digest.update(SESSION_CONTEXT_MTLS);
            digest.update(&cas);
        }
        ServerAuth::Token { .. } => digest.update(SESSION_CONTEXT_TOKEN),
    }
    Ok(digest.finish())
}

/// True if the handshake went on from an earlier session whose certificates nobody has looked at this time.
pub(crate) fn is_resumed(ssl: &SslRef) -> bool {
    ssl.session_reused()
}

/// Checks the certificate of a resumed session's peer as a full handshake would now: chain, validity, purpose, name.
pub(crate) fn check_resumed_peer(
    ssl: &SslRef,
    we_are_server: bool,
) -> Result<(), crate::sys::tls::PeerRefused> {
    crate::sys::tls::check_peer_again(ssl, we_are_server)
}

/// The client's context.
pub(crate) fn client(client: &Client) -> Result<SslContextBuilder, TlsError> {
    let mut tls = base()?;
    let ca = &client.tls.ca_cert_file;
    tls.set_ca_file(ca)
        .map_err(failed(ca, "is no usable CA certificate"))?;
    tls.set_verify(SslVerifyMode::PEER);
    if let Some(pair) = &client.tls.client_cert {
        load_pair(&mut tls, &pair.cert_file, &pair.key_file)?;
    }
    Ok(tls)
}

/// Makes a client's connection check the server's certificate against an IP address. (A DNS name is passed to quiche,
/// which checks it and sends it as SNI; an address may not be sent as SNI, RFC 6066 section 3.)
pub(crate) fn expect_server_ip(ssl: &mut SslRef, ip: IpAddr) -> Result<(), ErrorStack> {
    ssl.verify_param_mut().set_ip(ip)
}
