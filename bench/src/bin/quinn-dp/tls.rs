//! TLS contexts on rustls: mutual authentication, TLS 1.3, the ALPN of the protocol.
//!
//! A server requires a client certificate that one of its CAs issued; a client checks the chain and the name of the
//! server's certificate.

use std::path::Path;
use std::sync::Arc;

use qmux_config::{Client, Server, ServerAuth};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, crypto::CryptoProvider};

use crate::start_error::StartError;

/// The server's side of TLS.
pub(crate) fn server(server: &Server) -> Result<QuicServerConfig, StartError> {
    let ServerAuth::Mtls { ca_cert_file } = &server.auth else {
        return Err(StartError::TokenAuth);
    };
    let (cert_file, key_file) = (&server.tls.server_cert_file, &server.tls.server_key_file);
    let roots = Arc::new(roots(ca_cert_file)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(failed(ca_cert_file, "is no usable CA certificate"))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed(cert_file, "TLS 1.3 is not available"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(cert_file)?, key(key_file)?)
        .map_err(failed(cert_file, "is no usable certificate"))?;
    tls.alpn_protocols = vec![qmux_proto::ALPN.to_vec()];
    QuicServerConfig::try_from(tls).map_err(failed(cert_file, "is not usable for QUIC"))
}

/// The client's side of TLS.
pub(crate) fn client(client: &Client) -> Result<QuicClientConfig, StartError> {
    let ca_cert_file = &client.tls.ca_cert_file;
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed(ca_cert_file, "TLS 1.3 is not available"))?
        .with_root_certificates(roots(ca_cert_file)?);
    let mut tls = match &client.tls.client_cert {
        Some(pair) => builder
            .with_client_auth_cert(chain(&pair.cert_file)?, key(&pair.key_file)?)
            .map_err(failed(&pair.cert_file, "is no usable certificate"))?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![qmux_proto::ALPN.to_vec()];
    QuicClientConfig::try_from(tls).map_err(failed(ca_cert_file, "is not usable for QUIC"))
}

/// The server's private key, for what else is derived from it.
pub(crate) fn server_key(server: &Server) -> Result<PrivateKeyDer<'static>, StartError> {
    key(&server.tls.server_key_file)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(path: &Path) -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    for cert in chain(path)? {
        roots
            .add(cert)
            .map_err(failed(path, "is no usable CA certificate"))?;
    }
    Ok(roots)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(failed(path, "is no PEM file with certificates"))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, StartError> {
    PrivateKeyDer::from_pem_file(path).map_err(failed(path, "is no PEM file with a private key"))
}

fn failed<E: ToString>(path: &Path, what: &'static str) -> impl FnOnce(E) -> StartError {
    let path = path.to_owned();
    move |error| StartError::Certificate {
        path,
        what,
        reason: error.to_string(),
    }
}
