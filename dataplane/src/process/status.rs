//! The state of the process, for the admin endpoint and the service manager.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::certificates::Certificates;
use super::reload;
use crate::client::ClientShared;
use crate::core::Cluster;
use crate::ready::Readiness;
use crate::server::ServerShared;
use crate::server::pool::views::ServiceView;

/// A view of everything that cores share and that shows the state of the process. Reading it costs
/// the cores nothing.
#[derive(Debug)]
pub(crate) struct Status {
    /// The cores.
    pub(crate) cluster: Arc<Cluster>,
    /// The server role, if it runs.
    pub(crate) server: Option<Arc<ServerShared>>,
    /// The client role, if it runs.
    pub(crate) client: Option<Arc<ClientShared>>,
    /// The state: starting, ready, draining.
    pub(crate) readiness: Arc<Readiness>,
    /// The times at which the certificates expire.
    pub(crate) certificates: Certificates,
    /// The number of times that the configuration was read again.
    pub(crate) reloads: reload::Counts,
    /// The time at which the process started.
    pub(crate) started: (Instant, SystemTime),
}

/// There is no service with the name that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownService;

impl Status {
    /// Indexes of cores that make no progress.
    pub(crate) fn stuck_cores(&self) -> Vec<usize> {
        let stuck = self.cluster.stuck.iter().enumerate();
        stuck
            .filter_map(|(core, stuck)| stuck.load(Ordering::Relaxed).then_some(core))
            .collect()
    }

    /// Panics that were contained: each is a bug, and has cost a flow, a lane or a task.
    pub(crate) fn panics(&self) -> u64 {
        self.cluster
            .counters
            .iter()
            .map(|core| core.panics.get())
            .sum()
    }

    /// The state in one word: `starting` until each role has been ready once, then `ready`, at last
    /// `draining`. Whether visitors can be served is another question ([`Self::not_ready`]).
    pub(crate) fn state(&self) -> &'static str {
        if self.readiness.is_draining() {
            "draining"
        } else if self.readiness.is_started() {
            "ready"
        } else {
            "starting"
        }
    }

    /// The reasons why no visitor should be sent here; empty if visitors may. A service of a server
    /// needs `clients` clients that answer and reach it: each that is `required` does, or if none
    /// is, any one.
    pub(crate) fn not_ready(&self, clients: usize) -> Vec<String> {
        let mut reasons = self.not_up();
        if let Some(server) = &self.server {
            reasons.extend(lacking(&server.service_views(), clients));
        }
        if self.client.is_some() && self.readiness.client_lanes() == 0 {
            reasons.push("no lane is registered with any server".into());
        }
        if self.client.iter().any(|client| client.serves_nothing()) {
            reasons.push("no server lets this client serve any of its services".into());
        }
        reasons
    }

    /// The reasons why no visitor should be sent to the service with this name.
    ///
    /// # Errors
    /// If neither role has a service of this name.
    pub(crate) fn service_not_ready(
        &self,
        name: &str,
        clients: usize,
    ) -> Result<Vec<String>, UnknownService> {
        let mut reasons = self.not_up();
        let mut known = false;
        let services = self.server.iter().flat_map(|server| server.service_views());
        for service in services.filter(|service| service.name == name) {
            known = true;
            reasons.extend(lack(&service, clients));
        }
        let services = self.client.iter().flat_map(|it| it.service_views());
        for service in services.filter(|service| service.name == name) {
            known = true;
            if self.readiness.client_lanes() == 0 {
                reasons.push("no lane is registered with any server".into());
            }
            if !service.up {
                let address = service.address;
                reasons.push(format!("the service at {address} cannot be reached"));
            }
        }
        let client = self.client.iter();
        reasons.extend(client.flat_map(|it| it.service_is_taken_nowhere(name)));
        if known {
            Ok(reasons)
        } else {
            Err(UnknownService)
        }
    }

    /// The reasons why the process as a whole takes no visitors.
    fn not_up(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.readiness.is_draining() {
            reasons.push("draining".into());
        }
        if self.server.is_some() && !self.readiness.is_listening() {
            reasons.push("starting".into());
        }
        reasons
    }

    /// One line for `systemctl status`.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::from(if self.readiness.is_draining() {
            "draining"
        } else if self.not_ready(1).is_empty() {
            "ready"
        } else {
            "not ready for visitors"
        });
        if let Some(server) = &self.server {
            let (mut clients, mut lanes, mut flows) = (0, 0, 0);
            for view in server.client_views() {
                clients += 1;
                lanes += view.lanes;
                flows += view.flows;
            }
            let _always = write!(
                text,
                "; server: {clients} clients, {lanes} lanes, {flows} flows"
            );
        }
        if self.client.is_some() {
            let lanes = self.readiness.client_lanes();
            let _always = write!(text, "; client: {lanes} lanes");
        }
        for core in self.stuck_cores() {
            let _always = write!(text, "; core {core} is stuck");
        }
        if self.panics() > 0 {
            let _always = write!(text, "; {} panics", self.panics());
        }
        text
    }
}

