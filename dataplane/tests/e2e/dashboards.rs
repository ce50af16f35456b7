//! The Grafana dashboard and the alert rules: each metric and label that they name is one that a
//! running server or client has.

use std::collections::{BTreeMap, BTreeSet};

use saphyr::{LoadableYamlNode as _, YamlOwned};

use crate::support::certs;
use crate::support::door::{Door, DoorSetup, published};
use crate::support::http;
use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Site, Tunnel};

const DASHBOARD: &str = include_str!("../../../scripts/deploy/monitoring/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../../scripts/deploy/monitoring/alerts.yaml");

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["instance", "job"];

/// The names of all samples, with the labels that they have.
fn known(texts: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let lines = texts.iter().flat_map(|text| text.lines());
    for line in lines.filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let labels = known.entry(name.to_owned()).or_default();
        let parts = line.split("=\"").map(|part| {
            let name = part.rsplit(|c: char| !is_of_name(c)).next();
            name.unwrap_or_default().to_owned()
        });
        labels.extend(parts.filter(|part| !part.is_empty()));
    }
    known
}

fn is_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// Every query of both files.
fn queries() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let of_dashboard = targets.map(|it| it["expr"].as_str().expect("a query").to_owned());
    let alerts = YamlOwned::load_from_str(ALERTS).expect("YAML");
    let rules = alerts[0]["groups"][0]["rules"]
        .as_sequence()
        .expect("rules");
    let of_alerts = rules
        .iter()
        .map(|rule| rule["expr"].as_str().expect("a query").to_owned());
    of_dashboard.chain(of_alerts).collect()
}

/// The metrics of a query, each with the labels that are asked of it; those of `by (…)` with none.
fn names(query: &str) -> Vec<String> {
    let words = query.split(|c: char| !is_of_name(c));
    let ours = words.filter(|it| it.starts_with("qmux_dp_") || it.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// The labels by which a query's results are told apart.
fn groups(query: &str) -> Vec<String> {
    let lists = query.split("by (").skip(1);
    let lists = lists.filter_map(|rest| rest.split(')').next());
    lists
        .flat_map(|list| list.split(','))
        .map(|label| label.trim().to_owned())
        .collect()
}

#[test]
fn every_query_of_the_dashboard_and_the_alerts_finds_its_metrics_and_labels() {
    if subject::only_wire("dashboards") {
        return;
    }
    let service = TcpService::echo();
    let server = ServerSetup {
        admin: Some(ports::free_address()),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        admin: Some(ports::free_address()),
        ..ClientSetup::default()
    };
    let _tunnel = Tunnel::with(&server, &client, service.address);
    let site = Site::new();
    site.write("ca.crl", &certs::revoking(&[], certs::ours()));
    let named = DoorSetup {
        services: vec![published("web", "both")],
        auth: "method = \"mtls\"\nca_cert_file = \"ca.crt\"\ncrl_file = \"ca.crl\"",
        ..DoorSetup::default()
    };
    let named = Door::start(&site, &named);
    let admins = [server.admin, client.admin, Some(named.admin)];
    let texts = admins.map(|admin| http::get(admin.expect("set"), "/metrics").body);
    let known = known(&texts);
    let queries = queries();
    assert!(queries.len() > 30, "{queries:?}");
    for query in queries {
        let names = names(&query);
        assert!(!names.is_empty(), "{query}");
        let missing: Vec<_> = names
            .iter()
            .filter(|name| !known.contains_key(*name))
            .collect();
        assert!(missing.is_empty(), "{missing:?} of {query}");
        let labels: BTreeSet<&String> = names.iter().flat_map(|name| &known[name]).collect();
        for group in groups(&query) {
            let is_there = labels.contains(&group) || ADDED.contains(&group.as_str());
            assert!(is_there, "{group} of {query}: {labels:?}");
        }
    }
}
