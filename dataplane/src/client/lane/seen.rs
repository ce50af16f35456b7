//! Which of the flows that a server has opened on a lane have arrived. A client that stops needs to
//! know.

use std::collections::BTreeSet;

/// Distance of the streams that one side opens in one direction (RFC 9000 section 2.1).
const STREAM_STEP: u64 = 4;

/// The flows of one lane that have arrived.
#[derive(Debug, Default)]
pub(super) struct FlowsSeen {
    /// Number of flows up to the latest one that has arrived.
    count: u64,
    /// Streams before the latest one that have not arrived. Packets are rarely reordered by more
    /// than one, so these are few; the peer's limit of open streams bounds them.
    missing: BTreeSet<u64>,
}

impl FlowsSeen {
    /// Notes that data for the flow on `stream` has arrived. Returns true the first time: later
    /// data of a flow that has ended does not make it a new one.
    pub(super) fn arrived(&mut self, stream: u64) -> bool {
        let flow = stream / STREAM_STEP;
        if flow < self.count {
            return self.missing.remove(&flow);
        }
        self.missing.extend(self.count..flow);
        self.count = flow + 1;
        true
    }

    /// Number of flows that have arrived, with those before them that are still on their way.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Whether the first `opened` flows have all arrived.
    pub(super) fn all_of(&self, opened: u64) -> bool {
        self.count >= opened && self.missing.range(..opened).next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_count_in_whatever_order_they_arrive() {
        let mut seen = FlowsSeen::default();
        assert!(seen.all_of(0) && !seen.all_of(1));
        for (stream, first) in [(1, true), (13, true), (13, false), (5, true), (1, false)] {
            assert_eq!(seen.arrived(stream), first, "{stream}");
        }
        assert!(seen.all_of(2));
        assert!(!seen.all_of(3) && !seen.all_of(4), "the third is missing");
        assert!(seen.arrived(9));
        assert!(seen.all_of(4) && !seen.all_of(5));
    }
}
