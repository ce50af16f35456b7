//! The measurements behind the goals, each one command of `qmux-bench`.

// The tunnels that probes are about, by their labels. Those that are not there are left out.
pub(super) const RAW: &str = "raw";
pub(super) const QUINN: &str = "quinn-dp";
pub(super) const QUINN_TUNED: &str = "quinn-dp-tuned";
pub(super) const QUINN_BBR: &str = "quinn-dp-bbr";
pub(crate) const RATHOLE: &str = "rathole";
/// qmux-dp as it was.
pub(crate) const BEFORE: &str = "before";
pub(super) const OURS: &str = "qmux-dp";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The name of the probe, and of the directory that its results go to.
    pub(crate) name: &'static str,
    pub(crate) goals: &'static [u8],
    pub(crate) tunnels: &'static [&'static str],
    /// The subcommand of `qmux-bench`, whose report has the same name.
    pub(crate) bench: &'static str,
    options: &'static str,
}

impl Probe {
    /// The options of the probe, each name with its value. A value may have spaces.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let options = self.options.split(" --");
        let options = options.map(|it| it.trim_start_matches("--"));
        options.filter_map(|it| it.split_once(' '))
    }
}

/// `NAME GOALS TUNNELS SUBCOMMAND OPTIONS;…`
macro_rules! probes {
    ($($(#[$doc:meta])* $name:literal $goals:tt $tunnels:tt $bench:literal $options:literal;)+) => {
        &[$(Probe {
            name: $name,
            goals: &$goals,
            tunnels: &$tunnels,
            bench: $bench,
            options: $options,
        }),+]
    };
}

/// Goals are numbered from 1 to this.
pub(crate) const GOALS: u8 = 10;

/// The measurement that is made by a build of qmux-dp of its own rather than by `qmux-bench`.
pub(crate) const ALLOCATIONS: &str = "allocations";

const ALL: [&str; 6] = [RAW, QUINN, QUINN_TUNED, RATHOLE, BEFORE, OURS];
const TUNNELS: [&str; 5] = [QUINN, QUINN_TUNED, RATHOLE, BEFORE, OURS];
const QUIC: [&str; 4] = [QUINN, QUINN_TUNED, BEFORE, OURS];

/// All of them: some 30 minutes with rathole and an older program, less without.
pub(crate) const PROBES: &[Probe] = probes! {
    "tcp" [1] TUNNELS "iperf"
        "--streams 1,4 --cases =tcp ×1,=tcp ×4,=tcp reverse --seconds 2 --repeats 3";
    "veth" [2] TUNNELS "iperf"
        "--path veth:1500 --streams 1 --cases =tcp ×1 --seconds 2 --repeats 3";
    "udp" [3] TUNNELS "iperf"
        "--udp-sizes 1150,8192 --udp-rates 500M,1G,2G --udp-streams 1,2 --cases \
        =udp 1150 B 1G,=udp 1150 B 2×500M,=udp 1150 B 2×1G,=udp 8192 B 2G \
        --seconds 2 --repeats 2";
    "packets" [3] QUIC "udp"
        "--sizes 64,1150,8192 --warm-up 0.5 --seconds 1 --repeats 1";
    "latency" [4] [RAW, QUINN, RATHOLE, BEFORE, OURS] "latency"
        "--warm-up 0.5 --cases =ping-pong,=ping-pong + bulk up,=ping-pong + bulk down,\
        =open loop 1000/s + bulk up,=open loop 1000/s + bulk down \
        --seconds 2 --repeats 2";
    "connect" [5] ALL "connect"
        "--warm-up 0.5 --visitors 1,64 --cases echo --seconds 2 --repeats 2";
    "flows" [5] QUIC "flows"
        "--flows 10000 --seconds 1 --repeats 1";
    "link" [6] [QUINN, QUINN_BBR, RATHOLE, BEFORE, OURS] "link"
        "--profile reference,loss-percent=0.1 --profile reference --profile \
        reference,loss-percent=3 --profile policer --cases to service \
        --warm-up 3 --seconds 4 --repeats 1";
    "lane" [6] [QUINN_TUNED, RATHOLE, BEFORE, OURS] "link"
        "--profile reference,loss-percent=0 --connections 1,100,1000,5000 --cases to visitor \
        --warm-up 3 --seconds 3 --repeats 1";
    "scale" [7] [BEFORE, OURS] "scale"
        "--core-counts 1,2,4,8 --warm-up 0.5 --seconds 2 --repeats 3";
    "syscalls" [9] TUNNELS "syscalls"
        "--warm-up 0.5 --visitors 1 --cases a round trip,a visitor \
        --seconds 2 --repeats 2";
    "programs" [10] TUNNELS "programs"
        "--connections 64 --core-counts 1 --seconds 2 --repeats 2";
    // A second core is compared with the first where the system places both alike: kept apart, one
    // core a side has a CPU of its own, and two share theirs with the other side.
    "cores" [10] [BEFORE, OURS] "programs"
        "--placement free --connections 64 --core-counts 1,2 --seconds 2 --repeats 2";
};
