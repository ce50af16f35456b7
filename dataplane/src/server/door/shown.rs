//! What a door's endpoints show to clients, and what they check clients' certificates against. Both
//! are made from the settings as a whole, and made anew when the settings differ.

use boring::ssl::SslContext;

use super::Door;
use crate::quic::sessions::Identity;
use crate::quic::{settings, tls};
use crate::server::shared::ServerSettings;

/// The digests that tell whether endpoints have to be configured anew.
pub(super) fn by(settings: &ServerSettings) -> (Identity, Identity) {
    let credentials = &settings.credentials;
    (credentials.shown, credentials.trusted)
}

impl Door {
    /// The transport configuration for lanes that begin from now on.
    pub(super) fn transport(&self, settings: &ServerSettings) -> Result<quiche::Config, String> {
        let mut tls = tls::server_with(&settings.credentials).map_err(|it| it.to_string())?;
        self.shared
            .ticket_keys
            .serve(&mut tls, &self.context.counters);
        settings::transport(&settings.config.quic, tls).map_err(|error| error.to_string())
    }

    /// Gives the endpoints the credentials of these settings, if they differ. If that fails,
    /// although it was tried before the settings came into force, the endpoints stay as they are
    /// until the next change.
    pub(super) fn show(&self, settings: &ServerSettings) {
        // Unchanged credentials keep the TLS context with its sessions, and cost nothing.
        if self.shows.get() == by(settings) {
            return;
        }
        match self.made_of(settings) {
            Ok((transports, carrier)) => {
                for (endpoint, transport) in self.endpoints().iter().zip(transports) {
                    endpoint.configure(transport);
                    endpoint.show_over_tls(carrier.clone());
                }
                self.shows.set(by(settings));
            }
            Err(why) => {
                self.counters().internal_errors.increment();
                tracing::error!(why, "the door goes on with the certificates of before");
            }
        }
    }

    /// A transport configuration for each endpoint, and the TLS context that all of them use for
    /// TLS over TCP.
    fn made_of(
        &self,
        settings: &ServerSettings,
    ) -> Result<(Vec<quiche::Config>, SslContext), String> {
        let transports = self.endpoints().iter().map(|_| self.transport(settings));
        let carrier = tls::carrier_server(&settings.credentials);
        Ok((
            transports.collect::<Result<_, _>>()?,
            carrier.map_err(|error| error.to_string())?,
        ))
    }
}
