//! The differences between two texts of a config file, key by key, and which of them a running
//! process takes up.
//!
//! The result is for people: the keys are those of the file, entries are called by their names, and
//! secrets are not shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::Value;

/// The keys whose change a running process takes up, with all keys below them.
const TAKEN_UP: &[&str] = &[
    "server.load_balancer",
    "server.heartbeat_interval",
    "server.health_timeout",
    "server.drain_timeout",
    "server.access_log",
    "server.services",
    "server.clients",
    "server.listeners",
    "server.quic_addr",
    "server.auth",
    "server.tls.server_cert_file",
    "server.tls.server_cert",
    "server.tls.server_key_file",
    "server.tls.server_key",
    "client.lanes",
    "client.servers",
    "client.local",
    "client.services",
    "client.auth",
    "client.tls",
    "client.heartbeat_interval",
    "client.health_timeout",
    "client.drain_timeout",
    "client.probe_interval",
    "limits.memory",
    "limits.stall_timeout",
];

/// The keys that name an entry of an array of tables.
const NAMES: [&str; 3] = ["name", "address", "quic_addr"];

/// The longest value that is shown whole, in bytes.
const SHOWN_BYTES_MAX: usize = 80;

/// One key that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The full name of the key.
    pub key: String,
    before: Option<String>,
    after: Option<String>,
}

impl Change {
    /// Whether a running process takes the change up.
    #[must_use]
    pub fn is_taken_up(&self) -> bool {
        TAKEN_UP.iter().any(|known| {
            let rest = self.key.strip_prefix(known);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { key, before, after } = self;
        match (before, after) {
            (Some(before), Some(after)) if before == after => write!(f, "{key}: another value"),
            (Some(before), Some(after)) => write!(f, "{key}: {before} -> {after}"),
            (None, Some(after)) => write!(f, "{key}: added, {after}"),
            (Some(before), None) => write!(f, "{key}: removed, it was {before}"),
            (None, None) => write!(f, "{key}"),
        }
    }
}

/// The differences between two texts, each a config that has been found valid.
#[must_use]
pub fn changes_between(before: &str, after: &str) -> Vec<Change> {
    let (before, after) = (leaves(before), leaves(after));
    let mut changes = Vec::new();
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let (old, new) = (before.get(key), after.get(key));
        if old != new {
            changes.push(Change {
                key: key.clone(),
                before: old.map(|value| shown(key, value)),
                after: new.map(|value| shown(key, value)),
            });
        }
    }
    changes
}

fn leaves(text: &str) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    // The text has been read before, so it is valid TOML.
    if let Ok(table) = text.parse::<toml::Table>() {
        for (key, value) in table {
            walk(key, value, &mut leaves);
        }
    }
    leaves
}

fn walk(key: String, value: Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Table(table) => {
            for (below, value) in table {
                walk(format!("{key}.{below}"), value, leaves);
            }
        }
        Value::Array(entries) if entries.iter().all(Value::is_table) && !entries.is_empty() => {
            for (index, entry) in entries.into_iter().enumerate() {
                let named = NAMES.iter().find_map(|name| entry.get(name)?.as_str());
                let name = named.map_or_else(|| index.to_string(), str::to_owned);
                walk(format!("{key}[{name}]"), entry, leaves);
            }
        }
        value => {
            leaves.insert(key, value);
        }
    }
}

fn shown(key: &str, value: &Value) -> String {
    let last = key.rsplit('.').next().unwrap_or_default();
    let is_secret = matches!(
        last,
        "token" | "server_key" | "client_key" | "session_ticket_encryption_key" | "proxy"
    );
    let text = value.to_string();
    if is_secret || text.contains("-----BEGIN") {
        return "(not shown)".into();
    }
    if text.len() > SHOWN_BYTES_MAX {
        let mut end = SHOWN_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        return format!("{} …", &text[..end]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(before: &str, after: &str) -> Vec<String> {
        let changes = changes_between(before, after);
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn entries_are_called_by_their_names_wherever_they_stand() {
        let before = "[[server.services]]\nname = \"a\"\nmax_visitors = 1\n\
                      [[server.services]]\nname = \"b\"\n";
        let after = "[[server.services]]\nname = \"b\"\nrequired = true\n\
                     [[server.services]]\nname = \"a\"\nmax_visitors = 2\n";
        assert_eq!(
            lines(before, after),
            [
                "server.services[a].max_visitors: 1 -> 2",
                "server.services[b].required: added, true",
            ]
        );
        assert_eq!(lines(before, before), [] as [&str; 0]);
    }

    #[test]
    fn what_cannot_be_taken_up_is_told_apart() {
        let changes = changes_between(
            "[quic]\nallow_0rtt = true\n[server]\ndrain_timeout = \"1s\"\n",
            "[quic]\nallow_0rtt = false\n[server]\ndrain_timeout = \"2s\"\n",
        );
        let taken: Vec<_> = changes.iter().map(Change::is_taken_up).collect();
        assert_eq!(taken, [false, true]);
    }

    #[test]
    fn no_secret_is_shown() {
        let token = |token: &str| format!("[server.auth]\ntoken = \"{token}\"\n");
        let shown = lines(&token("0123456789abcdef"), &token("fedcba9876543210"));
        assert_eq!(shown, ["server.auth.token: another value"]);
        let key = "[client.tls]\nclient_key = \"-----BEGIN PRIVATE KEY-----\"\n";
        assert_eq!(
            lines("", key),
            ["client.tls.client_key: added, (not shown)"]
        );
    }
}
