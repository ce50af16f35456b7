//! QMux's `server.yaml`.

use std::time::Duration;

use super::carry;
use super::draft::Draft;
use super::go;
use super::quic::Settings;
use super::yaml::Mapping;
use crate::server::{TICKET_KEY_ROTATION_INTERVAL_MAX, TICKET_KEY_ROTATION_OVERLAP_MAX};
use crate::units;

/// Writes the TOML of a server.
pub(super) fn carry(mut root: Mapping<'_>, draft: &mut Draft) {
    draft.needed_section("[server]");
    carry::string(&mut root, "load_balancer", draft);
    carry::timing(&mut root, draft);
    let mut quic: Option<Settings> = None;
    let mut udp = Vec::new();
    for mut listener in root.mappings("listeners", &mut draft.notes) {
        draft.needed_section("[[server.listeners]]");
        carry::listen(&mut listener, "quic_addr", "quic_addr", draft);
        carry::listen(&mut listener, "traffic_addr", "traffic_addr", draft);
        carry::string(&mut listener, "protocol", draft);
        carry::capacity(&mut listener, draft);
        let settings = Settings::take(&mut listener, draft);
        match &mut quic {
            Some(first) => first.merge(settings, draft),
            None => quic = Some(settings),
        }
        udp.push(listener.mapping("udp", &mut draft.notes));
        listener.finish(&mut draft.notes);
    }
    carry_auth(root.mapping("auth", &mut draft.notes), draft);
    carry_tls(root.mapping("tls", &mut draft.notes), draft);
    quic.unwrap_or_default().write(draft);
    carry::udp(udp, draft);
    carry::admin(&mut root, draft);
    root.finish(&mut draft.notes);
}

fn carry_auth(mut auth: Mapping<'_>, draft: &mut Draft) {
    draft.section("[server.auth]");
    let method = carry::string(&mut auth, "method", draft);
    let with_token = method.is_some_and(|method| method.text == "token");
    if with_token {
        carry::string(&mut auth, "token", draft);
        auth.note_rest(
            "is not used with method token; it was left out",
            &mut draft.notes,
        );
        return;
    }
    carry::file(&mut auth, "ca_cert_file", draft);
    if let Some(token) = auth.scalar("token", &mut draft.notes)
        && !token.text.is_empty()
    {
        draft
            .notes
            .push(token.note("is not used with method mtls; it was left out"));
    }
    auth.finish(&mut draft.notes);
}

fn carry_tls(mut tls: Mapping<'_>, draft: &mut Draft) {
    draft.section("[server.tls]");
    carry::file(&mut tls, "server_cert_file", draft);
    carry::file(&mut tls, "server_key_file", draft);
    let interval_key = "session_ticket_encryption_key_rotation_interval";
    if let Some(scalar) = tls.scalar(interval_key, &mut draft.notes) {
        match go::duration(&scalar.text) {
            // Zero turns rotation off, here as in QMux.
            Some(Duration::ZERO) => draft.duration(interval_key, Duration::ZERO),
            Some(interval) => {
                let range = (Duration::from_secs(1), TICKET_KEY_ROTATION_INTERVAL_MAX);
                let interval =
                    carry::clamped(&scalar, interval, range, units::format_duration, draft);
                draft.duration(interval_key, interval);
            }
            None => draft
                .notes
                .push(scalar.note("is no duration; it was left out")),
        }
    }
    let overlap_key = "session_ticket_encryption_key_rotation_overlap";
    if let Some((scalar, overlap)) = carry::number(&mut tls, overlap_key, draft) {
        let range = (0, u64::from(TICKET_KEY_ROTATION_OVERLAP_MAX));
        let overlap = carry::clamped(&scalar, overlap, range, |it| it.to_string(), draft);
        draft.plain(overlap_key, overlap);
    }
    tls.finish(&mut draft.notes);
}
