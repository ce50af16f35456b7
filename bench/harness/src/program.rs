//! Child processes: listened to, ended, started again.

use std::io::{BufRead as _, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Error, Launch};

/// Lines of a program's log that an error quotes.
const LINES_QUOTED: usize = 12;

/// Lines of its log that are printed if whoever has it panics, as a test that fails does.
const LINES_ON_PANIC: usize = 100;

/// The time between two checks whether a child has ended.
const POLL: Duration = Duration::from_millis(5);

/// The time within which a program must listen if it does not say when it does.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// The origin of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The program, to standard output.
    Stdout,
    /// The program, to standard error.
    Stderr,
    /// Whoever started it again.
    Harness,
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
    pub fn into_error(self, name: &str) -> Error {
        Error::Ended {
            name: name.to_owned(),
            log: quoted(&self.lines),
        }
    }
}

fn quoted(lines: &[String]) -> String {
    let last = &lines[lines.len().saturating_sub(LINES_QUOTED)..];
    last.iter().map(|line| format!("\n    {line}")).collect()
}

/// Whether a line has the word `ready`: "already" does not count.
pub fn says_ready(line: &str) -> bool {
    line.split(|letter: char| !letter.is_alphanumeric())
        .any(|word| word == "ready")
}

#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<(Source, String)>,
    /// The index at which the lines of the present run start.
    run: usize,
    /// Pipes that are still open.
    reading: usize,
}

impl Log {
    /// Locks the lines, even after somebody has panicked while he looked: they are then what is
    /// wanted.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lines: MutexGuard<'a, Lines>, longest: Duration) -> MutexGuard<'a, Lines> {
        let waited = self.changed.wait_timeout(lines, longest);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static, source: Source) {
        let log = Arc::clone(self);
        log.lock().reading += 1;
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|it| it > 0) {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
                log.lock().all.push((source, text.into_owned()));
                log.changed.notify_all();
                line.clear();
            }
            log.lock().reading -= 1;
            log.changed.notify_all();
        });
    }
}

/// A started program. Killed when dropped; its last lines are printed if that is because of a
/// panic.
pub struct Program {
    launch: Launch,
    log: Arc<Log>,
    child: Child,
    ended: Option<ExitStatus>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.launch.command_line())
    }
}

fn spawn(launch: &Launch, log: &Arc<Log>) -> Result<Child, Error> {
    let mut child = launch.spawn(launch.command())?;
    if let Some(pipe) = child.stdout.take() {
        log.follow(pipe, Source::Stdout);
    }
    if let Some(pipe) = child.stderr.take() {
        log.follow(pipe, Source::Stderr);
    }
    Ok(child)
}

impl Program {
    pub(crate) fn start(launch: Launch) -> Result<Self, Error> {
        let log = Arc::new(Log::default());
        let child = spawn(&launch, &log)?;
        Ok(Self {
            launch,
            log,
            child,
            ended: None,
        })
    }

    /// How it was started.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command that it was started by.
    pub fn command_line(&self) -> String {
        self.launch.command_line()
    }

