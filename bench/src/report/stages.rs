//! Where the time of a byte goes, stage by stage: stacks grouped by the frames in them.
//!
//! The rules stand here, so that a budget is not grouped by hand. They are tried in order, and the
//! first one that a stack meets takes it whole; so what lies inside of something else (encryption
//! inside of QUIC, the loopback's delivery inside of a send) is found first, and what no rule knows
//! is shown as such.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::flamegraph::Stacks;
use crate::harness::machine::Machine;

#[derive(Clone, Copy, Debug)]
enum Of {
    /// Parts of names of the innermost frame.
    Innermost,
    /// Parts of names of any frame.
    Within,
    /// Beginnings of paths of the innermost frame that is of a known crate.
    Owner,
}

/// The crates that frames are known by. Every stack of a core's thread has frames of qmux-dp and
/// its runtime near its root, so that only the innermost one tells whose time it is.
const CRATES: [&str; 3] = [QUIC, OURS, RUNTIME];
const QUIC: &str = "quiche:: octets::";
const OURS: &str = "qmux_dp:: qmux_proto:: qmux_config:: quinn_udp:: quinn_dp::";
const RUNTIME: &str = "monoio:: tokio:: mio:: quinn:: quinn_proto:: rustls::";

const UDP_SEND: &str = "UDP send, with the loopback's delivery";
const UDP_RECEIVE: &str = "UDP receive";
const TCP_SEND: &str = "TCP send, with the loopback's delivery";
const INTERRUPTS: &str = "interrupts, with what of the network they do";
const WAITING: &str = "waiting and being woken: io_uring, epoll, scheduler";
const OTHER_CALLS: &str = "system calls of other kinds";

use Of::{Innermost, Owner, Within};

const CIPHER: &str = "aes_gcm aes_hw gcm_ GCM EVP_AEAD aead_ aes_ctr";
const WAITS: &str = "io_uring epoll sched_yield __schedule io_cqring";
const ANY_CALL: &str = "do_syscall entry_SYSCALL __x64_sys_ el0_svc";

/// The stage, and what shows it.
const RULES: &[(&str, Of, &str)] = &[
    ("AES-GCM", Within, CIPHER),
    // By what a socket does rather than by the system call: timers and wake-ups are read and
    // written, too, and either kind of socket has every call.
    (UDP_SEND, Within, "udp_sendmsg udpv6_sendmsg"),
    (UDP_RECEIVE, Within, "udp_recvmsg udpv6_recvmsg"),
    ("TCP receive", Within, "tcp_recvmsg"),
    (TCP_SEND, Within, "tcp_sendmsg"),
    // What is left of calls that only QUIC's sockets have.
    (UDP_SEND, Within, "sys_sendmsg sys_sendmmsg"),
    (UDP_RECEIVE, Within, "sys_recvmsg sys_recvmmsg"),
    (
        INTERRUPTS,
        Within,
        "asm_sysvec asm_common_interrupt irq_exit irqentry",
    ),
    (
        "page faults",
        Within,
        "exc_page_fault do_user_addr_fault handle_mm_fault",
    ),
    (WAITING, Within, WAITS),
    (
        "allocator",
        Within,
        "mi_malloc mi_free mi_heap mi_theap mi_page _mi_",
    ),
    (OTHER_CALLS, Innermost, "syscall SYSCALL"),
    (OTHER_CALLS, Within, ANY_CALL),
    ("copies in our memory", Innermost, "memcpy memmove"),
    ("the clock", Within, "clock_gettime vdso read_tsc"),
    (WAITING, Owner, "monoio::driver"),
    ("the rest of quiche", Owner, QUIC),
    ("qmux-dp itself", Owner, OURS),
    ("runtime", Owner, RUNTIME),
];

pub(crate) const ON_CPU: &str = "time on the CPU, as perf counts";
pub(crate) const CHARGED: &str = "charged by the scheduler";

/// What no rule knows.
const OTHER: &str = "not grouped";

/// A stage and its CPU time in nanoseconds.
pub(crate) type Stage = (&'static str, u64);

/// What went through meanwhile, and what that cost by two accounts.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Traffic {
    pub(crate) bytes: f64,
    /// `None` where they were not counted.
    pub(crate) packets: Option<f64>,
    /// CPU seconds of the process as perf counts them, from each switch to a thread to the switch
    /// away from it. Samples are taken by the same clock, so the stages must add up to this.
    pub(crate) on_cpu_seconds: f64,
    /// CPU seconds of the process as the scheduler charges them, which is what all other tables
    /// have. When another CPU wakes a thread that is to run at once, the scheduler takes that
    /// moment for the moment of the switch (`rq_clock_skip_update` in kernel/sched/core.c), so that
    /// the thread that still runs until the interrupt comes gets that time for nothing, and the
    /// woken one pays for it: some microseconds in a virtual machine.
    pub(crate) charged_seconds: f64,
}

