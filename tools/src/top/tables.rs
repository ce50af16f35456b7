//! The tables of `top`, made from a status and the one before it, by which rates are computed.

use std::cmp::Ordering;
use std::time::Duration;

use crate::status::model::{Client, Server, Status};
use crate::status::units::{bytes, count, rtt, service, time, up};

/// A cell: its text, and the key by which it is sorted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    /// A cell that is sorted alphabetically.
    Text(String),
    /// A cell that is sorted by the number.
    Number(String, f64),
}

impl Cell {
    /// The text of the cell.
    pub(super) fn shown(&self) -> &str {
        match self {
            Cell::Text(text) | Cell::Number(text, _) => text,
        }
    }

    fn compare(&self, other: &Cell) -> Ordering {
        match (self, other) {
            (Cell::Number(_, one), Cell::Number(_, another)) => one.total_cmp(another),
            _ => self.shown().cmp(other.shown()),
        }
    }
}

/// One table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) columns: &'static [&'static str],
    /// The rows, each with as many cells as there are columns.
    pub(super) rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Keeps only rows in which a text contains `filter`, in the order of a column.
    pub(super) fn arrange(&mut self, filter: &str, column: usize, descending: bool) {
        let wanted = filter.to_lowercase();
        self.rows.retain(|row| {
            let mut texts = row.iter().filter(|cell| matches!(cell, Cell::Text(_)));
            wanted.is_empty() || texts.any(|it| it.shown().to_lowercase().contains(&wanted))
        });
        self.rows.sort_by(|one, another| {
            let order = match (one.get(column), another.get(column)) {
                (Some(one), Some(another)) => one.compare(another),
                _ => Ordering::Equal,
            };
            if descending { order.reverse() } else { order }
        });
    }
}

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}

fn number(value: u64) -> Cell {
    Cell::Number(count(value as f64), value as f64)
}

/// By how much a counter has grown per second; 0 if it began anew.
fn per_second(now: u64, before: u64, passed: Duration) -> f64 {
    let seconds = passed.as_secs_f64().max(1e-3);
    now.saturating_sub(before) as f64 / seconds
}

fn rate(value: f64, unit: &str) -> Cell {
    Cell::Number(count(value) + unit, value)
}

/// All tables of a program. `before` is its status of a while ago, and how long ago that was.
pub(super) fn of(now: &Status, before: Option<(&Status, Duration)>) -> Vec<Table> {
    // The counters of another process say nothing about this one's.
    let before = before.filter(|(status, _)| status.instance == now.instance);
    let mut tables = Vec::new();
    if let Some(server) = &now.server {
        let before = before.and_then(|(it, passed)| Some((it.server.as_ref()?, passed)));
        tables.push(services(server, before));
        tables.push(clients(server, before));
    }
    if let Some(client) = &now.client {
        tables.push(servers(client));
        tables.push(local_services(client));
    }
    tables
}

fn services(server: &Server, before: Option<(&Server, Duration)>) -> Table {
    let row = |it: &crate::status::model::Service| {
        let earlier = before.and_then(|(server, passed)| {
            let mut services = server.services.iter();
            let same =
                services.find(|e| (&e.name, &e.traffic_addr) == (&it.name, &it.traffic_addr));
            Some((same?, passed))
        });
        let grown = |value: fn(&crate::status::model::Service) -> u64| {
            earlier.map_or(0.0, |(earlier, passed)| {
                per_second(value(it), value(earlier), passed)
            })
        };
        vec![
            text(service(&it.name)),
            text(&it.traffic_addr),
            text(up(it.up)),
            number(it.clients),
            rate(grown(|it| it.visitors + it.udp_flows), ""),
            rate(8.0 * grown(|it| it.bytes_in), "b"),
            rate(8.0 * grown(|it| it.bytes_out), "b"),
            rate(grown(|it| it.refused), ""),
            Cell::Number(
                bytes(it.bytes_in + it.bytes_out),
                (it.bytes_in + it.bytes_out) as f64,
            ),
        ]
    };
    Table {
        title: "services",
        columns: &[
            "SERVICE",
            "VISITORS AT",
            "STATE",
            "CLIENTS",
            "NEW/s",
            "IN/s",
            "OUT/s",
            "REFUSED/s",
            "BYTES",
        ],
        rows: server.services.iter().map(row).collect(),
    }
}

fn clients(server: &Server, before: Option<(&Server, Duration)>) -> Table {
    let row = |it: &crate::status::model::ConnectedClient| {
        let lost = before.map_or(0.0, |(server, passed)| {
            let mut clients = server.clients.iter();
            let same = clients.find(|e| (&e.name, &e.instance) == (&it.name, &it.instance));
            same.map_or(0.0, |e| per_second(it.lost_packets, e.lost_packets, passed))
        });
        let served = it.services.iter();
        let served = served.map(|it| match it.up {
            true => service(&it.name).to_owned(),
            false => format!("{} (down)", service(&it.name)),
        });
        vec![
            text(&it.name),
            text(it.address.clone().unwrap_or_default()),
            text(served.collect::<Vec<_>>().join(",")),
            number(it.lanes),
            Cell::Number(rtt(it.rtt_us), it.rtt_us as f64),
            rate(lost, ""),
            number(it.flows),
            Cell::Number(time(it.since_s), it.since_s as f64),
        ]
    };
    Table {
        title: "clients",
        columns: &[
            "CLIENT", "FROM", "SERVICES", "LANES", "RTT", "LOST/s", "FLOWS", "SINCE",
        ],
        rows: server.clients.iter().map(row).collect(),
    }
}

fn servers(client: &Client) -> Table {
    let row = |it: &crate::status::model::KnownServer| {
        vec![
            text(&it.address),
            text(it.shown_state()),
            text(&it.transport),
            number(it.lanes),
            Cell::Number(rtt(it.rtt_us), it.rtt_us as f64),
        ]
    };
    Table {
        title: "servers",
        columns: &["SERVER", "STATE", "OVER", "LANES", "RTT"],
        rows: client.servers.iter().map(row).collect(),
    }
}

fn local_services(client: &Client) -> Table {
    let row = |it: &crate::status::model::LocalService| {
        vec![
            text(service(&it.name)),
            text(&it.address),
            text(up(it.up)),
            number(it.flows),
        ]
    };
    Table {
        title: "local services",
        columns: &["SERVICE", "ADDRESS", "STATE", "FLOWS"],
        rows: client.services.iter().map(row).collect(),
    }
}
