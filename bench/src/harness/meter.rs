//! What processes use between two moments: CPU time, its average and its peaks, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use qmux_harness::Program;
use serde::Serialize;

use super::proc_stat::{self, CpuTime};

/// The time between two samples of a process. CPU time is counted in ticks of 10 ms, so one sample
/// is exact to 5 %.
const PERIOD: Duration = Duration::from_millis(200);

/// What a process is to the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The tunnel's server.
    Server,
    /// The tunnel's client.
    Client,
    /// What makes or takes the load.
    Load,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Load => "load",
        }
    }

    pub(crate) fn is_tunnel(self) -> bool {
        self != Self::Load
    }
}

/// A process to be metered.
#[derive(Clone, Debug)]
pub struct Metered {
    /// The role of the process.
    pub role: Role,
    /// The process id.
    pub pid: u32,
    command_line: String,
}

impl Metered {
    pub(crate) fn of(role: Role, program: &Program) -> Self {
        Self {
            role,
            pid: program.pid(),
            command_line: program.command_line(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ProcessUsage {
    role: Role,
    command: String,
    #[serde(flatten)]
    pub(crate) cpu: CpuTime,
    /// Of one CPU, over the whole; then that of the busiest sample.
    pub(crate) cpu_percent_average: f64,
    pub(crate) cpu_percent_max: f64,
    /// The mean of the resident memory over the samples.
    pub(crate) rss_average_bytes: f64,
    /// The peak of the resident memory since the start, as the kernel keeps it.
    pub(crate) rss_peak_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    pub(crate) seconds: f64,
    pub(crate) processes: Vec<ProcessUsage>,
    /// CPU time that neither these processes nor this one with its children account for, in percent
    /// of one CPU. Much of it means that the machine was busy with something else.
    pub(crate) elsewhere_percent: f64,
}

impl Usage {
    pub(crate) fn tunnel_cpu_seconds(&self) -> f64 {
        self.sum(|process| process.cpu.seconds())
    }

    /// The CPU time of the tunnel per unit of work, in µs, if it has done `units`; `None` without a
    /// tunnel.
    pub(crate) fn tunnel_cpu_us_per(&self, units: f64) -> Option<f64> {
        let us = self.tunnel_cpu_seconds() * 1e6;
        self.has_tunnel().then(|| us / units)
    }

    pub(crate) fn sum(&self, what: impl Fn(&ProcessUsage) -> f64) -> f64 {
        let tunnel = self.processes.iter().filter(|it| it.role.is_tunnel());
        tunnel.map(what).sum()
    }

    pub(crate) fn has_tunnel(&self) -> bool {
        self.processes.iter().any(|it| it.role.is_tunnel())
    }
}

/// Meters from its start to [`Meter::stop`].
#[derive(Debug)]
pub(crate) struct Meter {
    stop: Arc<AtomicBool>,
    samples: JoinHandle<Vec<Track>>,
    started: Instant,
    /// CPU seconds that were spent elsewhere until then.
    elsewhere: f64,
}

impl Meter {
    /// Starts metering. Peaks of memory start again from here.
    pub(crate) fn start(processes: &[Metered]) -> Self {
        let tracks: Vec<Track> = processes.iter().map(Track::start).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self {
            elsewhere: seconds_elsewhere(),
            started: Instant::now(),
            stop,
            samples: thread::spawn(move || sample(tracks, &stopped)),
        }
    }

    pub(crate) fn stop(self) -> Usage {
        let seconds = self.started.elapsed().as_secs_f64();
        let elsewhere = seconds_elsewhere() - self.elsewhere;
        // The sampler takes its last look when it is woken, which is now.
        self.stop.store(true, Ordering::Release);
        self.samples.thread().unpark();
        let tracks = self.samples.join().unwrap_or_default();
        let processes: Vec<ProcessUsage> = tracks.into_iter().map(Track::finish).collect();
        let metered: f64 = processes.iter().map(|it| it.cpu.seconds()).sum();
        Usage {
            seconds,
            processes,
            elsewhere_percent: ((elsewhere - metered) / seconds * 100.0).max(0.0),
        }
    }
}

/// CPU seconds of the machine that are not of this process.
fn seconds_elsewhere() -> f64 {
    let machine = proc_stat::machine_busy_seconds().unwrap_or_default();
    machine - proc_stat::cpu_seconds_with_children(std::process::id()).unwrap_or_default()
}

fn sample(mut tracks: Vec<Track>, stop: &AtomicBool) -> Vec<Track> {
    loop {
        thread::park_timeout(PERIOD);
        let over = stop.load(Ordering::Acquire);
        for track in &mut tracks {
            track.sample(over);
        }
        if over {
            return tracks;
        }
    }
}

#[derive(Debug)]
struct Track {
    pid: u32,
    usage: ProcessUsage,
    started: (Instant, CpuTime),
    last: (Instant, CpuTime),
    rss_samples: f64,
}

impl Track {
    fn start(process: &Metered) -> Self {
        let pid = process.pid;
        proc_stat::reset_peak(pid);
        let now = (Instant::now(), proc_stat::cpu_time(pid).unwrap_or_default());
        Self {
            pid,
            usage: ProcessUsage {
                role: process.role,
                command: process.command_line.clone(),
                cpu: CpuTime::default(),
                cpu_percent_average: 0.0,
                cpu_percent_max: 0.0,
                rss_average_bytes: 0.0,
                rss_peak_bytes: 0,
            },
            started: now,
            last: now,
            rss_samples: 0.0,
        }
    }

    fn sample(&mut self, is_last: bool) {
        let usage = &mut self.usage;
        // A process that is gone keeps what was last seen of it.
        if let Some(cpu) = proc_stat::cpu_time(self.pid) {
            let now = Instant::now();
            let seconds = (now - self.last.0).as_secs_f64();
            let percent = cpu.since(self.last.1).seconds() / seconds * 100.0;
            // A last sample of a few milliseconds would be all rounding.
            if !is_last || seconds >= PERIOD.as_secs_f64() / 2.0 {
                usage.cpu_percent_max = usage.cpu_percent_max.max(percent);
            }
            self.last = (now, cpu);
        }
        if let Some(memory) = proc_stat::memory(self.pid) {
            self.rss_samples += 1.0;
            let more = memory.resident_bytes as f64 - usage.rss_average_bytes;
            usage.rss_average_bytes += more / self.rss_samples;
            usage.rss_peak_bytes = memory.peak_bytes;
        }
    }

    fn finish(self) -> ProcessUsage {
        let mut usage = self.usage;
        usage.cpu = self.last.1.since(self.started.1);
        let seconds = (self.last.0 - self.started.0).as_secs_f64();
        if seconds > 0.0 {
            usage.cpu_percent_average = usage.cpu.seconds() / seconds * 100.0;
        }
        // No sample can be busier than all of them, but for the rounding to ticks.
        usage.cpu_percent_max = usage.cpu_percent_max.max(usage.cpu_percent_average);
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metered(role: Role, pid: u32) -> Meter {
        let command_line = "this test".into();
        Meter::start(&[Metered {
            role,
            pid,
            command_line,
        }])
    }

    #[test]
    fn work_and_memory_are_seen() {
        let meter = metered(Role::Server, std::process::id());
        let mut memory = vec![0_u8; 32 << 20];
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            memory.fill(std::hint::black_box(7));
        }
        let usage = meter.stop();
        let process = &usage.processes[0];
        assert!(process.cpu.seconds() > 0.0, "{process:?}");
        assert!(process.cpu_percent_max >= process.cpu_percent_average);
        assert!(process.rss_peak_bytes >= 32 << 20, "{process:?}");
        assert_eq!(usage.tunnel_cpu_seconds(), process.cpu.seconds());
        drop(std::hint::black_box(memory));
    }

    #[test]
    fn load_is_no_part_of_the_tunnel() {
        let usage = metered(Role::Load, std::process::id()).stop();
        assert_eq!(usage.tunnel_cpu_seconds(), 0.0);
        assert!(!usage.has_tunnel());
    }

    #[test]
    fn a_process_that_never_was_has_used_nothing() {
        let usage = metered(Role::Server, u32::MAX).stop();
        assert_eq!(usage.processes[0].cpu.seconds(), 0.0);
        assert_eq!(usage.processes[0].rss_peak_bytes, 0);
    }
}