impl Traffic {
    /// What the stages should add up to, in nanoseconds, by its name.
    pub(crate) fn measured(&self) -> [(&'static str, f64); 2] {
        [
            (ON_CPU, self.on_cpu_seconds),
            (CHARGED, self.charged_seconds),
        ]
        .map(|(name, seconds)| (name, seconds * 1e9))
    }
}

/// All of it, for programs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Profile {
    pub(crate) title: String,
    pub(crate) machine: Machine,
    #[serde(flatten)]
    pub(crate) traffic: Traffic,
    /// Each stage with its CPU time in nanoseconds.
    pub(crate) stages: Vec<(Cow<'static, str>, u64)>,
}

/// The index in a frame's name at which the path of the frame's crate begins; `None` if that is not
/// known. It is the first crate that is named: `monoio::task::poll<qmux_dp::…>` belongs to the
/// runtime.
fn path_of_crate(frame: &str) -> Option<&str> {
    let inside_a_word = |at: usize| {
        let before = frame[..at].chars().next_back();
        before.is_some_and(|it| it.is_alphanumeric() || it == '_' || it == ':')
    };
    let crates = CRATES.iter().flat_map(|names| names.split(' '));
    let begins = crates.filter_map(|name| {
        let mut places = frame.match_indices(name).map(|(at, _)| at);
        places.find(|at| !inside_a_word(*at))
    });
    begins.min().map(|at| &frame[at..])
}

fn stage_of(frames: &[&str]) -> &'static str {
    let owner = frames.iter().rev().find_map(|frame| path_of_crate(frame));
    let takes = |of: Of, words: &str| {
        words.split(' ').any(|word| match of {
            Innermost => frames.last().is_some_and(|frame| frame.contains(word)),
            Within => frames.iter().any(|frame| frame.contains(word)),
            Owner => owner.is_some_and(|path| path.starts_with(word)),
        })
    };
    let rule = RULES.iter().find(|(_, of, words)| takes(*of, words));
    rule.map_or(OTHER, |(stage, ..)| stage)
}

/// The stages of these stacks, the dearest first and what is not grouped last.
pub(crate) fn stages(stacks: &Stacks) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for (frames, ns) in stacks.each() {
        // The first frame is the thread's name.
        let name = stage_of(frames.get(1..).unwrap_or_default());
        match stages.iter_mut().find(|stage| stage.0 == name) {
            Some(stage) => stage.1 += ns,
            None => stages.push((name, ns)),
        }
    }
    stages.sort_by_key(|(name, ns)| (*name == OTHER, std::cmp::Reverse(*ns)));
    stages
}

