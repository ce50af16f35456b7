//! TLS contexts on rustls: mutual authentication, TLS 1.3, the ALPN of the protocol.
//!
//! A server requires a client certificate that one of its CAs issued; a client checks the chain and
//! the name of the server's certificate.

use std::sync::Arc;

use qmux_config::{Client, FileOrText, Server, ServerAuth};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, crypto::CryptoProvider};

use crate::start_error::StartError;

/// The server's side of TLS.
pub(crate) fn server(server: &Server) -> Result<QuicServerConfig, StartError> {
    let ServerAuth::Mtls { ca_cert, crl: None } = &server.auth else {
        return Err(StartError::TokenAuth);
    };
    let (cert, private) = (&server.tls.server_cert, &server.tls.server_key);
    let roots = Arc::new(roots(ca_cert)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(failed(ca_cert, "is no usable CA certificate"))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed(cert, "TLS 1.3 is not available"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(cert)?, key(private)?)
        .map_err(failed(cert, "is no usable certificate"))?;
    tls.alpn_protocols = vec![qmux_proto::ALPN.to_vec()];
    QuicServerConfig::try_from(tls).map_err(failed(cert, "is not usable for QUIC"))
}

/// The client's side of TLS.
pub(crate) fn client(client: &Client) -> Result<QuicClientConfig, StartError> {
    let ca_cert = &client.tls.ca_cert;
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed(ca_cert, "TLS 1.3 is not available"))?
        .with_root_certificates(roots(ca_cert)?);
    let mut tls = match &client.tls.client_cert {
        Some(pair) => builder
            .with_client_auth_cert(chain(&pair.cert)?, key(&pair.key)?)
            .map_err(failed(&pair.cert, "is no usable certificate"))?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![qmux_proto::ALPN.to_vec()];
    QuicClientConfig::try_from(tls).map_err(failed(ca_cert, "is not usable for QUIC"))
}

/// The server's private key, for what else is derived from it.
pub(crate) fn server_key(server: &Server) -> Result<PrivateKeyDer<'static>, StartError> {
    key(&server.tls.server_key)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(source: &FileOrText) -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    for cert in chain(source)? {
        roots
            .add(cert)
            .map_err(failed(source, "is no usable CA certificate"))?;
    }
    Ok(roots)
}

fn chain(source: &FileOrText) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let pem = source
        .read_pem()
        .map_err(failed(source, "cannot be used"))?;
    CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(failed(source, "holds no certificates in PEM form"))
}

fn key(source: &FileOrText) -> Result<PrivateKeyDer<'static>, StartError> {
    let pem = source
        .read_pem()
        .map_err(failed(source, "cannot be used"))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(failed(source, "holds no private key in PEM form"))
}

fn failed<E: ToString>(source: &FileOrText, what: &'static str) -> impl FnOnce(E) -> StartError {
    let source = source.to_string();
    move |error| StartError::Certificate {
        from: source,
        what,
        reason: error.to_string(),
    }
}
