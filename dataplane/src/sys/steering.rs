//! Steering: which core's socket of a reuseport group gets a packet.
//!
//! A classic BPF program on the group reads the first bytes of the QUIC packet itself: the byte of
//! the destination connection id that holds the server core's index (see `qmux_proto::cid`), modulo
//! the number of sockets. So a lane stays on its core when a NAT gives the client another port, or
//! the client gets another address; the kernel's own choice by a hash of the addresses would not
//! survive that. Attaching the program needs no privilege.

use std::io;
use std::net::UdpSocket;

use qmux_proto::cid::{LONG_HEADER_BIT, LONG_HEADER_DCID_OFFSET, SHORT_HEADER_DCID_OFFSET};

// Opcodes of classic BPF, from linux/bpf_common.h.
const LOAD_BYTE_ABSOLUTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const JUMP_IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const JUMP_ALWAYS: u16 = 0x05; // BPF_JMP | BPF_JA
const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
const RETURN_A: u16 = 0x16; // BPF_RET | BPF_A

const PROGRAM_LENGTH: usize = 7;

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The steering program for a group of `sockets` sockets. A packet that is too short to load from
/// goes to socket 0.
fn program(sockets: u32) -> [libc::sock_filter; PROGRAM_LENGTH] {
    [
        instruction(LOAD_BYTE_ABSOLUTE, 0, 0, 0),
        instruction(JUMP_IF_SET, 0, 2, u32::from(LONG_HEADER_BIT)),
        instruction(LOAD_BYTE_ABSOLUTE, 0, 0, LONG_HEADER_DCID_OFFSET as u32),
        instruction(JUMP_ALWAYS, 0, 0, 1),
        instruction(LOAD_BYTE_ABSOLUTE, 0, 0, SHORT_HEADER_DCID_OFFSET as u32),
        instruction(MODULO, 0, 0, sockets),
        instruction(RETURN_A, 0, 0, 0),
    ]
}

/// Attaches the steering program to the reuseport group that `socket` belongs to, of `sockets`
/// members.
///
/// # Errors
/// Those of `setsockopt(2)`, if the kernel lacks `SO_ATTACH_REUSEPORT_CBPF` (before Linux
/// 4.5).
pub(crate) fn attach(socket: &UdpSocket, sockets: usize) -> io::Result<()> {
    debug_assert!((1..=super::CORES_MAX).contains(&sockets));
    let mut filter = program(u32::try_from(sockets).map_err(io::Error::other)?);
    super::option::attach_reuseport_program(socket, &mut filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_kernel_delivers_by_the_connection_ids_first_byte() {
        const SOCKETS: usize = 4;
        let any = "127.0.0.1:0".parse().expect("literal");
        let first = crate::sys::bind::udp_reuseport(any).expect("bind");
        let addr = first.local_addr().expect("bound");
        let mut group = vec![first];
        for _ in 1..SOCKETS {
            group.push(crate::sys::bind::udp_reuseport(addr).expect("bind"));
        }
        attach(&group[0], SOCKETS).expect("attach");
        let sender = UdpSocket::bind(any).expect("bind");
        for core in 0..=255u8 {
            let mut long = [0u8; 32];
            long[0] = LONG_HEADER_BIT;
            long[LONG_HEADER_DCID_OFFSET] = core;
            let mut short = [0u8; 32];
            short[SHORT_HEADER_DCID_OFFSET] = core;
            for packet in [long, short] {
                sender.send_to(&packet, addr).expect("send");
                let expected =
                    qmux_proto::cid::core_of_packet(&packet, SOCKETS).expect("long enough");
                let socket = &group[expected];
                socket
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .expect("timeout");
                let mut got = [0u8; 64];
                let (length, _) = socket
                    .recv_from(&mut got)
                    .expect("steered to the named core");
                assert_eq!(got[..length], packet);
            }
        }
    }
}
