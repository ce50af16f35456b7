//! How many UDP flows each source has at a time.
//!
//! Anybody can send a datagram with any source address. A bound of this table at which newcomers
//! are refused could be reached by strangers, and would close the service to everybody whom it does
//! not know yet; so there is none. A source is in the table while it has a flow. A core that has no
//! room for one more flow ends the oldest flow that no service has answered
//! ([`crate::flow::udp::lifetimes`]). So the flow tables of the cores bound this table too, and an
//! entry here costs a tenth of the flow that holds it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use super::refusals::Refusal;
use crate::flow::udp::room;

/// The number of flows of each source that has any.
#[derive(Debug, Default)]
pub(super) struct UdpSources {
    // Visitors choose their addresses, so the hash is one for which they cannot choose collisions.
    flows: HashMap<IpAddr, u32>,
}

impl UdpSources {
    /// Counts one more flow of a source, which may have `most` at a time, or refuses it.
    pub(super) fn open(&mut self, source: IpAddr, most: u32) -> Result<(), Refusal> {
        let flows = self.flows.entry(source).or_insert(0);
        if *flows >= most {
            return Err(Refusal::UdpFlowsOfSource);
        }
        *flows += 1;
        Ok(())
    }

    /// Counts one flow of a source less.
    pub(super) fn close(&mut self, source: IpAddr) {
        let Entry::Occupied(mut flows) = self.flows.entry(source) else {
            return;
        };
        *flows.get_mut() -= 1;
        if *flows.get() == 0 {
            flows.remove();
            // A flood may go from one service to the next, so each gives its memory back.
            room::give_back(&mut self.flows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn a_source_has_as_many_flows_as_it_may_and_others_have_their_own() {
        let mut it = UdpSources::default();
        let refused = Err(Refusal::UdpFlowsOfSource);
        assert_eq!(it.open(ip(1), 2), Ok(()));
        assert_eq!(it.open(ip(1), 2), Ok(()));
        assert_eq!(it.open(ip(1), 2), refused);
        assert_eq!(it.open(ip(2), 2), Ok(()));
        it.close(ip(1));
        assert_eq!(it.open(ip(1), 2), Ok(()));
        assert_eq!(it.open(ip(1), 1), refused, "it may have fewer now");
    }

    #[test]
    fn a_flood_leaves_neither_sources_nor_much_room_behind() {
        let mut it = UdpSources::default();
        for number in 0..50_000 {
            assert_eq!(it.open(ip(number), 1), Ok(()));
        }
        for number in 0..50_000 {
            it.close(ip(number));
            assert_eq!(it.open(ip(49_999), 1).is_ok(), number == 49_999);
        }
        assert_eq!(it.flows.len(), 1);
        assert!(it.flows.capacity() <= 4 * room::CAPACITY_KEPT);
    }
}
