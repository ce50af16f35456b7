//! Sockets of flows towards the service: at which of its addresses, and at another one when nobody
//! listens there or the service has moved.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use qmux_proto::FlowError;

use super::super::flow::{Flow, ServiceSocket, connect};
use super::super::wanted::Wanted;
use super::ClientFlows;
use crate::flow::udp::lifetimes::Stage;
use crate::sys::limits;

impl ClientFlows {
    /// A socket to the first of the service's addresses that takes one and is not in `refused_at`.
    pub(super) fn dial(
        &self,
        wanted: &Wanted,
        refused_at: &mut Vec<SocketAddr>,
    ) -> Option<ServiceSocket> {
        let addresses = self.addresses(&wanted.service);
        while let Some(host) = addresses.next(refused_at) {
            let to = wanted.service.at(host, wanted.port);
            match self.core.timed(|| connect(to)) {
                Ok(socket) => return Some(ServiceSocket { host, to, socket }),
                Err(error) => {
                    let own_want = limits::is_own_want(&error);
                    if self.core.dial_log.pass(Instant::now()) {
                        tracing::warn!(service = %to, %error, "no socket for a UDP flow");
                    }
                    // A missing address family says nothing about addresses of another one.
                    let of_family = error.kind() == io::ErrorKind::AddrNotAvailable;
                    if own_want && !of_family {
                        // Another address would need the same.
                        self.counters().udp_dials_short.increment();
                        return None;
                    }
                    refused_at.push(host);
                }
            }
        }
        None
    }

    /// Returns the flow, with another socket if the service has moved to other addresses.
    pub(super) fn where_the_service_is(self: &Rc<Self>, flow: Rc<Flow>, now: Instant) -> Rc<Flow> {
        let addresses = self.addresses(&flow.wanted.service);
        let version = addresses.known_version();
        if flow.version.get() == version {
            return flow;
        }
        let stays = if self.is_unanswered(&flow) {
            addresses.next(&[]) == Some(flow.service.host)
        } else {
            addresses.contains(flow.service.host)
        };
        if stays || addresses.len() == 0 {
            flow.version.set(version);
            return flow;
        }
        if !self.core.may_open(now) {
            return flow; // With a later datagram.
        }
        let mut refused_at = Vec::new();
        self.redial(&flow, &mut refused_at).unwrap_or(flow)
    }

    /// Gives the flow another socket, to an address that is not in `refused_at`.
    fn redial(
        self: &Rc<Self>,
        flow: &Rc<Flow>,
        refused_at: &mut Vec<SocketAddr>,
    ) -> Option<Rc<Flow>> {
        let addresses = self.addresses(&flow.wanted.service);
        let version = addresses.known_version();
        let service = self.dial(&flow.wanted, refused_at)?;
        let (lane, to) = (self.lane.key(), service.to);
        tracing::debug!(lane, flow = flow.id, service = %to, "UDP flow dialled anew");
        self.counters().udp_flows_redialled.increment();
        let again = Rc::new(Flow {
            refused_at: std::mem::take(refused_at),
            packet_id: Cell::new(flow.packet_id.get()),
            life: Cell::new(flow.life.get()),
            ..Flow::new(flow.id, flow.wanted.clone(), service, version)
        });
        if let Some(owned) = self.core.lifetimes.borrow_mut().get_mut(flow.life.get()) {
            owned.flow = Rc::clone(&again);
        }
        flow.close();
        self.begin(&again);
        Some(again)
    }

    fn is_unanswered(&self, flow: &Flow) -> bool {
        self.core.lifetimes.borrow().stage(flow.life.get()) == Some(Stage::Unanswered)
    }

    /// A datagram did not reach the service. If the service was never reached, the flow goes on at
    /// its next address, or ends if there is none.
    ///
    /// The ICMP message behind that may be forged by whoever can send to this host and guesses the
    /// flow's port: Linux compares nothing but the addresses and ports inside, so that not even
    /// loopback is safe from it. So it counts for nothing once the service has answered the flow,
    /// and for seconds otherwise.
    pub(super) fn bounced(self: &Rc<Self>, flow: &Rc<Flow>, error: &io::Error) {
        self.complain(flow, error);
        let nobody = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
        );
        if !nobody || flow.closed.get() || !self.is_unanswered(flow) {
            return;
        }
        let host = flow.service.host;
        self.addresses(&flow.wanted.service).refused(host);
        let mut refused_at = flow.refused_at.clone();
        refused_at.push(host);
        if let Some(again) = self.redial(flow, &mut refused_at) {
            let first = flow.first.take();
            if let Some(first) = &first {
                self.batch_for(&again);
                self.push(&again, first);
                self.flush();
            }
            *again.first.borrow_mut() = first;
            return;
        }
        flow.wanted.refused(Instant::now());
        // Where too many such notices are due, the flow stays, and may yet find its service.
        if self.tell_closed(flow.id, FlowError::DialRefused, Instant::now()) {
            self.counters().udp_flows_refused.increment();
            self.end_flow(flow, FlowError::DialRefused);
        }
    }

    /// Logs that the service cannot be reached: once per flow in detail, once per lane for the
    /// operator.
    fn complain(&self, flow: &Flow, error: &io::Error) {
        if flow.complained.replace(true) {
            return;
        }
        let (lane, service) = (self.lane.key(), flow.service.to);
        if self.warned.replace(true) {
            tracing::debug!(lane, flow = flow.id, %service, %error, "UDP service");
        } else {
            tracing::warn!(lane, %service, %error, "the UDP service cannot be reached");
        }
    }
}
