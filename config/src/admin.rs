//! `[admin]`: the endpoint for health checks and metrics.

use std::net::SocketAddr;

use crate::address;
use crate::conflicts::Claims;
use crate::section::Section;

/// The admin endpoint; without this section there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens (TCP).
    pub listen: SocketAddr,
}

impl Admin {
    /// Reads the section, and notes in `claims` the address that it will bind.
    pub(crate) fn read(section: Section<'_>, claims: &mut Claims) -> Option<Self> {
        if !section.is_present() {
            return None;
        }
        let listen = address::required_listen(&section, "listen");
        if let Some(listen) = &listen {
            claims.tcp(&section, "listen", listen);
        }
        if let Some(listen) = &listen
            && !listen.get_ref().ip().is_loopback()
        {
            section.report().warning(
                &section.key("listen"),
                &listen.span(),
                "whoever can reach this address can read the metrics: the admin endpoint has no \
                 authentication",
            );
        }
        section.finish();
        Some(Self {
            listen: listen?.into_inner(),
        })
    }
}
