//! How a program is started.
//!
//! A child is killed when this process ends, for whatever reason: `setpriv --pdeathsig KILL`
//! arranges that, and then executes the program under the same process id. The kernel sends the
//! signal when the *thread* that started the child ends (prctl(2), PR_SET_PDEATHSIG), so children
//! must be started by a thread that outlives them.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Ended, Error, Program, Source};

/// Where a program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// The CPUs that it may use; empty for all.
    pub cpus: Vec<usize>,
    /// A network namespace of `ip netns`; `None` for this process's own.
    pub namespace: Option<String>,
}

/// Starts a child from a command.
type Spawn = fn(Command) -> io::Result<Child>;

/// How to start a program, as often as needed.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The name of the program in errors.
    pub name: String,
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    /// Programs that run this one, with their arguments, the outermost first.
    under: Vec<OsString>,
    spawn: Spawn,
}

impl Launch {
    /// `program` is a path or a name to be looked for in `PATH`.
    pub fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            under: Vec::new(),
            spawn: |mut command| command.spawn(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds arguments with spaces between them.
    #[must_use]
    pub fn words(self, words: &str) -> Self {
        self.args(words.split(' '))
    }

    /// Adds a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the program on these CPUs and in this network namespace.
    #[must_use]
    pub fn at(mut self, place: Where) -> Self {
        if !place.cpus.is_empty() {
            let cpus: Vec<String> = place.cpus.iter().map(usize::to_string).collect();
            self = self.under(["taskset", "-c", &cpus.join(",")]);
        }
        match place.namespace {
            Some(namespace) => self.under(["ip", "netns", "exec", &namespace]),
            None => self,
        }
    }

    /// Runs the program under another one, which is put before those that were added so far. The
    /// other program must execute it in its own place, so that the process id stays the same.
    #[must_use]
    pub fn under<A: Into<OsString>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.under.splice(..0, words.into_iter().map(Into::into));
        self
    }

    /// Starts the children with this function, which uses a thread that outlives them.
    #[must_use]
    pub fn spawned_by(mut self, spawn: Spawn) -> Self {
        self.spawn = spawn;
        self
    }

    /// The arguments of the program.
    pub fn arguments(&self) -> &[OsString] {
        &self.args
    }

    /// The command as one would type it, without the `setpriv` that ties the child to this process.
    pub fn command_line(&self) -> String {
        let words = self.under.iter().map(|it| it.to_string_lossy());
        let words = words.chain([self.program.to_string_lossy()]);
        let words = words.chain(self.args.iter().map(|it| it.to_string_lossy()));
        words.collect::<Vec<_>>().join(" ")
    }

    /// The command that starts the child, with pipes for its output.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.under)
            .arg(&self.program)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a child from a command that [`command`](Self::command) has made.
    pub fn spawn(&self, command: Command) -> Result<Child, Error> {
        (self.spawn)(command).map_err(Error::io(format!("starting {}", self.name)))
    }

    /// Starts the program.
    pub fn start(&self) -> Result<Program, Error> {
        Program::start(self.clone())
    }

    /// Runs the program to its end and returns what it wrote to standard output, whether it
    /// succeeded or not. A program that does not end within `limit` is killed.
    pub fn output(&self, limit: Duration) -> Result<String, Error> {
        Ok(self.run(limit)?.output)
    }

    /// Like [`output`](Self::output), but a program that fails is an error.
    pub fn succeed(&self, limit: Duration) -> Result<String, Error> {
        let ended = self.run(limit)?;
        if ended.succeeded {
            return Ok(ended.output);
        }
        Err(ended.into_error(&self.name))
    }

    /// Runs the program to its end. A program that does not end within `limit` is killed.
    pub fn run(&self, limit: Duration) -> Result<Ended, Error> {
        let mut program = self.start()?;
        let Some(status) = program.wait_for_end(limit)? else {
            return Err(Error::TimedOut {
                what: self.name.clone(),
                limit,
                log: program.quote(),
            });
        };
        Ok(Ended {
            succeeded: status.success(),
            output: program.text_of(Source::Stdout),
            lines: program.lines(),
        })
    }
}

/// The directory of this program, which also has the other programs of the same build.
pub fn own_directory() -> PathBuf {
    let own = std::env::current_exe().ok();
    own.and_then(|it| Some(it.parent()?.to_owned()))
        .unwrap_or_default()
}

/// Finds a program by its name, in `PATH` or in the directories of daemons, which are not in every
/// user's `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(daemons)
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

    #[test]
    fn the_command_line_says_where() {
        let launch = Launch::new("script", "sh").args(["-c", "true"]);
        let launch = launch.under(["valgrind"]).at(Where {
            cpus: vec![0, 3],
            namespace: Some("far".into()),
        });
        let wanted = "ip netns exec far taskset -c 0,3 valgrind sh -c true";
        assert_eq!(launch.command_line(), wanted);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-program-has-this-name"), None);
    }
}
