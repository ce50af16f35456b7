//! Child processes: started, listened to, ended.
//!
//! A child dies with this process, however that ends: `setpriv --pdeathsig KILL` sets that up and becomes the program
//! itself, under the same process id. The kernel ties it to the *thread* that started the child, so that children must
//! be started by a thread that lives as long as they shall.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::BenchError;

/// Lines of a program's log that an error quotes.
const LINES_QUOTED: usize = 12;

/// How often the end of a child is looked for.
const POLL: Duration = Duration::from_millis(5);

/// How long a program may take to listen that does not say when it does.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// Where a program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// The CPUs that it may use; empty for all.
    pub cpus: Vec<usize>,
    /// A network namespace of `ip netns`; `None` for this process's own.
    pub namespace: Option<String>,
}

/// A program that was run to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether it succeeded.
    pub succeeded: bool,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to either, as it came.
    pub lines: Vec<String>,
}

impl Ended {
    /// That it failed, with its last lines.
    pub fn into_error(self, name: &str) -> BenchError {
        BenchError::Ended {
            name: name.to_owned(),
            log: quoted(&self.lines),
        }
    }
}

fn quoted(lines: &[String]) -> String {
    let last = &lines[lines.len().saturating_sub(LINES_QUOTED)..];
    last.iter().map(|line| format!("\n    {line}")).collect()
}

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What errors call it.
    pub name: String,
    program: PathBuf,
    args: Vec<OsString>,
    place: Where,
    /// A program that runs this one, with its arguments.
    under: Vec<String>,
}

impl Launch {
    /// `program` is a path or a name to be looked for in `PATH`.
    pub fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            place: Where::default(),
            under: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs it there.
    #[must_use]
    pub fn at(mut self, place: Where) -> Self {
        self.place = place;
        self
    }

    /// Runs it by another program, which becomes it or keeps its process id.
    #[must_use]
    pub fn under(mut self, words: Vec<String>) -> Self {
        self.under = words;
        self
    }

    /// The command as one would type it.
    pub fn command_line(&self) -> String {
        let mut words: Vec<String> = self.wrapping().into_iter().collect();
        words.push(self.program.display().to_string());
        words.extend(self.args.iter().map(|it| it.to_string_lossy().into_owned()));
        words.join(" ")
    }

    /// What stands before the program, without what only ties it to this process.
    fn wrapping(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(namespace) = &self.place.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(str::to_owned));
        }
        if !self.place.cpus.is_empty() {
            let cpus: Vec<String> = self.place.cpus.iter().map(usize::to_string).collect();
            words.extend(["taskset".to_owned(), "-c".to_owned(), cpus.join(",")]);
        }
        words.extend(self.under.iter().cloned());
        words
    }

    /// Starts it.
    pub fn start(&self) -> Result<Program, BenchError> {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(self.wrapping())
            .arg(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BenchError::io(format!("starting {}", self.name)))?;
        let log = Arc::new(Log::default());
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|it| Box::new(it) as _),
            child.stderr.take().map(|it| Box::new(it) as _),
        ];
        for (pipe, is_output) in pipes.into_iter().zip([true, false]) {
            if let Some(pipe) = pipe {
                log.lock().reading += 1;
                let log = Arc::clone(&log);
                thread::spawn(move || log.follow(pipe, is_output));
            }
        }
        Ok(Program {
            name: self.name.clone(),
            command_line: self.command_line(),
            child,
            log,
            ended: None,
        })
    }

    /// Runs it to its end and returns what it wrote to standard output, whether it succeeded or not.
    pub fn output(&self, limit: Duration) -> Result<String, BenchError> {
        Ok(self.run(limit)?.output)
    }

    /// Runs it to its end.
    pub fn run(&self, limit: Duration) -> Result<Ended, BenchError> {
        let mut program = self.start()?;
        let Some(succeeded) = program.wait_for_end(limit)? else {
            return Err(BenchError::TimedOut {
                what: self.name.clone(),
                limit,
                log: program.quote(),
            });
        };
        Ok(Ended {
            succeeded,
            output: program.output(),
            lines: program.lines(),
        })
    }
}

#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    /// Each with whether it was written to standard output.
    all: Vec<(bool, String)>,
    /// Pipes that are still open.
    reading: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, pipe: Box<dyn Read + Send>, is_output: bool) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|it| it > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.lock().all.push((is_output, text));
            self.changed.notify_all();
            line.clear();
        }
        self.lock().reading -= 1;
        self.changed.notify_all();
    }
}

/// A started program. Killed when dropped.
pub struct Program {
    name: String,
    command_line: String,
    child: Child,
    log: Arc<Log>,
    ended: Option<bool>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.command_line)
    }
}

