//! `qmux-ctl status`: what a running program serves, for whom, and in which state it is.

pub(crate) mod model;
pub(crate) mod units;

use std::fmt::Write as _;

use crate::admin::Asked;
use crate::failure::Failure;
use crate::output;
use model::{Certificate, Client, Server, Status};
use units::{bytes, count, rtt, service, time, up};

/// Certificates that expire within this time are pointed out.
const SOON_DAYS: i64 = 21;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    asked: Asked,
    /// Print the JSON that the program answers, for scripts.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let endpoint = args.asked.endpoint()?;
    let text = if args.json {
        model::text(&endpoint)?
    } else {
        shown(&model::ask(&endpoint)?)
    };
    output::to_stdout(&text)
}

/// The status as text.
fn shown(status: &Status) -> String {
    let mut text = format!(
        "qmux-dp {} ({}), {}: {}, up {}\n",
        status.version,
        status.commit,
        status.role.join(" and "),
        status.state,
        time(status.uptime_s)
    );
    if let Some(server) = &status.server {
        add_server(&mut text, server);
    }
    if let Some(client) = &status.client {
        add_client(&mut text, client);
    }
    add_certificates(&mut text, &status.certificates);
    text
}

fn add_server(text: &mut String, server: &Server) {
    let head = [
        "SERVICE",
        "VISITORS AT",
        "PROTOCOL",
        "STATE",
        "CLIENTS",
        "TCP VISITORS",
        "UDP FLOWS",
        "IN",
        "OUT",
        "REFUSED",
    ];
    let rows = server.services.iter().map(|it| {
        vec![
            service(&it.name).to_owned(),
            it.traffic_addr.clone(),
            it.protocol.clone(),
            up(it.up).to_owned(),
            it.clients.to_string(),
            count(it.visitors as f64),
            count(it.udp_flows as f64),
            bytes(it.bytes_in),
            bytes(it.bytes_out),
            count(it.refused as f64),
        ]
    });
    table(text, &head, rows.collect());
    let head = [
        "CLIENT", "FROM", "SERVICES", "OVER", "LANES", "RTT", "LOST", "FLOWS", "SINCE",
    ];
    let rows = server.clients.iter().map(|it| {
        let services = it.services.iter();
        let services = services.map(|it| match it.up {
            true => service(&it.name).to_owned(),
            false => format!("{} (down)", service(&it.name)),
        });
        vec![
            it.name.clone(),
            it.address.clone().unwrap_or_else(|| "-".into()),
            services.collect::<Vec<_>>().join(", "),
            it.transport.clone(),
            it.lanes.to_string(),
            rtt(it.rtt_us),
            count(it.lost_packets as f64),
            it.flows.to_string(),
            time(it.since_s),
        ]
    });
    table(text, &head, rows.collect());
}

fn add_client(text: &mut String, client: &Client) {
    let rows = client.servers.iter().map(|it| {
        vec![
            it.address.clone(),
            it.shown_state(),
            it.transport.clone(),
            it.lanes.to_string(),
            rtt(it.rtt_us),
        ]
    });
    let head = ["SERVER", "STATE", "OVER", "LANES", "RTT"];
    table(text, &head, rows.collect());
    for it in &client.servers {
        if let Some(why) = &it.outdated_why {
            let address = &it.address;
            text.push_str(&format!(
                "no lane to {address} can be had by its changed config: {why}\n"
            ));
        }
    }
    let rows = client.services.iter().map(|it| {
        vec![
            service(&it.name).to_owned(),
            it.address.clone(),
            up(it.up).to_owned(),
            it.flows.to_string(),
        ]
    });
    table(
        text,
        &["LOCAL SERVICE", "ADDRESS", "STATE", "FLOWS"],
        rows.collect(),
    );
}

fn add_certificates(text: &mut String, certificates: &[Certificate]) {
    let rows = certificates.iter().map(|it| {
        let mark = if it.days_left < 0 {
            " (expired)"
        } else if it.days_left < SOON_DAYS {
            " (soon)"
        } else {
            ""
        };
        vec![
            it.file.clone(),
            it.not_after.clone(),
            format!("{}{mark}", it.days_left),
        ]
    });
    table(
        text,
        &["CERTIFICATE", "EXPIRES", "DAYS LEFT"],
        rows.collect(),
    );
}

/// Adds a table whose columns are as wide as they need to be, after an empty line.
fn table(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let head = head.iter().map(|it| (*it).to_owned()).collect();
    let lines: Vec<Vec<String>> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    text.push('\n');
    for line in &lines {
        let mut shown = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _always = write!(shown, "{cell:width$}  ");
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    if lines.len() == 1 {
        text.push_str("(none)\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let status = r#"{"version":"1","commit":"abc","role":["server"],"state":"ready","uptime_s":61,
            "server":{"services":[{"name":"web","traffic_addr":"0.0.0.0:80","protocol":"tcp","up":true,
            "clients":1,"visitors":12345,"bytes_in":1000000}],"clients":[]},
            "certificates":[{"file":"a.crt","not_after":"2026-12-01T00:00:00Z","days_left":3}],
            "unknown":{"of":"a newer version"}}"#;
        let text = shown(&serde_json::from_str(status).expect("JSON"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "qmux-dp 1 (abc), server: ready, up 1min");
        assert!(
            lines[2].starts_with("SERVICE  VISITORS AT  PROTOCOL"),
            "{text}"
        );
        assert!(
            lines[3].starts_with("web      0.0.0.0:80   tcp       up"),
            "{text}"
        );
        assert!(
            lines[3].contains("12.3k") && lines[3].contains("1.0MB"),
            "{text}"
        );
        assert_eq!(lines[6], "(none)");
        assert!(
            text.ends_with("a.crt        2026-12-01T00:00:00Z  3 (soon)\n"),
            "{text}"
        );
    }
}
