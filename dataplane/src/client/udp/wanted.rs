//! What the first datagram of a UDP flow asks for, and what this client has for it. This module is
//! pure.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::Protocol;

use super::super::services::answers::LaneAnswers;
use super::super::services::proxy_header;
use super::super::services::{Service, Services, VisitorPort};

/// How a datagram introduces its flow.
#[derive(Clone, Copy)]
pub(super) struct Introduction<'a> {
    pub(super) visitor: SocketAddr,
    /// The address that the visitor sent to; servers of older versions do not say it.
    pub(super) traffic: Option<SocketAddr>,
    pub(super) service: &'a str,
}

/// The destination of a new flow.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) visitor: SocketAddr,
    pub(super) service: Arc<Service>,
    /// The port of the service for the visitor.
    pub(super) port: u16,
    /// Whether what the visitor meets there tells of the whole service.
    pub(super) tells_of_all: bool,
    /// The PROXY header that tells the service about the visitor; empty if it wants none.
    pub(super) header: Rc<[u8]>,
}

/// Why a flow cannot be opened.
pub(super) enum Lacking {
    /// This client offers no service of that name that speaks UDP.
    Service,
    /// The server has not said yet which ports the service has.
    Answers,
    /// No port of this service belongs to the visitor's traffic port.
    Port(Arc<Service>),
}

impl Wanted {
    /// Notes that the service has not taken the visitor.
    pub(super) fn refused(&self, now: Instant) {
        if self.tells_of_all {
            self.service.state.udp_refusals.refused(now);
        }
    }

    /// Notes that the service has answered the visitor.
    pub(super) fn answered(&self) {
        if self.tells_of_all {
            self.service.state.udp_refusals.answered();
        }
    }

    /// The destination that an introduction asks for.
    pub(super) fn by(
        introduction: &Introduction<'_>,
        services: &Services,
        answers: &LaneAnswers,
    ) -> Result<Wanted, Lacking> {
        let Introduction {
            visitor,
            traffic,
            service,
        } = *introduction;
        let service = services.find(service, Protocol::Udp);
        let service = service.ok_or(Lacking::Service)?;
        let there = answers.ports(service.index);
        let port = match service.port_for(traffic.map(|it| it.port()), there) {
            VisitorPort::Known(port) => port,
            VisitorPort::NotYet => return Err(Lacking::Answers),
            VisitorPort::Missing => return Err(Lacking::Port(Arc::clone(service))),
        };
        let traffic = traffic.unwrap_or_else(|| proxy_header::unknown_traffic(visitor));
        let version = service.local.proxy_protocol;
        let header = proxy_header::of_visitor(version, Protocol::Udp, visitor, traffic);
        Ok(Wanted {
            visitor,
            service: Arc::clone(service),
            port,
            tells_of_all: service.tells_of_all(there),
            header: header.into(),
        })
    }
}
