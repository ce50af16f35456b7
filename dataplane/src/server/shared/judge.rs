//! Judging the services that a client offers, by the services of the door and the rights of the
//! client.

use qmux_config::{Admission, ListenerProtocol};
use qmux_proto::control::{Protocols, ServiceAnswer, ServiceOffer, ServiceVerdict, TrafficPorts};

use super::{ServedService, ServiceTable};
use crate::server::pool::registry::Offered;

/// Judges each service that a client offers. Returns the verdicts, and the services that the client
/// is to serve.
pub(crate) fn judge(
    table: &ServiceTable,
    admission: &Admission,
    offers: &[ServiceOffer],
) -> (Vec<ServiceAnswer>, Vec<Offered>) {
    let (mut answers, mut accepted) = (Vec::new(), Vec::<Offered>::new());
    for offer in offers {
        let service = table.by_name(&offer.name);
        let protocols = service.map(|it| common(it.protocol(), offer.protocols));
        let verdict = verdict(protocols, admission.may_serve(&offer.name));
        let service = service.filter(|_| verdict == ServiceVerdict::Accepted);
        if let (Some(service), Some(protocols)) = (service, protocols)
            && accepted.iter().all(|it| it.service != service.number)
        {
            accepted.push(Offered {
                service: service.number,
                protocols,
            });
        }
        answers.push(ServiceAnswer {
            name: offer.name.clone(),
            verdict,
            ports: service.and_then(|service| ports(service)),
        });
    }
    // Sorted, so that a client that offers the same services in another order is the same client.
    accepted.sort_unstable_by_key(|it| it.service);
    (answers, accepted)
}

/// Judges one service. A client without the right to serve a name does not learn whether there is
/// such a service.
///
/// `protocols` are those that both sides speak, if the service exists.
fn verdict(protocols: Option<Protocols>, is_allowed: bool) -> ServiceVerdict {
    match protocols {
        _ if !is_allowed => ServiceVerdict::NotAllowed,
        None => ServiceVerdict::Unknown,
        Some(Protocols {
            tcp: false,
            udp: false,
        }) => ServiceVerdict::OtherProtocol,
        Some(_) => ServiceVerdict::Accepted,
    }
}

fn common(service: ListenerProtocol, offered: Protocols) -> Protocols {
    Protocols {
        tcp: service.tcp() && offered.tcp,
        udp: service.udp() && offered.udp,
    }
}

fn ports(service: &ServedService) -> Option<TrafficPorts> {
    let ports = service.traffic().ports();
    TrafficPorts::new(ports.first(), ports.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_serve_a_name_does_not_learn_whether_it_is_there() {
        let both = Some(Protocols::BOTH);
        assert_eq!(verdict(both, false), verdict(None, false));
        assert_eq!(verdict(both, true), ServiceVerdict::Accepted);
        assert_eq!(verdict(None, true), ServiceVerdict::Unknown);
    }

    #[test]
    fn a_service_is_served_by_the_protocols_that_both_sides_speak() {
        let tcp = Protocols {
            tcp: true,
            udp: false,
        };
        assert_eq!(common(ListenerProtocol::Both, tcp), tcp);
        assert_eq!(common(ListenerProtocol::Tcp, Protocols::BOTH), tcp);
        let none = common(ListenerProtocol::Udp, tcp);
        assert_eq!(verdict(Some(none), true), ServiceVerdict::OtherProtocol);
    }
}
