//! Where the time of a byte goes, stage by stage: stacks grouped by the frames in them.
//!
//! The rules stand here, so that a budget is not grouped by hand. They are tried in order, and the first one that a stack
//! meets takes it whole; so what lies inside of something else (encryption inside of QUIC, the loopback's delivery inside
//! of a send) is found first, and what no rule knows is shown as such.

use super::flamegraph::Stacks;

/// A rule: stacks with any of these in the name of any of their frames are of the stage.
#[derive(Clone, Copy, Debug)]
struct Rule {
    stage: &'static str,
    /// Parts of names of the innermost frame.
    innermost: &'static [&'static str],
    /// Parts of names of any frame.
    within: &'static [&'static str],
}

const fn within(stage: &'static str, within: &'static [&'static str]) -> Rule {
    Rule {
        stage,
        innermost: &[],
        within,
    }
}

const fn innermost(stage: &'static str, innermost: &'static [&'static str]) -> Rule {
    Rule {
        stage,
        innermost,
        within: &[],
    }
}

const RULES: &[Rule] = &[
    within(
        "AES-GCM",
        &[
            "aes_gcm", "aes_hw", "gcm_", "GCM", "EVP_AEAD", "aead_", "aes_ctr",
        ],
    ),
    within("TCP receive", &["tcp_recvmsg", "sys_recvfrom", "sys_read"]),
    within(
        "TCP send, with the loopback's delivery",
        &["tcp_sendmsg", "sys_sendto", "sys_write"],
    ),
    within(
        "UDP send, with the loopback's delivery",
        &["udp_sendmsg", "sys_sendmsg", "sys_sendmmsg"],
    ),
    within(
        "UDP receive",
        &["udp_recvmsg", "sys_recvmmsg", "sys_recvmsg"],
    ),
    within(
        "interrupts, with what of the network they do",
        &["asm_sysvec", "asm_common_interrupt", "irq_exit", "irqentry"],
    ),
    within(
        "waiting and being woken: io_uring, epoll, scheduler",
        &[
            "io_uring",
            "epoll",
            "sched_yield",
            "__schedule",
            "io_cqring",
            "monoio::driver",
        ],
    ),
    within(
        "allocator",
        &[
            "mi_malloc",
            "mi_free",
            "mi_heap",
            "mi_theap",
            "mi_page",
            "_mi_",
        ],
    ),
    innermost("copies in our memory", &["memcpy", "memmove"]),
    within("the clock", &["clock_gettime", "vdso", "read_tsc"]),
    within("the rest of quiche", &["quiche::", "octets::"]),
    within(
        "qmux-dp itself",
        &["qmux_dp::", "qmux_proto::", "quinn_udp::", "quinn_dp::"],
    ),
    within(
        "runtime",
        &["monoio::", "tokio::", "quinn::", "quinn_proto::"],
    ),
    within("system calls of other kinds", &["syscall", "SYSCALL"]),
];

/// What no rule knows.
const OTHER: &str = "not grouped";

/// A stage and its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// CPU time in nanoseconds.
    pub ns: u64,
}

/// What went through meanwhile, and what the system says that it cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Bytes of payload.
    pub bytes: f64,
    /// Packets; not a number where they were not counted.
    pub packets: f64,
    /// CPU seconds of the process by the system's own account.
    pub cpu_seconds: f64,
}

impl Rule {
    fn takes(&self, frames: &[&str]) -> bool {
        let has = |parts: &[&str], frame: &str| parts.iter().any(|part| frame.contains(part));
        frames
            .last()
            .is_some_and(|frame| has(self.innermost, frame))
            || frames.iter().any(|frame| has(self.within, frame))
    }
}

fn stage_of(frames: &[&str]) -> &'static str {
    let rule = RULES.iter().find(|rule| rule.takes(frames));
    rule.map_or(OTHER, |rule| rule.stage)
}

