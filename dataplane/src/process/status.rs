//! What the process is at, for whoever asks: the admin endpoint and the service manager.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use crate::client::ClientShared;
use crate::core::Cluster;
use crate::ready::Readiness;
use crate::server::ServerShared;

/// A view of everything that cores share and that tells how the process does. Reading it costs the cores nothing.
#[derive(Debug)]
pub(crate) struct Status {
    /// The cores.
    pub(crate) cluster: Arc<Cluster>,
    /// The server role, if it runs.
    pub(crate) server: Option<Arc<ServerShared>>,
    /// Whether the client role runs.
    pub(crate) client: bool,
    /// What its cores share.
    pub(crate) client_role: Option<Arc<ClientShared>>,
    /// Starting, ready, draining.
    pub(crate) readiness: Arc<Readiness>,
    /// When the process started.
    pub(crate) started: (Instant, SystemTime),
}

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

    /// Why no visitor should be sent here; empty if one may. A server needs `clients` clients on each listener that take
    /// new flows, and as many that reach their service for each service that is required.
    pub(crate) fn not_ready(&self, clients: usize) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.readiness.is_draining() {
            reasons.push("draining".into());
        }
        if let Some(server) = &self.server {
            if !self.readiness.is_listening() {
                reasons.push("starting".into());
            }
            for (_, service) in server.services() {
                let totals = service.pool.totals();
                if service.name.is_empty() && totals.usable < clients {
                    reasons.push(format!(
                        "listener {}: {} clients take visitors, {clients} wanted",
                        service.traffic, totals.usable
                    ));
                } else if service.required && totals.reachable < clients {
                    reasons.push(format!(
                        "service {}: {} clients serve it, {clients} wanted",
                        service.name, totals.reachable
                    ));
                }
            }
        }
        if self.client && self.readiness.client_lanes() == 0 {
            reasons.push("no lane is registered with any server".into());
        }
        if let Some(client) = &self.client_role
            && client.serves_nothing()
        {
            reasons.push("no server lets this client serve any of its services".into());
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
            for client in server.doors.iter().flat_map(|door| door.registry.clients()) {
                clients += usize::from(client.usable());
                lanes += client.registered();
            }
            for (_, service) in server.services() {
                flows += service.pool.totals().flows;
            }
            let _always = write!(
                text,
                "; server: {clients} clients, {lanes} lanes, {flows} flows"
            );
        }
        if self.client {
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

/// For the tests of those who ask.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A client that has just started and has no lane yet.
    pub(crate) fn client_of_two_cores() -> Status {
        Status {
            cluster: Arc::new(Cluster::new(2)),
            server: None,
            client: true,
            client_role: None,
            readiness: Arc::new(Readiness::new(1)),
            started: (Instant::now(), SystemTime::now()),
        }
    }
}
