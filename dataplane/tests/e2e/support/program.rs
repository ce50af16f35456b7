//! Programs under test and their peers: started, watched, and dead when the test is. What goes
//! wrong is a panic of the test, which then prints their last log lines.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock};
use std::thread;

use qmux_harness::{Error, Source, says_ready};
use rustix::process::Signal;

use super::memory_group::MemoryGroup;
use super::wait::{self, PATIENCE};

/// The addresses of this host on which a dp.toml has somebody listen.
fn listened_at(config: &str) -> Vec<SocketAddr> {
    let listens = |line: &&str| line.contains("_addr = ") || line.starts_with("listen = ");
    let address = |line: &str| line.split('"').nth(1)?.parse().ok();
    config.lines().filter(listens).filter_map(address).collect()
}

/// Waits until the ports that a program's config names are free: io_uring gives the sockets of a
/// killed process back a moment after its end.
fn wait_for_the_ports_of(launch: &qmux_harness::Launch) {
    let args = launch.arguments();
    let config = args.iter().position(|arg| arg == "--config");
    let config = config.and_then(|at| fs::read_to_string(args.get(at + 1)?).ok());
    for address in config.iter().flat_map(|text| listened_at(text)) {
        let is_free = || {
            TcpListener::bind(address)
                .and(UdpSocket::bind(address))
                .is_ok()
        };
        wait::until_true("the ports of the process before are free", is_free);
    }
}

/// Whether all threads of a process have stopped, or are gone (proc_pid_stat(5)).
fn has_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|it| it.chars().next());
        matches!(state, None | Some('T' | 'Z' | 'X'))
    })
}

/// How to start a program, as often as needed.
#[derive(Clone, Debug)]
pub(crate) struct Launch(qmux_harness::Launch);

impl Launch {
    /// `program` is a path, or the name of a program that `scripts/setup.sh` installs.
    pub(crate) fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        let launch = qmux_harness::Launch::new(name, find(program.into()));
        Self(launch.spawned_by(spawn))
    }

    pub(crate) fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    pub(crate) fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        Self(self.0.args(args))
    }

    pub(crate) fn env(self, name: &str, value: &str) -> Self {
        Self(self.0.env(name, value))
    }

    /// The same program in a mount namespace of its own, in which each second path shows the file
    /// of the first.
    pub(crate) fn with_files(self, files: &[(&str, &str)]) -> Self {
        let mount = "mount --bind \"$1\" \"$2\" && shift 2 && ".repeat(files.len());
        let script = mount + "exec \"$@\"";
        let paths = files.iter().flat_map(|(from, to)| [*from, *to]);
        let words = ["unshare", "--mount", "--", "sh", "-c", &script, "sh"];
        self.under(words.into_iter().chain(paths))
    }

    /// The same program in a network namespace of its own, after a shell script that sets its
    /// network up.
    pub(crate) fn in_own_network(self, set_up: &str) -> Self {
        let script = format!("set -e; ip link set lo up; {set_up}\nexec \"$@\"");
        self.under(["unshare", "--net", "--", "sh", "-c", &script, "sh"])
    }

    /// The same program in the network namespace of a program that runs.
    pub(crate) fn in_network_of(self, other: &Program) -> Self {
        let place = format!("--net=/proc/{}/ns/net", other.id());
        self.under(["nsenter", &place, "--"])
    }

    /// The same program, run by another one with these arguments before its own.
    fn under<A: Into<OsString>>(self, words: impl IntoIterator<Item = A>) -> Self {
        Self(self.0.under(words))
    }

    /// The same program in a control group with a memory limit.
    pub(crate) fn in_memory_group(self, group: &MemoryGroup) -> Self {
        let script = "echo $$ >\"$0\" && exec \"$@\"";
        self.under([
            "sh".into(),
            "-c".into(),
            script.into(),
            OsString::from(group.processes()),
        ])
    }

    /// The same program with no more than `count` file descriptors.
    pub(crate) fn with_descriptors(self, count: usize) -> Self {
        self.under(["prlimit", &format!("--nofile={count}:{count}"), "--"])
    }

    /// Starts the program.
    pub(crate) fn start(self) -> Program {
        Program(told(self.0.start()))
    }

    /// Runs it to its end and returns what it wrote to standard output; panics unless it succeeds.
    pub(crate) fn output(self) -> String {
        let mut program = self.start();
        let status = program.wait_for_exit();
        let name = &program.0.launch().name;
        assert!(status.success(), "{name} ended with {status}");
        program.stdout()
    }

    /// Spawns the program with these outputs, for tests of what it does with them.
    pub(crate) fn spawn_with(&self, stdout: Stdio, stderr: Stdio) -> Child {
        let mut command = self.0.command();
        command.stdout(stdout).stderr(stderr);
        told(self.0.spawn(command))
    }

    /// Spawns the program with standard output as a pipe, for programs whose output is too much to
    /// keep.
    pub(crate) fn spawn_piped(&self) -> Child {
        self.spawn_with(Stdio::piped(), Stdio::inherit())
    }
}

