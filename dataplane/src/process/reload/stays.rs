//! What stays as it is although the text of the config file says something else: roles whose
//! section was removed, and what only a start takes up.

use qmux_config::{Client, Config, Server};

use super::Reloader;
use super::texts::Roles;

impl Reloader {
    /// Adds the section of a role that goes on although the text has none. It is read from the last
    /// text that had one, because the files that it names may change. If that text cannot be used
    /// any more, which may be caused by other parts of it, the role goes on as it is; such roles
    /// are returned.
    pub(super) fn with_sections_that_stay(&self, mut wanted: Config) -> (Config, Roles) {
        let now = self.config.load();
        let mut as_they_are = Roles::default();
        if now.server.is_some() && wanted.server.is_none() {
            let last = self.last_text(self.texts.of_server(), "[server]", &mut wanted);
            wanted.server = last.and_then(|last| last.server);
            as_they_are.server = wanted.server.is_none();
        }
        if now.client.is_some() && wanted.client.is_none() {
            let last = self.last_text(self.texts.of_client(), "[client]", &mut wanted);
            wanted.client = last.and_then(|last| last.client);
            as_they_are.client = wanted.client.is_none();
        }
        if as_they_are.server {
            wanted.server.clone_from(&now.server);
        }
        if as_they_are.client {
            wanted.client.clone_from(&now.client);
        }
        if as_they_are.server || as_they_are.client {
            wanted.files.extend(now.files.iter().cloned());
        }
        wanted.files.sort_unstable();
        wanted.files.dedup();
        (wanted, as_they_are)
    }

    /// The configuration of the last text with a section that is gone. If it cannot be used,
    /// `wanted` gets a warning.
    fn last_text(&self, text: &str, section: &str, wanted: &mut Config) -> Option<Config> {
        match self.read(text) {
            Ok(last) => {
                wanted.files.extend(last.files.iter().cloned());
                Some(last)
            }
            Err(why) => {
                wanted.warnings.push(format!(
                    "{section} was removed, and this role goes on as it is until a restart; the \
                     last text that had it cannot be used any more, so changes of the files that \
                     it names are not taken up: {why}"
                ));
                None
            }
        }
    }

    /// The configuration in which everything that only a start takes up is as it was at the start.
    pub(super) fn with_what_stays(&self, wanted: Config) -> Config {
        let now = self.config.load();
        let server = match (&now.server, wanted.server) {
            (Some(now), Some(wanted)) => Some(server_with_what_stays(now, wanted)),
            (now, _) => now.clone(),
        };
        let client = match (&now.client, wanted.client) {
            (Some(now), Some(wanted)) => Some(Client {
                client_id: now.client_id.clone(),
                state_dir: now.state_dir.clone(),
                resolve_interval: now.resolve_interval,
                ..wanted
            }),
            (now, _) => now.clone(),
        };
        let mut limits = wanted.limits;
        limits.descriptors_reserved = now.limits.descriptors_reserved;
        Config {
            server,
            client,
            quic: now.quic.clone(),
            udp: now.udp.clone(),
            admin: now.admin.clone(),
            limits,
            ..wanted
        }
    }
}

fn server_with_what_stays(now: &Server, wanted: Server) -> Server {
    let mut tls = now.tls.clone();
    tls.server_cert = wanted.tls.server_cert;
    tls.server_key = wanted.tls.server_key;
    Server { tls, ..wanted }
}