/// What keeps a server's services from being ready; empty if nothing does.
fn lacking(services: &[ServiceView], clients: usize) -> Vec<String> {
    let required = services.iter().any(|service| service.required);
    if !required && services.iter().any(|it| lack(it, clients).is_none()) {
        return Vec::new();
    }
    let counted = services.iter().filter(|it| !required || it.required);
    counted.filter_map(|it| lack(it, clients)).collect()
}

fn lack(service: &ServiceView, clients: usize) -> Option<String> {
    let reachable = service.totals.reachable;
    (reachable < clients).then(|| {
        format!(
            "{}: {reachable} clients answer and reach it, {clients} wanted",
            service.title()
        )
    })
}

/// For tests of the users of a status.
#[cfg(test)]
pub(crate) mod fixture {
    use std::path::Path;

    use qmux_config::Config;

    use super::*;

    /// A client that has just started and has no lane yet.
    pub(crate) fn client_of_two_cores() -> Status {
        let dir = tempfile::tempdir().expect("a directory");
        let request = qmux_config::certs::CertsRequest {
            server_names: vec!["tunnel.test".into()],
            days: 30,
        };
        let certs = qmux_config::certs::generate(&request).expect("certificates");
        qmux_config::certs::write(&certs, dir.path(), false).expect("written");
        let text = r#"
            [[client.servers]]
            address = "127.0.0.1:8443"
            server_name = "tunnel.test"
            [client.local]
            host = "127.0.0.1"
            port = 8080
            [client.tls]
            ca_cert_file = "ca.crt"
            client_cert_file = "client.crt"
            client_key_file = "client.key"
        "#;
        let config = Config::parse(text, Path::new(&dir.path().join("dp.toml")));
        let config = Arc::new(config.expect("a config"));
        let readiness = Arc::new(Readiness::new(1));
        let client = config.client.as_ref().expect("a client");
        Status {
            cluster: Arc::new(Cluster::new(2)),
            server: None,
            client: Some(Arc::new(ClientShared::new(&config, client, &readiness))),
            certificates: Certificates::of(&config),
            reloads: reload::Counts::default(),
            readiness,
            started: (Instant::now(), SystemTime::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::pool::service::PoolTotals;
    use crate::server::pool::views::ServiceCounts;

    fn service(name: &str, required: bool, reachable: usize) -> ServiceView {
        ServiceView {
            name: name.into(),
            traffic_addr: "127.0.0.1:80".into(),
            protocol: qmux_config::ListenerProtocol::Both,
            required,
            totals: PoolTotals {
                reachable,
                ..PoolTotals::default()
            },
            counts: ServiceCounts::default(),
        }
    }

    #[test]
    fn a_server_is_ready_with_all_required_services_or_with_any_if_none_is_required() {
        let ready = |services: &[ServiceView]| lacking(services, 1).is_empty();
        assert!(ready(&[service("a", false, 0), service("b", false, 1)]));
        assert!(!ready(&[service("a", false, 0), service("b", false, 0)]));
        assert!(ready(&[service("a", true, 1), service("b", false, 0)]));
        let both = [service("a", true, 1), service("b", true, 0)];
        let why = lacking(&both, 1);
        assert_eq!(why.len(), 1, "{why:?}");
        assert!(why[0].starts_with("service \"b\": 0 clients"), "{why:?}");
        assert!(lacking(&both, 0).is_empty());
    }
}