    /// What it has written in its present run, to standard output and standard error as it came.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.log.lock();
        let run = lines.all[lines.run..].iter();
        run.map(|(_, line)| line.clone()).collect()
    }

    /// What it has written to one of both in its present run.
    pub fn text_of(&self, wanted: Source) -> String {
        let lines = self.log.lock();
        let run = lines.all[lines.run..].iter();
        let wanted = run.filter(|(source, _)| *source == wanted);
        wanted.map(|(_, line)| format!("{line}\n")).collect()
    }

    /// The last lines, as errors have them.
    pub(crate) fn quote(&self) -> String {
        quoted(&self.lines())
    }

    /// Waits for the `count`th line of the present run that `matches`, and returns it.
    pub fn wait_for_lines(
        &self,
        what: &str,
        count: usize,
        limit: Duration,
        matches: impl Fn(&str) -> bool,
    ) -> Result<String, Error> {
        let deadline = Instant::now() + limit;
        let mut lines = self.log.lock();
        loop {
            let run = lines.all[lines.run..].iter();
            let found = run.filter(|(_, line)| matches(line)).nth(count - 1);
            if let Some((_, line)) = found {
                return Ok(line.clone());
            }
            let over = lines.reading == 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if over || left.is_zero() {
                drop(lines);
                return Err(self.missing(over, &format!("waiting for {what}"), limit));
            }
            lines = self.log.wait(lines, left);
        }
    }

    /// Waits for a line of the present run that `matches`, and returns it.
    pub fn wait_for_line(
        &self,
        what: &str,
        limit: Duration,
        matches: impl Fn(&str) -> bool,
    ) -> Result<String, Error> {
        self.wait_for_lines(what, 1, limit, matches)
    }

    /// That it has ended, or takes too long.
    fn missing(&self, over: bool, what: &str, limit: Duration) -> Error {
        let (name, log) = (self.launch.name.clone(), self.quote());
        if over {
            return Error::Ended { name, log };
        }
        let what = format!("{name}: {what}");
        Error::TimedOut { what, limit, log }
    }

    /// Waits until somebody listens on this TCP address, for programs that do not say so.
    pub fn wait_for_listener(&self, address: SocketAddr) -> Result<(), Error> {
        let deadline = Instant::now() + LISTEN_LIMIT;
        while TcpStream::connect_timeout(&address, LISTEN_LIMIT).is_err() {
            let over = self.log.lock().reading == 0;
            if over || Instant::now() >= deadline {
                return Err(self.missing(over, "waiting for its listener", LISTEN_LIMIT));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The program's exit status, if it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.ended.is_none() {
            let waiting = Error::io(format!("waiting for {}", self.launch.name));
            self.ended = self.child.try_wait().map_err(waiting)?;
        }
        Ok(self.ended)
    }

    /// Waits until it has ended and everything that it wrote is read. `None` if it still runs after
    /// `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        let deadline = Instant::now() + limit;
        while self.exited()?.is_none() {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
        let mut lines = self.log.lock();
        while lines.reading > 0 && Instant::now() < deadline {
            lines = self.log.wait(lines, POLL);
        }
        Ok(self.ended)
    }

    /// Asks it to end by SIGTERM, and kills it if it does not within `limit`. Whether it ended by
    /// itself.
    pub fn terminate(&mut self, limit: Duration) -> bool {
        self.signal(Signal::TERM);
        let ended = matches!(self.wait_for_end(limit), Ok(Some(_)));
        if !ended {
            self.kill();
        }
        ended
    }

    /// Sends a signal; nobody is told if it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // It may have ended just now.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Sends SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            // Fails only if it has ended by itself.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Starts it again as before; it must have ended. Its lines are then those of the new run.
    pub fn restart(&mut self) -> Result<(), Error> {
        if self.wait_for_end(LISTEN_LIMIT)?.is_none() {
            let problem = format!(
                "{} still runs, and cannot be started again",
                self.launch.name
            );
            return Err(Error::Failed(problem));
        }
        let mut lines = self.log.lock();
        lines
            .all
            .push((Source::Harness, "---- started again".into()));
        lines.run = lines.all.len();
        drop(lines);
        self.child = spawn(&self.launch, &self.log)?;
        self.ended = None;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let by_itself = self.exited().ok().flatten();
        self.kill();
        if thread::panicking() {
            let state = by_itself.map_or("ran until then".into(), |status| {
                format!("had ended by itself: {status}")
            });
            let lines = self.log.lock();
            let skipped = lines.all.len().saturating_sub(LINES_ON_PANIC);
            let (name, command) = (&self.launch.name, self.launch.command_line());
            eprintln!("---- {name} ({command}) {state}; {skipped} lines, then:");
            for (_, line) in &lines.all[skipped..] {
                eprintln!("    {line}");
            }
        }
    }
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
    fn ready_is_a_word() {
        assert!(says_ready("INFO qmux_dp::ready: ready role=\"server\""));
        assert!(says_ready("{\"message\":\"ready\"}"));
        assert!(!says_ready("already gone"));
    }

    #[test]
    fn output_is_standard_output_alone() {
        let ended = shell("echo one; echo two >&2; exit 3").run(PATIENCE);
        let ended = ended.expect("an end");
        assert_eq!(ended.output, "one\n");
        assert!(!ended.succeeded && ended.lines.contains(&"two".to_owned()));
        assert!(ended.into_error("script").to_string().contains("two"));
    }

    #[test]
    fn a_line_is_waited_for_on_either_output() {
        let script = "echo it is ready >&2; echo and more; sleep 60";
        let program = shell(script).start().expect("started");
        let line = program.wait_for_line("readiness", PATIENCE, says_ready);
        assert_eq!(line.expect("the line"), "it is ready");
        let second = program.wait_for_lines("more", 2, PATIENCE, |_| true);
        second.expect("two lines");
        assert_eq!(program.lines().len(), 2);
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let program = shell("echo no such file").start().expect("started");
        let waited = program.wait_for_line("readiness", PATIENCE, says_ready);
        let error = waited.expect_err("it ended").to_string();
        assert!(error.contains("no such file"), "{error}");
    }

    #[test]
    fn one_that_ignores_sigterm_is_killed() {
        let script = "trap '' TERM; echo up; while :; do sleep 1; done";
        let mut program = shell(script).start().expect("started");
        let waited = program.wait_for_line("the trap", PATIENCE, |line| line == "up");
        waited.expect("the line");
        assert!(!program.terminate(Duration::from_millis(50)));
    }

    #[test]
    fn one_that_is_started_again_has_the_lines_of_its_present_run() {
        let mut program = shell("echo one run").start().expect("started");
        for _ in 0..2 {
            let status = program.wait_for_end(PATIENCE).expect("told");
            assert!(status.expect("an end").success());
            assert_eq!(program.lines(), ["one run"]);
            program.restart().expect("started again");
        }
    }
}
