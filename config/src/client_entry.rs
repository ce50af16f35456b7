//! `[[server.clients]]`: the clients, and the services that each may serve.

use std::collections::HashMap;

use toml::Spanned;

use crate::certificate_names::{FINGERPRINT_BYTES, parse_fingerprint};
use crate::client::CLIENT_ID_BYTES_MAX;
use crate::door::Door;
use crate::secret::Secret;
use crate::section::Section;
use crate::server::ServerAuth;
use crate::service_name::ServicePattern;

/// The most entries by certificate: each is one look-up, however many there are, and a name in
/// metrics.
const CERTIFICATE_ENTRIES_MAX: usize = 4_096;
/// The most entries by token: a proof is tried against every one, which takes a microsecond each,
/// so that one attempt costs no more than a handshake does.
const TOKEN_ENTRIES_MAX: usize = 512;
/// The most patterns of one entry: twice the services that a client may offer.
const PATTERNS_MAX: usize = 128;

const NAME_FORM: &str = "1 to 253 bytes without control characters";
const CERTIFICATE_FORM: &str =
    "the common name of a client's certificate, or a DNS or URI name of it";
const FINGERPRINT_FORM: &str = "\"sha256:\" and 64 hexadecimal digits, as from: openssl x509 -noout \
     -fingerprint -sha256 -in client.crt";
const SERVICES_FORM: &str = "a list of names and patterns of services, as in [\"web\", \
    \"ssh-*\"]; \"\" is the service without a name";

/// The kind of proof by which a client is identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Certificate,
    Token,
}

/// The proof by which a client is identified as the one of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The client's certificate has this common name, DNS name or URI name.
    Certificate(String),
    /// The client's certificate has this SHA-256.
    Fingerprint([u8; FINGERPRINT_BYTES]),
    /// The client knows this secret.
    Token(Secret),
}

/// A client that may serve some services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEntry {
    /// The client's name in logs and metrics; no two entries have the same.
    pub name: String,
    /// The proof by which it is identified; no two entries have the same.
    pub proof: Proof,
    /// The services that it may serve.
    pub services: Vec<ServicePattern>,
}

impl ClientEntry {
    /// Whether the client may serve the service of this name; the empty name is that of the service
    /// without a name.
    #[must_use]
    pub fn may_serve(&self, service: &str) -> bool {
        self.services.iter().any(|it| it.matches(service))
    }
}

/// An entry, and where its patterns stand.
pub(crate) struct Read {
    pub(crate) entry: ClientEntry,
    section_key: String,
    patterns: Vec<Spanned<()>>,
}

/// The names and proofs of earlier entries, each with its line.
#[derive(Default)]
struct Seen {
    names: HashMap<String, usize>,
    certificates: HashMap<String, usize>,
    fingerprints: HashMap<[u8; FINGERPRINT_BYTES], usize>,
    tokens: HashMap<Vec<u8>, usize>,
}

/// Reads all entries. `kind` is the one that fits the method, if that is known; `shared` is the
/// token of `[server.auth]`, if it counts.
pub(crate) fn read_all(
    server: &Section<'_>,
    kind: Option<Kind>,
    shared: Option<&Spanned<Secret>>,
) -> Vec<Read> {
    let tables = server.tables("clients");
    if tables.is_empty() {
        server.refuse_empty_array(
            "clients",
            "at least one [[server.clients]], or left out so that every authenticated client may \
             serve everything",
        );
    }
    let most = match kind {
        Some(Kind::Token) => TOKEN_ENTRIES_MAX,
        _ => CERTIFICATE_ENTRIES_MAX,
    };
    if let Some(surplus) = tables.get(most) {
        surplus.problem(format!("is one too many; there may be {most} clients"));
    }
    let mut seen = Seen::default();
    if let Some(shared) = shared {
        let line = server.report().line(&shared.span());
        let token = shared.get_ref().expose().to_vec();
        seen.tokens.insert(token, line);
    }
    tables
        .into_iter()
        .take(most)
        .filter_map(|table| read(table, kind, &mut seen))
        .collect()
}

fn read(section: Section<'_>, kind: Option<Kind>, seen: &mut Seen) -> Option<Read> {
    let name = read_name(&section, seen);
    let proof = read_proof(&section, kind, seen);
    let patterns = read_patterns(&section);
    let section_key = section.key("services");
    section.finish();
    let (services, places) = patterns?.into_iter().unzip();
    Some(Read {
        entry: ClientEntry {
            name: name?,
            proof: proof?,
            services,
        },
        section_key,
        patterns: places,
    })
}

fn read_name(section: &Section<'_>, seen: &mut Seen) -> Option<String> {
    let key = "name";
    section.require(key, NAME_FORM);
    let name = section.string(key, NAME_FORM)?;
    let text = *name.get_ref();
    if !(1..=CLIENT_ID_BYTES_MAX).contains(&text.len()) || text.chars().any(char::is_control) {
        section.problem_at(key, &name.span(), format!("must be {NAME_FORM}"));
        return None;
    }
    let text = text.to_owned();
    refuse_second(section, key, &name, text.clone(), &mut seen.names, "name");
    Some(text)
}

/// Reports what an earlier entry has as well. `what` says what that is, without its value, which
/// may be a secret.
fn refuse_second<K: std::hash::Hash + Eq, T>(
    section: &Section<'_>,
    key: &'static str,
    place: &Spanned<T>,
    value: K,
    seen: &mut HashMap<K, usize>,
    what: &str,
) {
    let line = section.report().line(&place.span());
    if let Some(earlier) = seen.insert(value, line) {
        let message = format!(
            "is the {what} of line {earlier} again; each client must have a {what} of its own"
        );
        section.problem_at(key, &place.span(), message);
    }
}

