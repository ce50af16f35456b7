//! What a door's endpoints show to clients, and what they hold clients' certificates against: made
//! from the settings, whole, and made anew when these have others.

use boring::ssl::SslContext;

use super::Door;
use crate::quic::sessions::Identity;
use crate::quic::{settings, tls};
use crate::server::shared::ServerSettings;

/// What tells whether endpoints have to be configured anew.
pub(super) fn by(settings: &ServerSettings) -> (Identity, Identity) {
    let credentials = &settings.credentials;
    (credentials.shown, credentials.trusted)
}

impl Door {
    /// The transport of lanes that begin from now on.
    pub(super) fn transport(&self, settings: &ServerSettings) -> Result<quiche::Config, String> {
        let mut tls = tls::server_with(&settings.credentials).map_err(|it| it.to_string())?;
        self.shared
            .ticket_keys
            .serve(&mut tls, &self.context.counters);
        settings::transport(&settings.config.quic, tls).map_err(|error| error.to_string())
    }

    /// Endpoints show what is in these settings, if that is something else. If it cannot be had,
    /// which was tried before they became those of now, all stays as it is until the next time.
    pub(super) fn show(&self, settings: &ServerSettings) {
        // What has not changed keeps its sessions' context, and costs nothing.
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

    /// A transport for each endpoint, and what all show over TLS.
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
