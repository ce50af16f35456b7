//! The servers' answers to the services that this client offers.
//!
//! A lane keeps the latest answers of its own server, which flows need to find their port. A server
//! keeps what was logged for the operator about each service, so that it is logged once, however
//! many lanes there are, and again only when it changes.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use qmux_proto::control::{ServiceAnswers, ServiceVerdict, TrafficPorts};

use super::{Service, Services};

/// A server's answer about one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The server has not answered.
    #[default]
    Unsaid,
    /// This client serves the service; these are its ports at the server, if the server has said
    /// them.
    Accepted(Option<TrafficPorts>),
    /// This client does not serve the service.
    Refused(ServiceVerdict),
    /// The server knows no services by name, so this client does not serve it.
    TooOld,
}

impl Standing {
    /// Whether visitors may come.
    pub(crate) fn is_accepted(self) -> bool {
        matches!(self, Standing::Accepted(_))
    }
}

/// The answers that came on one lane.
#[derive(Debug, Default)]
pub(crate) struct LaneAnswers {
    /// The answers in the order of the services; empty until the server has answered.
    standings: RefCell<Vec<Standing>>,
}

impl LaneAnswers {
    /// The answer about the service at `index`.
    pub(crate) fn standing(&self, index: usize) -> Standing {
        let standings = self.standings.borrow();
        standings.get(index).copied().unwrap_or_default()
    }

    /// The service's ports at the server, if the server has said them.
    pub(crate) fn ports(&self, index: usize) -> Option<TrafficPorts> {
        match self.standing(index) {
            Standing::Accepted(ports) => ports,
            Standing::Unsaid | Standing::Refused(_) | Standing::TooOld => None,
        }
    }

    /// Whether the server has not answered yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.standings.borrow().is_empty()
    }

    /// Replaces the answers.
    pub(crate) fn set(&self, standings: Vec<Standing>) {
        *self.standings.borrow_mut() = standings;
    }
}

/// The answers of a message, in the order of the services. A service that the message leaves out is
/// unknown to the server.
pub(crate) fn standings(services: &Services, message: &ServiceAnswers) -> Vec<Standing> {
    let of = |service: &Service| {
        let answer = message.answers.iter().find(|it| it.name == service.name());
        match answer.map(|it| (it.verdict, it.ports)) {
            Some((ServiceVerdict::Accepted, ports)) => Standing::Accepted(ports),
            Some((verdict, _)) => Standing::Refused(verdict),
            None => Standing::Refused(ServiceVerdict::Unknown),
        }
    };
    services.all().iter().map(|service| of(service)).collect()
}

/// The answers of a server that knows no names: it serves the nameless service, as it always has.
pub(crate) fn standings_at_old_server(services: &Services) -> Vec<Standing> {
    let of = |service: &Service| match service.name() {
        "" => Standing::Accepted(None),
        _ => Standing::TooOld,
    };
    services.all().iter().map(|service| of(service)).collect()
}

/// What the operator was told of each service at one server.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<OfServices>);

/// The answers about each service of one configuration.
#[derive(Debug, Default)]
struct OfServices {
    generation: u64,
    standings: Vec<Standing>,
}

/// A changed answer, which the operator is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChangedAnswer {
    /// The index of the service.
    pub(crate) index: usize,
    /// The answer that the operator was told before.
    pub(crate) before: Standing,
    /// The answer now.
    pub(crate) now: Standing,
}

impl Told {
    /// Takes the answers on a lane that is registered with the services of this configuration.
    /// Returns what has changed.
    pub(crate) fn news(&self, generation: u64, standings: &[Standing]) -> Vec<ChangedAnswer> {
        // This happens only when a lane has registered, or the server's configuration has changed.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generation < told.generation {
            return Vec::new(); // A lane that is about to be left.
        }
        if generation > told.generation {
            told.generation = generation;
            told.standings.clear();
        }
        told.standings.resize(standings.len(), Standing::Unsaid);
        let pairs = told.standings.iter_mut().zip(standings).enumerate();
        let changed = pairs.filter_map(|(index, (told, &now))| {
            let before = std::mem::replace(told, now);
            (before != now).then_some(ChangedAnswer { index, before, now })
        });
        changed.collect()
    }

    /// The answer about the service at `index` of this configuration.
    pub(crate) fn standing(&self, generation: u64, index: usize) -> Standing {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let standings = (told.generation == generation).then_some(&told.standings);
        let standing = standings.and_then(|it| it.get(index));
        standing.copied().unwrap_or_default()
    }

    /// How many services the server lets this client serve; `None` if it has not answered.
    pub(crate) fn accepted(&self) -> Option<usize> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let accepted = told.standings.iter().filter(|it| it.is_accepted()).count();
        (!told.standings.is_empty()).then_some(accepted)
    }
}