impl Program {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it was started.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// What it has written so far, to standard output and standard error as it came.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.log.lock();
        lines.all.iter().map(|(_, line)| line.clone()).collect()
    }

    fn output(&self) -> String {
        let lines = self.log.lock();
        let output = lines.all.iter().filter(|(is_output, _)| *is_output);
        output.map(|(_, line)| format!("{line}\n")).collect()
    }

    fn quote(&self) -> String {
        quoted(&self.lines())
    }

    /// Waits for a line that `matches`.
    pub fn wait_for_line(
        &self,
        what: &str,
        limit: Duration,
        matches: impl Fn(&str) -> bool,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + limit;
        let mut lines = self.log.lock();
        loop {
            if lines.all.iter().any(|(_, line)| matches(line)) {
                return Ok(());
            }
            let over = lines.reading == 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if over || left.is_zero() {
                drop(lines);
                let (name, log) = (self.name.clone(), self.quote());
                return Err(if over {
                    BenchError::Ended { name, log }
                } else {
                    BenchError::TimedOut {
                        what: format!("{name}: waiting for {what}"),
                        limit,
                        log,
                    }
                });
            }
            let waited = self.log.changed.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until somebody listens on this TCP address, for programs that do not say so.
    pub fn wait_for_listener(&self, address: SocketAddr) -> Result<(), BenchError> {
        let deadline = Instant::now() + LISTEN_LIMIT;
        while TcpStream::connect_timeout(&address, LISTEN_LIMIT).is_err() {
            let (name, log) = (self.name.clone(), self.quote());
            if self.log.lock().reading == 0 {
                return Err(BenchError::Ended { name, log });
            }
            if Instant::now() >= deadline {
                return Err(BenchError::TimedOut {
                    what: format!("{name}: waiting for its listener"),
                    limit: LISTEN_LIMIT,
                    log,
                });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits until it has ended and everything that it wrote is read; whether it succeeded. `None` if it still runs
    /// after `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<Option<bool>, BenchError> {
        let deadline = Instant::now() + limit;
        while self.ended.is_none() {
            let status = self
                .child
                .try_wait()
                .map_err(BenchError::io(format!("waiting for {}", self.name)))?;
            self.ended = status.map(|status| status.success());
            if self.ended.is_none() {
                if Instant::now() >= deadline {
                    return Ok(None);
                }
                thread::sleep(POLL);
            }
        }
        let mut lines = self.log.lock();
        while lines.reading > 0 && Instant::now() < deadline {
            let waited = self.log.changed.wait_timeout(lines, POLL);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(self.ended)
    }

    /// Asks it to end by SIGTERM, and kills it if it does not within `limit`. Whether it ended by itself.
    pub fn terminate(&mut self, limit: Duration) -> bool {
        self.signal(Signal::TERM);
        let ended = matches!(self.wait_for_end(limit), Ok(Some(_)));
        if !ended {
            self.kill();
        }
        ended
    }

    fn signal(&self, signal: Signal) {
        if self.ended.is_some() {
            return;
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now; then there is nobody to tell.
            let _ = kill_process(pid, signal);
        }
    }

    fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = Some(false);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The directory of the present program, where the others of the same build are.
pub fn own_directory() -> PathBuf {
    let own = std::env::current_exe().ok();
    own.and_then(|it| Some(it.parent()?.to_owned()))
        .unwrap_or_default()
}

/// Where a program of this name is in `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only to end a test that hangs.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Launch {
        Launch::new("script", "sh").args(["-c", script])
    }

    #[test]
    fn output_is_standard_output_alone() {
        let output = shell("echo one; echo two >&2; exit 3").output(PATIENCE);
        assert_eq!(output.expect("output"), "one\n");
        let ended = shell("echo one; echo two >&2; exit 3").run(PATIENCE);
        let ended = ended.expect("an end");
        assert!(!ended.succeeded && ended.lines.contains(&"two".to_owned()));
        assert!(ended.into_error("script").to_string().contains("two"));
    }

    #[test]
    fn a_line_is_waited_for_on_either_output() {
        let program = shell("echo it is ready >&2; sleep 60")
            .start()
            .expect("started");
        let waited = program.wait_for_line("readiness", PATIENCE, |line| line.contains("ready"));
        waited.expect("the line");
        assert_eq!(program.lines(), ["it is ready"]);
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let program = shell("echo no such file").start().expect("started");
        let waited = program.wait_for_line("readiness", PATIENCE, |line| line.contains("ready"));
        let error = waited.expect_err("it ended").to_string();
        assert!(error.contains("no such file"), "{error}");
    }

    #[test]
    fn one_that_ignores_sigterm_is_killed() {
        let mut program = shell("trap '' TERM; echo up; while :; do sleep 1; done")
            .start()
            .expect("started");
        let waited = program.wait_for_line("the trap", PATIENCE, |line| line == "up");
        waited.expect("the line");
        assert!(!program.terminate(Duration::from_millis(50)));
    }

    #[test]
    fn the_command_line_says_where() {
        let launch = shell("true").at(Where {
            cpus: vec![0, 3],
            namespace: Some("far".into()),
        });
        let wanted = "ip netns exec far taskset -c 0,3 sh -c true";
        assert_eq!(launch.command_line(), wanted);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-program-has-this-name"), None);
    }
}