/// The value of a result of the harness; an error fails the test.
fn told<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A started program. Killed when dropped; its last log lines are printed if the test failed.
pub(crate) struct Program(qmux_harness::Program);

impl Program {
    /// Lines of the present run, standard output and standard error as they came.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lines()
    }

    /// Standard output of the present run.
    pub(crate) fn stdout(&self) -> String {
        self.0.text_of(Source::Stdout)
    }

    /// Standard error of the present run.
    pub(crate) fn stderr(&self) -> String {
        self.0.text_of(Source::Stderr)
    }

    /// Waits for the `count`th line of the present run that `matches`; panics if the program ends
    /// before.
    pub(crate) fn wait_for_lines(
        &self,
        what: &str,
        count: usize,
        matches: impl Fn(&str) -> bool,
    ) -> String {
        let line = self.0.wait_for_lines(what, count, PATIENCE, matches);
        line.unwrap_or_else(|error| panic!("waiting for {what}: {error}"))
    }

    /// Waits for a line of the present run that `matches`.
    pub(crate) fn wait_for_line(&self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        self.wait_for_lines(what, 1, matches)
    }

    /// Waits for the line that says that the program serves; `Err` with its log if it ended
    /// instead.
    pub(crate) fn wait_until_ready(&self) -> Result<(), String> {
        match self.0.wait_for_line("readiness", PATIENCE, says_ready) {
            Ok(_) => Ok(()),
            Err(Error::Ended { .. }) => Err(self
                .lines()
                .iter()
                .map(|line| format!("{line}\n"))
                .collect()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a signal. After [`Signal::STOP`], no thread runs any more: on a busy machine, the one
    /// that stops all others may have its turn late.
    pub(crate) fn signal(&self, signal: Signal) {
        self.0.signal(signal);
        if signal == Signal::STOP {
            wait::until_true("all threads have stopped", || has_stopped(self.id()));
        }
    }

    /// Waits for its end and for the end of its output.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let status = told(self.0.wait_for_end(PATIENCE));
        status.unwrap_or_else(|| panic!("{:?} did not end within {PATIENCE:?}", self.0))
    }

    /// The program's exit status, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        told(self.0.exited())
    }

    /// Sends SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.0.kill();
    }

    /// Starts the program again with the same arguments; it must have ended.
    pub(crate) fn restart(&mut self) {
        assert!(self.exited().is_some(), "{:?} still runs", self.0);
        wait_for_the_ports_of(self.0.launch());
        told(self.0.restart());
    }

    /// The program's process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.pid()
    }

    /// Resident memory in bytes, as the kernel counts it.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok());
        kilobytes.unwrap_or_else(|| panic!("{path} has no VmRSS")) * 1024
    }
}

/// The kernel ties "kill me when my parent dies" to the thread that started the child, and tests
/// start programs from threads that end. One thread that never ends starts them all.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, todo) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in todo {
                // Whoever asked has gone only if its test has failed.
                let _gone = reply.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (reply, answer) = mpsc::channel();
    let requests = spawner.lock().expect("spawner").clone();
    requests
        .send((command, reply))
        .expect("the spawner never ends");
    answer.recv().expect("the spawner answers")
}

/// The path of a program; panics with a way out if it is missing.
fn find(program: PathBuf) -> PathBuf {
    let name = program.display();
    if program.components().count() > 1 {
        assert!(program.is_file(), "{name} is not there; build it first");
        return program;
    }
    let found = program.to_str().and_then(qmux_harness::find);
    found.unwrap_or_else(|| {
        panic!("{name} is not installed; scripts/setup.sh installs what the tests need")
    })
}
