//! The output of the doctor: a line for each step, and one sentence at the end.

use crate::failure::Failure;
use crate::output;

/// The steps that are examined, in the order in which a tunnel needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The server's name has an address.
    Name,
    /// There is a route to the address.
    Route,
    /// UDP packets get there and back.
    Udp,
    /// TLS over TCP gets through.
    Tls,
    /// Packets of the size that QUIC needs get through.
    Mtu,
    /// Both certificates are valid.
    Certificate,
    /// The server's certificate is for `server_name`.
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

/// The reason why a tunnel does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// The step that fails.
    pub(super) step: Step,
    /// A sentence that says what is wrong and what to do.
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

/// The report so far, and the first cause.
#[derive(Debug, Default)]
pub(super) struct Report {
    cause: Option<Cause>,
}

impl Report {
    /// Prints what the following steps are about.
    pub(super) fn heading(&self, text: &str) -> Result<(), Failure> {
        output::to_stdout(&format!("{text}\n"))
    }

    /// Prints that a step works.
    pub(super) fn ok(&self, step: Step, what: &str) -> Result<(), Failure> {
        self.line(step, "ok", what)
    }

    /// Prints that a step fails. Of several causes the first one is repeated at the end, because
    /// later ones may follow from it.
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

    /// Prints the sentence at the end.
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
