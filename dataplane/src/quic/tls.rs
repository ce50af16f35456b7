//! TLS contexts on boring: who must show which certificate, and what is checked of it.
//!
//! `quiche::Config::verify_peer` alone would let clients in without a certificate. A server therefore builds its own
//! context: mTLS requires a certificate, and boring checks the chain to `ca_cert_file`, the validity period and the
//! purpose (extended key usage `clientAuth`). A client checks the chain, the purpose `serverAuth` and the server's name.

use std::net::IpAddr;
use std::path::Path;

use boring::error::ErrorStack;
use boring::ssl::{SslContextBuilder, SslFiletype, SslMethod, SslRef, SslVerifyMode, SslVersion};
use boring::x509::X509Name;
use qmux_config::{Client, Server, ServerAuth};

/// Tells sessions of this program from others' when they are resumed with client certificates.
const SESSION_ID_CONTEXT: &[u8] = b"qmux-dp";

/// A certificate, key or CA file that TLS refused.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}: {source}")]
pub(crate) struct TlsError {
    path: String,
    what: &'static str,
    source: ErrorStack,
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(ErrorStack) -> TlsError {
    let path = path.display().to_string();
    move |source| TlsError { path, what, source }
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
    tls.set_session_id_context(SESSION_ID_CONTEXT)
        .map_err(failed(context, "session id context"))?;
    Ok(tls)
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
