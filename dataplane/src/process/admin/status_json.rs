//! `GET /status`: everything that operators see, as one JSON object.
//!
//! Counts and bytes are numbers and count from the process's start. Programs read it, so keys are
//! only ever added.

use std::time::Instant;

use serde_json::{Value, json};

use crate::client::ClientShared;
use crate::core::counters::CoreCounters;
use crate::process::certificates::{CertificateView, Kind};
use crate::process::logging;
use crate::process::status::Status;
use crate::server::ServerShared;
use crate::server::pool::views::{ClientView, ServiceView};

/// Parts of the names of counters that count refused visitors, dropped datagrams and the like.
const REFUSALS: [&str; 3] = ["_refused", "_dropped", "_exhausted"];

/// The whole answer.
pub(super) fn of(status: &Status) -> Value {
    let (server, client) = (status.server.as_deref(), status.client.as_deref());
    let roles = [server.map(|_| "server"), client.map(|_| "client")];
    let instance = server.map(|it| it.instance_id).or_else(|| {
        let client = status.client.as_ref()?;
        Some(client.instance_id)
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(),
        "role": roles.into_iter().flatten().collect::<Vec<_>>(),
        "instance": instance.map(|it| hex(&it)),
        "uptime_s": status.started.0.elapsed().as_secs(),
        "state": status.state(),
        "server": server.map(of_server),
        "client": client.map(of_client),
        "certificates": certificates(status, Kind::Certificates, "not_after"),
        "revocation_lists": certificates(status, Kind::RevocationLists, "next_update"),
        "refusals": refusals(status),
        "warnings": logging::last_warnings(),
    })
}

/// The commit that the program was built from, without the word.
pub(super) fn commit() -> &'static str {
    let build = env!("QMUX_BUILD");
    build.strip_prefix("commit ").unwrap_or(build)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_server(server: &ServerShared) -> Value {
    let services = server.service_views();
    let clients = server.client_views();
    json!({
        "services": services.iter().map(service).collect::<Vec<_>>(),
        "clients": clients.iter().map(client).collect::<Vec<_>>(),
    })
}

fn service(view: &ServiceView) -> Value {
    json!({
        "name": view.name,
        "traffic_addr": view.traffic_addr,
        "protocol": view.protocol.to_string(),
        "required": view.required,
        "up": view.is_up(),
        "clients": view.totals.clients,
        "flows": view.totals.flows,
        "visitors": view.counts.visitors,
        "udp_flows": view.counts.udp_flows,
        "bytes_in": view.counts.bytes_in,
        "bytes_out": view.counts.bytes_out,
        "refused": view.counts.refused,
    })
}

fn client(row: &ClientView) -> Value {
    let services = row.services.iter();
    let services = services.map(|(name, up)| json!({ "name": name, "up": up }));
    let since = Instant::now().saturating_duration_since(row.since);
    json!({
        "name": row.name,
        "instance": hex(&row.instance_id),
        "address": row.address.map(|address| address.to_string()),
        "transport": if row.lanes_over_tls > 0 { "tls" } else { "quic" },
        "lanes": row.lanes,
        "lanes_over_tls": row.lanes_over_tls,
        "rtt_us": row.rtt_us,
        "lost_packets": row.lost_packets,
        "flows": row.flows,
        "services": services.collect::<Vec<_>>(),
        "since_s": since.as_secs(),
    })
}

fn of_client(client: &ClientShared) -> Value {
    let server = |view: crate::client::views::ServerView| {
        json!({
            "name": view.name,
            "address": view.address,
            "transport": view.carried.by.name(),
            "transport_since_s": view.carried.since.elapsed().as_secs(),
            "transport_why": view.carried.why,
            "lanes": view.lanes,
            "lanes_over_tls": view.lanes_over_tls,
            "rtt_us": view.rtt_us,
            "state": view.state,
            "outdated_why": view.outdated_why.as_deref(),
        })
    };
    let service = |view: crate::client::views::LocalServiceView| {
        json!({
            "name": view.name,
            "address": view.address,
            "up": view.up,
            "flows": view.flows,
        })
    };
    json!({
        "servers": client.server_views().into_iter().map(server).collect::<Vec<_>>(),
        "services": client.service_views().into_iter().map(service).collect::<Vec<_>>(),
    })
}

fn certificates(status: &Status, kind: Kind, end: &str) -> Vec<Value> {
    let views = status.certificates.views(kind).into_iter();
    let value = |view: CertificateView| {
        json!({
            "file": view.file,
            end: view.not_after,
            "days_left": view.days_left,
        })
    };
    views.map(value).collect()
}

/// Each counter of refusals or drops that is not zero, over all cores.
fn refusals(status: &Status) -> Value {
    let mut totals = serde_json::Map::new();
    for core in &status.cluster.counters {
        let core: &CoreCounters = core;
        core.for_each(|name, _, value| {
            if value > 0 && REFUSALS.iter().any(|part| name.contains(part)) {
                let before = totals.get(name).and_then(Value::as_u64).unwrap_or(0);
                totals.insert(name.into(), (before + value).into());
            }
        });
    }
    Value::Object(totals)
}
