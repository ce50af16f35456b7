//! What the doctor says: a line for each step, and one sentence at the end.

use crate::failure::Failure;
use crate::output;

/// What is looked at, in the order in which a tunnel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The server's name has an address.
    Name,
    /// There is a way to the address.
    Route,
    /// Packets of UDP get there and back.
    Udp,
    /// TLS over TCP gets through.
    Tls,
    /// So do those of the size that QUIC needs.
    Mtu,
    /// Both certificates are valid.
    Certificate,
    /// The server's is for `server_name`.
    ServerName,
    /// This host's clock is right.
    Clock,
    /// Each side trusts the other's CA.
    Ca,
    /// The server accepts the token.
    Token,
    /// The server lets this client serve.
    Permission,
    /// The local service accepts connections.
    Service,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Name => "name",
            Step::Route => "route",
            Step::Udp => "udp",
            Step::Tls => "tls",
            Step::Mtu => "mtu",
            Step::Certificate => "certificate",
            Step::ServerName => "server_name",
            Step::Clock => "clock",
            Step::Ca => "ca",
            Step::Token => "token",
            Step::Permission => "permission",
            Step::Service => "service",
        }
    }
}

/// Why a tunnel does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// The step that fails.
    pub(super) step: Step,
    /// The whole truth, and what to do.
    pub(super) sentence: String,
}

impl Cause {
    pub(super) fn new(step: Step, sentence: impl Into<String>) -> Cause {
        Cause {
            step,
            sentence: sentence.into(),
        }
    }
}

/// The lines that were said, and the first cause.
#[derive(Debug, Default)]
pub(super) struct Report {
    cause: Option<Cause>,
}

impl Report {
    /// Says that the steps that follow are about this.
    pub(super) fn heading(&self, text: &str) -> Result<(), Failure> {
        output::to_stdout(&format!("{text}\n"))
    }

    /// Says that a step works.
    pub(super) fn ok(&self, step: Step, what: &str) -> Result<(), Failure> {
        self.line(step, "ok", what)
    }

    /// Says that a step fails. Of several causes the first one is told at the end: what comes after
    /// it may follow from it.
    pub(super) fn failed(&mut self, cause: Cause) -> Result<(), Failure> {
        let what = match self.cause {
            None => "the reason is in the last line",
            Some(_) => cause.sentence.as_str(),
        };
        self.line(cause.step, "failed", what)?;
        self.cause.get_or_insert(cause);
        Ok(())
    }

    fn line(&self, step: Step, state: &str, what: &str) -> Result<(), Failure> {
        output::to_stdout(&format!("{:<12} {state:<7} {what}\n", step.name()))
    }

    /// Says the sentence of the end.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.cause {
            None => output::to_stdout("\nall is well: a tunnel with this config should work\n"),
            Some(cause) => {
                let (step, sentence) = (cause.step.name(), cause.sentence);
                output::to_stdout(&format!("\n{step}: {sentence}\n"))?;
                Err(Failure::Told)
            }
        }
    }
}
