//! Programs under test and their peers: started, watched, and dead when the test is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::memory_group::MemoryGroup;
use super::wait::{self, PATIENCE};

/// Log lines of each program that a failing test prints.
const LINES_ON_FAILURE: usize = 100;

/// The addresses of this host on which a dp.toml has somebody listen.
fn listened_at(config: &str) -> Vec<SocketAddr> {
    let listens = |line: &&str| line.contains("_addr = ") || line.starts_with("listen = ");
    let address = |line: &str| line.split('"').nth(1)?.parse().ok();
    config.lines().filter(listens).filter_map(address).collect()
}

/// How to start a program, again and again if need be.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The program's name in failures.
    pub(crate) name: String,
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
}

impl Launch {
    /// Waits until the ports that its config names are free: io_uring gives the sockets of a killed
    /// process back a moment after its end.
    fn wait_for_its_ports(&self) {
        let config = self.args.iter().position(|arg| arg == "--config");
        let config = config.and_then(|at| fs::read_to_string(self.args.get(at + 1)?).ok());
        for address in config.iter().flat_map(|text| listened_at(text)) {
            let is_free = || {
                TcpListener::bind(address)
                    .and(UdpSocket::bind(address))
                    .is_ok()
            };
            wait::until_true("the ports of the process before are free", is_free);
        }
    }

    /// `program` is a path, or the name of a program that `scripts/setup.sh` installs.
    pub(crate) fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: find(program.into()),
            args: Vec::new(),
            envs: Vec::new(),
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same program in a mount namespace of its own, in which each second path shows the file
    /// of the first.
    pub(crate) fn with_files(self, files: &[(&str, &str)]) -> Self {
        let mut script = String::new();
        let mut args: Vec<OsString> = Vec::new();
        for (from, to) in files {
            script += "mount --bind \"$1\" \"$2\" && shift 2 && ";
            args.extend([from.into(), to.into()]);
        }
        script += "exec \"$@\"";
        args.push(self.program.into());
        args.extend(self.args);
        Self {
            name: self.name,
            program: find("unshare".into()),
            args: ["--mount", "--", "sh", "-c", &script, "sh"]
                .map(OsString::from)
                .into_iter()
                .chain(args)
                .collect(),
            envs: self.envs,
        }
    }

    /// The same program in a network namespace of its own, after a shell script that sets its
    /// network up.
    pub(crate) fn in_own_network(self, set_up: &str) -> Self {
        let script = format!("set -e; ip link set lo up; {set_up}\nexec \"$@\"");
        self.under("unshare", &["--net", "--", "sh", "-c", &script, "sh"])
    }

    /// The same program in the network namespace of a program that runs.
    pub(crate) fn in_network_of(self, other: &Program) -> Self {
        let place = format!("--net=/proc/{}/ns/net", other.id());
        self.under("nsenter", &[&place, "--"])
    }

    /// The same program, run by another one with these arguments before its own.
    fn under(self, program: &str, first: &[&str]) -> Self {
        let first = first.iter().map(OsString::from);
        Self {
            name: self.name,
            program: find(program.into()),
            args: first
                .chain([self.program.into()])
                .chain(self.args)
                .collect(),
            envs: self.envs,
        }
    }

    /// The same program in a control group with a memory limit.
    pub(crate) fn in_memory_group(self, group: &MemoryGroup) -> Self {
        let processes = group.processes();
        let processes = processes.to_str().expect("a path in UTF-8");
        self.under("sh", &["-c", "echo $$ >\"$0\" && exec \"$@\"", processes])
    }

    /// The same program with no more than `count` file descriptors.
    pub(crate) fn with_descriptors(self, count: usize) -> Self {
        let limit = format!("--nofile={count}:{count}");
        self.under("prlimit", &[&limit, "--"])
    }

    /// Starts it.
    pub(crate) fn start(self) -> Program {
        let log = Arc::new(Log::default());
        let running = spawn(&self, &log);
        Program {
            launch: self,
            log,
            running,
        }
    }

