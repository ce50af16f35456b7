//! The start of a QUIC packet, as it is looked at before quiche: any bytes name a core that exists
//! or none, and the connection id that is found stands in the packet.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_proto::cid::{
    self, CID_LEN, LONG_HEADER_BIT, LONG_HEADER_DCID_OFFSET, SHORT_HEADER_DCID_OFFSET,
};

fuzz_target!(|bytes: &[u8]| {
    let (cores, packet) = match bytes.split_first() {
        Some((cores, packet)) => (usize::from(*cores), packet),
        None => (0, bytes),
    };
    let core = cid::core_of_packet(packet, cores);
    assert!(core.is_none_or(|core| core < cores));
    let is_long = packet.first().is_some_and(|first| first & LONG_HEADER_BIT != 0);
    let (dcid, offset) = if is_long {
        (cid::long_header_dcid(packet), LONG_HEADER_DCID_OFFSET)
    } else {
        (cid::short_header_dcid(packet).map(<[u8; CID_LEN]>::as_slice), SHORT_HEADER_DCID_OFFSET)
    };
    if let Some(dcid) = dcid {
        assert_eq!(dcid, &packet[offset..offset + dcid.len()]);
        // Both ways of reading it come to the same core.
        if let Some(first) = cid::core_of(dcid) {
            assert_eq!(core, usize::from(first).checked_rem(cores));
        }
    }
});
