//! Scenarios of the wire format, split by topic. One program, because it links once.

mod cid;
mod codes;
mod control_messages;
mod control_stream;
mod datagram;
mod hostile_reassembly;
mod open_header;
mod random;
mod reassembly;
mod split;
mod strategies;
mod varint;
mod wire_bytes;