/// The stages of these stacks, the dearest first and what is not grouped last.
pub fn stages(stacks: &Stacks) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for (frames, ns) in stacks.each() {
        // The first frame is the thread's name.
        let name = stage_of(frames.get(1..).unwrap_or_default());
        match stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => stage.ns += ns,
            None => stages.push(Stage { name, ns }),
        }
    }
    stages.sort_by_key(|stage| (stage.name == OTHER, std::cmp::Reverse(stage.ns)));
    stages
}

/// The table of stages: CPU seconds per GB and nanoseconds per packet, their sum, and beside it what was measured.
pub fn table(stages: &[Stage], traffic: &Traffic) -> String {
    #[expect(clippy::cast_precision_loss, reason = "no profile has 2^53 ns")]
    let ns = |stage: &Stage| stage.ns as f64;
    let grouped: f64 = stages.iter().filter(|it| it.name != OTHER).map(ns).sum();
    let all: f64 = stages.iter().map(ns).sum();
    let measured = traffic.cpu_seconds * 1e9;
    // One nanosecond per byte is one second per GB.
    let line = |name: &str, ns: f64| {
        let (per_gb, per_packet) = (ns / traffic.bytes, ns / traffic.packets);
        let share = ns / all * 100.0;
        let per_packet = if per_packet.is_finite() {
            format!("{per_packet:.0}")
        } else {
            "–".into()
        };
        format!("{per_gb:10.3}  {per_packet:>12}  {share:5.1}  {name}\n")
    };
    let mut text = String::from("  CPU s/GB     ns/packet      %  stage\n");
    for stage in stages {
        text.push_str(&line(stage.name, ns(stage)));
    }
    text.push_str(&line("sum of what is grouped", grouped));
    text.push_str(&line("measured by the system", measured));
    text.push_str(&format!(
        "the sum is {:.1} % of what was measured\n",
        grouped / measured * 100.0
    ));
    text
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

    fn found() -> Vec<Stage> {
        stages(&Stacks::of_folded(FOLDED))
    }

    fn ns(name: &str) -> u64 {
        let stages = found();
        let stage = stages.iter().find(|stage| stage.name.starts_with(name));
        stage.map_or(0, |stage| stage.ns)
    }

    #[test]
    fn a_stack_belongs_to_the_first_stage_that_knows_a_frame() {
        assert_eq!(ns("TCP receive"), 400);
        // The receiver's side of the loopback runs inside of the send.
        assert_eq!(ns("UDP send"), 200);
        assert_eq!(ns("AES-GCM"), 150);
        assert_eq!(ns("copies"), 100);
        assert_eq!(ns("the rest of quiche"), 50);
        assert_eq!(ns("waiting"), 60);
        assert_eq!(ns("interrupts"), 30);
    }

    #[test]
    fn nothing_is_lost_and_what_is_not_grouped_comes_last() {
        let stages = found();
        assert_eq!(stages.iter().map(|it| it.ns).sum::<u64>(), 1_000);
        assert_eq!(
            stages.last(),
            Some(&Stage {
                name: OTHER,
                ns: 10
            })
        );
        assert_eq!(stages[0].ns, 400);
    }

    #[test]
    fn the_table_has_the_sum_beside_what_was_measured() {
        let traffic = Traffic {
            bytes: 1_000.0,
            packets: 10.0,
            cpu_seconds: 1.1e-6,
        };
        let text = table(&found(), &traffic);
        let line = |name: &str| {
            text.lines()
                .find(|line| line.ends_with(name))
                .expect("a line")
        };
        assert!(line("TCP receive").contains("0.400"), "{text}");
        assert!(line("TCP receive").contains(" 40 "), "{text}");
        assert!(line("sum of what is grouped").contains("0.990"), "{text}");
        assert!(line("measured by the system").contains("1.100"), "{text}");
        assert!(text.ends_with("the sum is 90.0 % of what was measured\n"));
    }
}
