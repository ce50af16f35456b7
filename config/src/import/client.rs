//! QMux's `client.yaml`.

use super::carry;
use super::draft::Draft;
use super::quic::Settings;
use super::yaml::{Mapping, Scalar};

/// Writes the TOML of a client.
pub(super) fn carry(mut root: Mapping<'_>, draft: &mut Draft) {
    draft.needed_section("[client]");
    carry::string(&mut root, "client_id", draft);
    carry::timing(&mut root, draft);
    let mut server = root.mapping("server", &mut draft.notes);
    carry_servers(server.mappings("servers", &mut draft.notes), draft);
    server.finish(&mut draft.notes);
    carry_local(root.mapping("local", &mut draft.notes), draft);
    let with_token = carry_auth(root.mapping("auth", &mut draft.notes), draft);
    carry_tls(root.mapping("tls", &mut draft.notes), with_token, draft);
    let mut quic = root.mapping("quic", &mut draft.notes);
    let settings = Settings::take(&mut quic, draft);
    quic.finish(&mut draft.notes);
    settings.write(draft);
    let udp = root.mapping("udp", &mut draft.notes);
    carry::udp(vec![udp], draft);
    carry::capacity(&mut root, draft);
    carry::admin(&mut root, draft);
    if let Some(size) = root.scalar("tcp_copy_buffer_size", &mut draft.notes) {
        draft
            .notes
            .push(size.note("has no counterpart: nothing is copied there"));
    }
    root.finish(&mut draft.notes);
}

fn carry_servers(servers: Vec<Mapping<'_>>, draft: &mut Draft) {
    let mut seen: Vec<Scalar> = Vec::new();
    for mut server in servers {
        let Some(address) = server.scalar("address", &mut draft.notes) else {
            server.note_rest(
                "belongs to a server without an address; it was left out",
                &mut draft.notes,
            );
            continue;
        };
        if seen
            .iter()
            .any(|earlier| earlier.text.eq_ignore_ascii_case(&address.text))
        {
            draft
                .notes
                .push(address.note("is there twice; QMux drops the second one, and so did this"));
            continue;
        }
        draft.needed_section("[[client.servers]]");
        draft.string("address", &address.text);
        carry::string(&mut server, "server_name", draft);
        server.finish(&mut draft.notes);
        seen.push(address);
    }
}

fn carry_local(mut local: Mapping<'_>, draft: &mut Draft) {
    draft.section("[client.local]");
    let host = carry::string(&mut local, "host", draft);
    let port = carry::number(&mut local, "port", draft);
    if let (None, Some((port, _))) = (&host, &port) {
        draft.string("host", "127.0.0.1");
        draft
            .notes
            .push(port.note("has no host beside it; it became 127.0.0.1"));
    }
    if let Some((_, port)) = port {
        draft.plain("port", port);
    }
    local.finish(&mut draft.notes);
}

/// Whether the client identifies itself by a token.
fn carry_auth(mut auth: Mapping<'_>, draft: &mut Draft) -> bool {
    draft.section("[client.auth]");
    let method = auth.scalar("method", &mut draft.notes);
    let with_token = method.as_ref().is_some_and(|method| method.text == "token");
    if let Some(method) = &method
        && !matches!(method.text.as_str(), "" | "mtls" | "token")
    {
        let message = format!(
            "{:?} is neither mtls nor token; it was left out",
            method.text
        );
        draft.notes.push(method.note(message));
    }
    if with_token {
        carry::string(&mut auth, "token", draft);
    } else if let Some(token) = auth.scalar("token", &mut draft.notes)
        && !token.text.is_empty()
    {
        draft
            .notes
            .push(token.note("is not used with method mtls; it was left out"));
    }
    auth.finish(&mut draft.notes);
    with_token
}

fn carry_tls(mut tls: Mapping<'_>, with_token: bool, draft: &mut Draft) {
    draft.section("[client.tls]");
    carry::file(&mut tls, "ca_cert_file", draft);
    for key in ["client_cert_file", "client_key_file"] {
        if !with_token {
            carry::file(&mut tls, key, draft);
        } else if let Some(scalar) = tls.scalar(key, &mut draft.notes)
            && !scalar.text.is_empty()
        {
            draft
                .notes
                .push(scalar.note("is not used with method token; it was left out"));
        }
    }
    tls.finish(&mut draft.notes);
}
