//! The answers to the services that a client offers: which of them it serves, and what it is told.

use std::rc::Rc;
use std::time::Instant;

use qmux_config::Admission;
use qmux_proto::control::{
    Capabilities, Message, Register, ServiceAnswer, ServiceAnswers, ServiceOffer, ServiceVerdict,
};

use super::Door;
use super::auth::Admitted;
use super::lane::ServerLane;
use crate::server::pool::registry::Offered;
use crate::server::shared::ServerSettings;
use crate::server::shared::judge::judge;

/// The services that a client offers, each with its verdict.
pub(crate) struct Offers {
    offers: Vec<ServiceOffer>,
    answers: Vec<ServiceAnswer>,
    accepted: Vec<Offered>,
    /// Whether the client can read the answers.
    is_told: bool,
}

impl Offers {
    /// Judges what a client offers. A client of an old version, which knows no names, offers the
    /// service without a name whatever it says.
    pub(crate) fn judge(door: &Door, admission: &Admission, request: &Register) -> Offers {
        let is_told = request.capabilities.contains(Capabilities::NAMED_SERVICES);
        let nameless = [ServiceOffer::new("")];
        let offers = if is_told {
            &request.services[..]
        } else {
            &nameless[..]
        };
        let (answers, accepted) = judge(&door.services(), admission, offers);
        Offers {
            offers: offers.to_vec(),
            answers,
            accepted,
            is_told,
        }
    }

    /// The services that the client offers.
    pub(crate) fn offers(&self) -> &[ServiceOffer] {
        &self.offers
    }

    /// The services that the client is to serve.
    pub(crate) fn accepted(&self) -> &[Offered] {
        &self.accepted
    }

    /// Whether the client can read the answers.
    pub(crate) fn is_told(&self) -> bool {
        self.is_told
    }

    /// Whether registering the client would help nobody: it serves nothing, and could not be told
    /// why.
    pub(crate) fn are_pointless(&self) -> bool {
        self.accepted.is_empty() && !self.is_told
    }

    /// Tells the client the answers.
    pub(crate) fn answer(&self, lane: &ServerLane) {
        if self.is_told {
            let answers = self.answers.clone();
            let message = Message::ServiceAnswers(ServiceAnswers { answers });
            lane.quic.send_control(&message);
        }
    }

    /// Counts the offers that were not accepted, and logs them once for each client.
    pub(crate) fn tell_operator(&self, lane: &Rc<ServerLane>, door: &Door) {
        let of = |verdict: ServiceVerdict| {
            let names = self.answers.iter().filter(move |it| it.verdict == verdict);
            names.map(|it| it.name.as_str()).collect::<Vec<_>>()
        };
        let unknown = of(ServiceVerdict::Unknown);
        let not_allowed = of(ServiceVerdict::NotAllowed);
        let other_protocol = of(ServiceVerdict::OtherProtocol);
        let counters = door.counters();
        counters.services_unknown.add(unknown.len() as u64);
        counters.services_not_allowed.add(not_allowed.len() as u64);
        counters
            .services_of_other_protocol
            .add(other_protocol.len() as u64);
        let client = lane.client_id();
        if self.accepted.len() < self.answers.len()
            && let Some(suppressed) = door.context().handshake_log.pass(Instant::now())
        {
            tracing::warn!(
                client,
                ?unknown,
                ?not_allowed,
                ?other_protocol,
                serves = self.accepted.len(),
                suppressed,
                "client offers services that it cannot serve here"
            );
        }
    }
}

/// Tells a client, on one of its lanes, how other settings judge its services.
pub(super) fn tell_anew(
    lane: &ServerLane,
    door: &Door,
    settings: &ServerSettings,
    admitted: &Admitted,
) {
    let claim = &admitted.claim;
    let admission = settings
        .matcher
        .again(&claim.admission, claim.token.as_ref());
    // A client that must prove its identity again is told that instead.
    if admitted.is_told && admission != Admission::Refused {
        let (answers, _) = judge(&door.services(), &admission, &claim.offers);
        let message = Message::ServiceAnswers(ServiceAnswers { answers });
        lane.quic.send_control(&message);
    }
}