    /// Runs it to its end and returns what it wrote to standard output; panics unless it succeeds.
    pub(crate) fn output(self) -> String {
        let mut program = self.start();
        let status = program.wait_for_exit();
        let name = &program.launch.name;
        assert!(status.success(), "{name} ended with {status}");
        program.stdout()
    }

    /// Spawns the program with these outputs, for tests of what it does with them.
    pub(crate) fn spawn_with(&self, stdout: Stdio, stderr: Stdio) -> Child {
        let mut command = self.command();
        command.stdout(stdout).stderr(stderr);
        spawn_command(command).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Spawns the program with standard output as a pipe, for programs whose output is too much to
    /// keep.
    pub(crate) fn spawn_piped(&self) -> Child {
        let mut command = self.command();
        command.stderr(Stdio::inherit());
        spawn_command(command).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn command(&self) -> Command {
        // The kernel kills the child when the test process dies, however it dies. setpriv sets that
        // up and becomes the program itself, under the same process id.
        let mut command = Command::new(find("setpriv".into()));
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A started program. Killed when dropped; its last log lines are printed if the test failed.
pub(crate) struct Program {
    launch: Launch,
    log: Arc<Log>,
    running: Running,
}

struct Running {
    child: Child,
    readers: Vec<thread::JoinHandle<()>>,
    status: Option<ExitStatus>,
}

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Stdout,
    Stderr,
    Harness,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<(Source, String)>,
    /// Where the lines of the present run start.
    run: usize,
    /// Readers of the present run that are still reading.
    reading: usize,
}

impl Program {
    /// Lines of the present run, standard output and standard error as they came.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.log.lock();
        lines.all[lines.run..]
            .iter()
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// Standard output of the present run.
    pub(crate) fn stdout(&self) -> String {
        self.text_of(Source::Stdout)
    }

    /// Standard error of the present run.
    pub(crate) fn stderr(&self) -> String {
        self.text_of(Source::Stderr)
    }

    fn text_of(&self, wanted: Source) -> String {
        let lines = self.log.lock();
        lines.all[lines.run..]
            .iter()
            .filter(|(source, _)| *source == wanted)
            .map(|(_, line)| format!("{line}\n"))
            .collect()
    }

    /// Waits for the `count`th line of the present run that `matches`; panics if the program ends
    /// before.
    pub(crate) fn wait_for_lines(
        &self,
        what: &str,
        count: usize,
        matches: impl Fn(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lock();
        loop {
            let found = lines.all[lines.run..]
                .iter()
                .filter(|(source, line)| *source != Source::Harness && matches(line))
                .nth(count - 1);
            if let Some((_, line)) = found {
                return line.clone();
            }
            let name = &self.launch.name;
            assert!(
                lines.reading > 0,
                "{name} ended without this in its log: {what}"
            );
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{name} did not log this within {PATIENCE:?}: {what}"
            );
            lines = self.log.wait(lines, left);
        }
    }

    /// Waits for a line of the present run that `matches`.
    pub(crate) fn wait_for_line(&self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        self.wait_for_lines(what, 1, matches)
    }

    /// Waits for the line that says that the program serves; `Err` if it ended instead.
    pub(crate) fn wait_until_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lock();
        loop {
            if lines.all[lines.run..]
                .iter()
                .any(|(_, line)| says_ready(line))
            {
                return Ok(());
            }
            if lines.reading == 0 {
                return Err(lines.all[lines.run..]
                    .iter()
                    .map(|(_, line)| format!("{line}\n"))
                    .collect());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let name = &self.launch.name;
            assert!(
                !left.is_zero(),
                "{name} did not become ready within {PATIENCE:?}"
            );
            lines = self.log.wait(lines, left);
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.running.child);
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.launch.name));
    }

    /// Waits for its end and for the end of its output.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let status = wait::until(&format!("{} ends", self.launch.name), || self.exited());
        for reader in self.running.readers.drain(..) {
            reader.join().expect("a log reader");
        }
        status
    }