/// Why no visitors, or not all, come to `service` from `server`, and what to do; `None` if all is
/// well.
pub(crate) fn complaint(server: &str, service: &Service, standing: Standing) -> Option<String> {
    let name = match service.name() {
        "" => "the service without a name ([client.local])".to_owned(),
        name => format!("the service {name:?}"),
    };
    let text = match standing {
        Standing::Unsaid => return None,
        Standing::Accepted(there) => {
            let there = there.filter(|there| !service.local.ports.fits(there.count))?;
            return Some(misfit(server, &name, service, there));
        }
        Standing::Refused(ServiceVerdict::Unknown) if service.name().is_empty() => format!(
            "{server} has {name} not at the address that this client dials: give it a \
             [[server.listeners]] with that quic_addr, or give the service the name that it has in \
             [[server.services]] there"
        ),
        Standing::Refused(ServiceVerdict::Unknown) => format!(
            "{server} does not know {name} at the address that this client dials: add it to \
             [[server.services]] there, or correct name in [[client.services]] here"
        ),
        Standing::Refused(ServiceVerdict::NotAllowed) => format!(
            "{server} does not let this client serve {name}: add it to services in this client's \
             [[server.clients]] entry there"
        ),
        Standing::Refused(ServiceVerdict::OtherProtocol) => format!(
            "{server} has {name} for another protocol than this client: make protocol in \
             [[client.services]] here and in [[server.services]] there agree"
        ),
        Standing::Refused(verdict) => format!(
            "{server} does not take {name} from this client ({verdict}): its log or a newer \
             version of this client may tell more"
        ),
        Standing::TooOld => format!(
            "{server} runs an older version, which does not know services with names, so it sends \
             nobody to {name}: update that server, or serve it by [client.local] and a \
             [[server.listeners]] there"
        ),
    };
    Some(text)
}

fn misfit(server: &str, name: &str, service: &Service, there: TrafficPorts) -> String {
    let here = service.local.ports;
    let last = there.first + (there.count - 1);
    let range = if there.count == 1 {
        there.first.to_string()
    } else {
        format!("{}-{last}", there.first)
    };
    format!(
        "{name} has the port or ports {here} here and {range} at {server}: they go by position, \
         so those beyond the shorter range are not served; make port in [[client.services]] as \
         many as traffic_addr there, or \"same\""
    )
}

#[cfg(test)]
mod tests {
    use qmux_config::{ListenerProtocol, LocalPorts, Ports};
    use qmux_proto::control::ServiceAnswer;

    use super::super::tests::local;
    use super::*;

    fn services() -> Services {
        let port = LocalPorts::These(Ports::one(80));
        Services::new(&[
            local("", port, ListenerProtocol::Both),
            local("web", port, ListenerProtocol::Both),
            local("db", port, ListenerProtocol::Tcp),
        ])
    }

    fn answer(name: &str, verdict: ServiceVerdict, ports: Option<TrafficPorts>) -> ServiceAnswer {
        ServiceAnswer {
            name: name.into(),
            verdict,
            ports,
        }
    }

    #[test]
    fn answers_are_taken_by_name_and_what_is_left_out_is_unknown() {
        let ports = TrafficPorts::new(8_080, 1);
        let message = ServiceAnswers {
            answers: vec![
                answer("web", ServiceVerdict::Accepted, ports),
                answer("", ServiceVerdict::NotAllowed, None),
                answer("stranger", ServiceVerdict::Accepted, None),
            ],
        };
        assert_eq!(
            standings(&services(), &message),
            [
                Standing::Refused(ServiceVerdict::NotAllowed),
                Standing::Accepted(ports),
                Standing::Refused(ServiceVerdict::Unknown),
            ]
        );
    }

    #[test]
    fn an_old_server_serves_the_nameless_service_alone() {
        let standings = standings_at_old_server(&services());
        assert!(standings[0].is_accepted());
        assert_eq!(standings[1..], [Standing::TooOld; 2]);
        let services = services();
        let text = complaint("a server", &services.all()[1], standings[1]).expect("a complaint");
        assert!(
            text.contains("older version") && text.contains("\"web\""),
            "{text}"
        );
    }

    #[test]
    fn each_service_is_told_once_and_again_when_it_changes() {
        let told = Told::default();
        assert_eq!(told.accepted(), None);
        let refused = Standing::Refused(ServiceVerdict::NotAllowed);
        let first = [Standing::Accepted(None), refused];
        assert_eq!(told.news(0, &first).len(), 2);
        assert_eq!(told.news(0, &first), [], "another lane says the same");
        assert_eq!(told.accepted(), Some(1));
        assert_eq!(told.standing(0, 1), refused);
        assert_eq!(told.standing(1, 1), Standing::Unsaid, "not yet");
        let changed = told.news(0, &[Standing::Accepted(None); 2]);
        assert_eq!(
            changed,
            [ChangedAnswer {
                index: 1,
                before: refused,
                now: Standing::Accepted(None)
            }]
        );
    }

    #[test]
    fn a_complaint_names_service_server_reason_and_way_out() {
        let services = services();
        let [_, web, db] = services.all() else {
            panic!("three")
        };
        let said = |service, standing| complaint("tunnel:8443", service, standing);
        assert_eq!(said(web, Standing::Unsaid), None);
        assert_eq!(
            said(web, Standing::Accepted(TrafficPorts::new(8_080, 1))),
            None
        );
        for (standing, words) in [
            (
                Standing::Refused(ServiceVerdict::Unknown),
                ["does not know", "[[server.services]]"],
            ),
            (
                Standing::Refused(ServiceVerdict::NotAllowed),
                ["does not let this client", "[[server.clients]]"],
            ),
            (Standing::Refused(ServiceVerdict::Other(9)), ["9", "log"]),
            (
                Standing::Accepted(TrafficPorts::new(30_000, 100)),
                ["30000-30099", "[[client.services]]"],
            ),
        ] {
            let text = said(db, standing).expect("a complaint");
            assert!(
                text.contains("\"db\"") && text.contains("tunnel:8443"),
                "{text}"
            );
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