/// Reads the one key by which the client is identified.
fn read_proof(section: &Section<'_>, kind: Option<Kind>, seen: &mut Seen) -> Option<Proof> {
    let keys = ["certificate", "fingerprint", "token", "token_file"];
    let present: Vec<&'static str> = keys.into_iter().filter(|key| section.has(key)).collect();
    let allowed = match kind {
        Some(Kind::Certificate) => "certificate or fingerprint",
        Some(Kind::Token) => "token or token_file",
        None => "certificate, fingerprint, token or token_file",
    };
    let [key] = present[..] else {
        section.problem(match present.len() {
            0 => format!("says not by what the client is known; it must have {allowed}"),
            _ => format!("has {}; it must have one of them", present.join(" and ")),
        });
        return None;
    };
    let fits = match kind {
        Some(Kind::Certificate) => matches!(key, "certificate" | "fingerprint"),
        Some(Kind::Token) => matches!(key, "token" | "token_file"),
        None => true,
    };
    if !fits {
        let method = match kind {
            Some(Kind::Token) => "token",
            _ => "mtls",
        };
        let span = section.any(key).map(Spanned::span).unwrap_or_default();
        let message =
            format!("does not fit method = {method:?} of [server.auth]; it must be {allowed}");
        section.problem_at(key, &span, message);
        return None;
    }
    match key {
        "certificate" => read_certificate(section, seen),
        "fingerprint" => read_fingerprint(section, seen),
        key => {
            let token = Secret::read(section)?;
            let value = token.get_ref().expose().to_vec();
            refuse_second(section, key, &token, value, &mut seen.tokens, "token");
            Some(Proof::Token(token.into_inner()))
        }
    }
}

fn read_certificate(section: &Section<'_>, seen: &mut Seen) -> Option<Proof> {
    let key = "certificate";
    let name = section.filled_string(key, CERTIFICATE_FORM)?;
    // DNS names do not depend on case, so two names that differ by case alone could both mean one
    // certificate.
    let plain = name.get_ref().to_ascii_lowercase();
    let what = "certificate name";
    refuse_second(section, key, &name, plain, &mut seen.certificates, what);
    Some(Proof::Certificate((*name.get_ref()).to_owned()))
}

fn read_fingerprint(section: &Section<'_>, seen: &mut Seen) -> Option<Proof> {
    let key = "fingerprint";
    let text = section.filled_string(key, FINGERPRINT_FORM)?;
    let Some(fingerprint) = parse_fingerprint(text.get_ref()) else {
        let message = format!(
            "{:?} is no fingerprint; it must be {FINGERPRINT_FORM}",
            text.get_ref()
        );
        section.problem_at(key, &text.span(), message);
        return None;
    };
    let seen = &mut seen.fingerprints;
    refuse_second(section, key, &text, fingerprint, seen, "fingerprint");
    Some(Proof::Fingerprint(fingerprint))
}

fn read_patterns(section: &Section<'_>) -> Option<Vec<(ServicePattern, Spanned<()>)>> {
    let key = "services";
    section.require(key, SERVICES_FORM);
    let texts = section.strings(key, SERVICES_FORM)?;
    section.refuse_empty_array(key, SERVICES_FORM);
    if texts.get_ref().len() > PATTERNS_MAX {
        let message = format!("is too long a list; it must have {PATTERNS_MAX} at most");
        section.problem_at(key, &texts.span(), message);
        return None;
    }
    let mut patterns = Vec::new();
    for text in texts.into_inner() {
        match ServicePattern::parse(text.get_ref()) {
            Ok(pattern) => patterns.push((pattern, Spanned::new(text.span(), ()))),
            Err(message) => section.problem_at(key, &text.span(), message),
        }
    }
    Some(patterns)
}

/// Warns of services that no client may serve, and of patterns that match no service.
pub(crate) fn warn_of_misfits(
    server: &Section<'_>,
    doors: &[Door],
    entries: &[Read],
    auth: Option<&ServerAuth>,
) {
    if entries.is_empty() {
        return;
    }
    let report = server.report();
    let mut names: Vec<&str> = doors
        .iter()
        .flat_map(|door| &door.services)
        .map(|service| service.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    for read in entries {
        for (pattern, place) in read.entry.services.iter().zip(&read.patterns) {
            if !names.iter().any(|name| pattern.matches(name)) {
                let message = match pattern.as_str() {
                    "" => "\"\" is the service without a name, and there are no \
                           [[server.listeners]] with one"
                        .to_owned(),
                    pattern => format!("{pattern:?} stands for no service of this server"),
                };
                report.warning(&read.section_key, &place.span(), &message);
            }
        }
    }
    let by_shared_token = matches!(auth, Some(ServerAuth::Token { token: Some(_) }));
    for name in names {
        let is_served = entries.iter().any(|read| read.entry.may_serve(name));
        if is_served || (name.is_empty() && by_shared_token) {
            continue;
        }
        let (key, message) = if name.is_empty() {
            (
                "listeners",
                "no client may serve these: no [[server.clients]] has \"\" in its services"
                    .to_owned(),
            )
        } else {
            (
                "services",
                format!(
                    "no client may serve {name:?}: no [[server.clients]] has it in its services"
                ),
            )
        };
        if let Some(value) = server.any(key) {
            report.warning(&server.key(key), &value.span(), &message);
        }
    }
}