/// The table of stages: CPU seconds per GB and nanoseconds per packet, their sum, and beside it
/// what was measured.
pub(crate) fn table(stages: &[Stage], traffic: &Traffic) -> String {
    let all: f64 = stages.iter().map(|(_, ns)| *ns as f64).sum();
    let grouped = stages.iter().filter(|(name, _)| *name != OTHER);
    let grouped: f64 = grouped.map(|(_, ns)| *ns as f64).sum();
    let mut text = String::from("  CPU s/GB     ns/packet      %  stage\n");
    let stages = stages.iter().map(|(name, ns)| (*name, *ns as f64));
    let sum = [("sum of what is grouped", grouped)];
    for (name, ns) in stages.chain(sum).chain(traffic.measured()) {
        // One nanosecond per byte is one second per GB.
        let (per_gb, share) = (ns / traffic.bytes, ns / all * 100.0);
        let per_packet = traffic
            .packets
            .map(|it| ns / it)
            .filter(|it| it.is_finite());
        let per_packet = per_packet.map_or("–".into(), |it| format!("{it:.0}"));
        text += &format!("{per_gb:10.3}  {per_packet:>12}  {share:5.1}  {name}\n");
    }
    let [on_cpu, charged] = traffic.measured().map(|(_, ns)| grouped / ns * 100.0);
    text + &format!(
        "the sum is {on_cpu:.1} % of the time on the CPU, {charged:.1} % of what is charged\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDED: &str = "\
core-0;start_thread;qmux_dp::flow::tcp::run::{{closure}};__recv;entry_SYSCALL_64_after_hwframe;do_syscall_64;__x64_sys_recvfrom;tcp_recvmsg;_copy_to_iter 400
core-0;start_thread;__libc_sendmsg;do_syscall_64;__sys_sendmsg;udp_sendmsg;udp_send_skb;handle_softirqs;__udp_enqueue_schedule_skb 200
core-0;start_thread;quiche::Connection<F>::send_single;EVP_AEAD_CTX_seal_scatter;aes_gcm_enc_update_vaes_avx512 150
core-0;start_thread;quiche::Connection<F>::send_single;__memmove_avx512_unaligned_erms 100
core-0;start_thread;quiche::Connection<F>::send_single 50
core-0;start_thread;syscall;do_syscall_64;__do_sys_io_uring_enter;io_cqring_wait;schedule;__schedule;finish_task_switch.isra.0 60
core-0;start_thread;quiche::Connection<F>::recv;asm_sysvec_apic_timer_interrupt;handle_softirqs;tcp_v4_rcv 30
core-0;start_thread;a_function_of_the_future 10
";

    #[test]
    fn a_stack_belongs_to_the_first_stage_that_knows_a_frame_and_nothing_is_lost() {
        let stages = stages(&Stacks::of_folded(FOLDED));
        // The receiver's side of the loopback runs inside of the send. What is not grouped is last.
        let wanted = [
            ("TCP receive", 400),
            (UDP_SEND, 200),
            ("AES-GCM", 150),
            ("copies in our memory", 100),
            (WAITING, 60),
            ("the rest of quiche", 50),
            (INTERRUPTS, 30),
            (OTHER, 10),
        ];
        assert_eq!(stages, wanted);
    }

    /// Lines of `STACK => STAGE`, the beginning of its name, each below these frames.
    fn expect(root: &str, lines: &str) {
        for line in lines.trim().lines() {
            let (stack, wanted) = line.trim().split_once(" => ").expect("a stage");
            let stack = format!("{root};{stack}");
            let frames: Vec<&str> = stack.split(';').collect();
            assert!(stage_of(&frames).starts_with(wanted), "{stack}");
        }
    }

    #[test]
    fn the_innermost_frame_of_a_known_crate_tells_whose_time_it_is() {
        expect(
            "start_thread;monoio::runtime::Runtime::block_on;qmux_dp::core::run",
            "quiche::Connection<F>::recv;core::slice::sort => the rest of quiche
             qmux_dp::lane::turn;alloc::vec::Vec::push => qmux-dp itself
             monoio::task::raw::poll<qmux_dp::lane::Lane> => runtime
             <qmux_dp::lane::Lane as monoio::Future>::poll => qmux-dp itself
             monoio::driver::uring::IoUringDriver::submit => waiting and being woken
             monoio::driver::uring::with;qmux_dp::lane::turn => qmux-dp itself
             __close;do_syscall_64;__x64_sys_close => system calls of other kinds
             memcpy;asm_exc_page_fault;clear_page_erms => page faults
             quiche::send;memcpy_orig;do_syscall_64;memcpy_orig => system calls of other kinds",
        );
        assert_eq!(stage_of(&["start_thread", "my_monoio::run"]), OTHER);
    }

    #[test]
    fn a_system_call_is_billed_to_the_socket_that_it_is_of() {
        expect(
            "qmux_dp::core::run",
            "do_syscall_64;__x64_sys_recvfrom;udp_recvmsg;copy => UDP receive
             do_syscall_64;__x64_sys_sendto;udpv6_sendmsg;tcp_v4_rcv => UDP send
             do_syscall_64;__x64_sys_sendmsg;tcp_sendmsg_locked;copy => TCP send
             do_syscall_64;__x64_sys_sendmsg;sockfd_lookup => UDP send
             io_uring_enter;io_recv;tcp_recvmsg => TCP receive
             do_syscall_64;__x64_sys_read;timerfd_read => system calls of other kinds
             do_syscall_64;__x64_sys_write;eventfd_write => system calls of other kinds",
        );
    }

    #[test]
    fn the_table_has_the_sum_beside_what_was_measured() {
        let traffic = Traffic {
            bytes: 1_000.0,
            packets: Some(10.0),
            on_cpu_seconds: 1.1e-6,
            charged_seconds: 0.9e-6,
        };
        let text = table(&stages(&Stacks::of_folded(FOLDED)), &traffic);
        for line in [
            "     0.400            40   40.0  TCP receive",
            "     0.990            99   99.0  sum of what is grouped",
            "     1.100           110  110.0  time on the CPU, as perf counts",
            "     0.900            90   90.0  charged by the scheduler",
            "the sum is 90.0 % of the time on the CPU, 110.0 % of what is charged",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