    /// Its exit status, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.running.status.is_none() {
            self.running.status = self.running.child.try_wait().expect("our own child");
        }
        self.running.status
    }

    /// Sends SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.running.kill();
    }

    /// Starts it again with the same arguments; it must have ended.
    pub(crate) fn restart(&mut self) {
        assert!(self.exited().is_some(), "{} still runs", self.launch.name);
        for reader in self.running.readers.drain(..) {
            reader.join().expect("a log reader");
        }
        self.launch.wait_for_its_ports();
        self.log.push(Source::Harness, "---- started again".into());
        let mut lines = self.log.lock();
        lines.run = lines.all.len();
        drop(lines);
        self.running = spawn(&self.launch, &self.log);
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.running.child.id()
    }

    /// Resident memory in bytes, as the kernel counts it.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.running.child.id());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok());
        kilobytes.unwrap_or_else(|| panic!("{path} has no VmRSS")) * 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let by_itself = self.exited();
        self.running.kill();
        if thread::panicking() {
            let lines = self.log.lock();
            let skipped = lines.all.len().saturating_sub(LINES_ON_FAILURE);
            let state = by_itself.map_or("ran until the test failed".into(), |status| {
                format!("had ended by itself: {status}")
            });
            let Launch { name, args, .. } = &self.launch;
            eprintln!("---- {name} {args:?} {state}; {skipped} lines, then:");
            for (_, line) in &lines.all[skipped..] {
                eprintln!("    {line}");
            }
        }
    }
}

impl Running {
    fn kill(&mut self) {
        if self.status.is_none() {
            // Fails only if it has ended by itself.
            let _ended = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Log {
    /// Locks the lines, even after a test has panicked while it looked: they are then what it wants
    /// to show.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lines: MutexGuard<'a, Lines>, longest: Duration) -> MutexGuard<'a, Lines> {
        let waited = self.changed.wait_timeout(lines, longest);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn push(&self, source: Source, line: String) {
        self.lock().all.push((source, line));
        self.changed.notify_all();
    }

    fn reading(&self, more: isize) {
        let mut lines = self.lock();
        lines.reading = lines.reading.saturating_add_signed(more);
        drop(lines);
        self.changed.notify_all();
    }
}

/// Whether a line has the word `ready`: "already" does not count.
fn says_ready(line: &str) -> bool {
    line.split(|letter: char| !letter.is_alphanumeric())
        .any(|word| word == "ready")
}

fn spawn(launch: &Launch, log: &Arc<Log>) -> Running {
    let mut child =
        spawn_command(launch.command()).unwrap_or_else(|error| panic!("{}: {error}", launch.name));
    let stdout = child.stdout.take().expect("a pipe");
    let stderr = child.stderr.take().expect("a pipe");
    let readers = vec![
        follow(stdout, Source::Stdout, log),
        follow(stderr, Source::Stderr, log),
    ];
    Running {
        child,
        readers,
        status: None,
    }
}

fn follow(
    pipe: impl Read + Send + 'static,
    source: Source,
    log: &Arc<Log>,
) -> thread::JoinHandle<()> {
    let log = Arc::clone(log);
    log.reading(1);
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            log.push(source, String::from_utf8_lossy(&line).into_owned());
        }
        log.reading(-1);
    })
}

/// The kernel ties "kill me when my parent dies" to the thread that started the child, and tests
/// start programs from threads that end. One thread that never ends starts them all.
fn spawn_command(command: Command) -> io::Result<Child> {
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
    if program.components().count() > 1 {
        assert!(
            program.is_file(),
            "{} is not there; build it first",
            program.display()
        );
        return program;
    }
    // Daemons live in sbin, which is not on everybody's PATH.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    std::env::split_paths(&path)
        .map(|dir| dir.join(&program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!(
                "{} is not installed; scripts/setup.sh installs what the tests need",
                program.display()
            )
        })
}
