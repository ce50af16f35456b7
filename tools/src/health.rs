//! `qmux-ctl health`: asks a running program's admin endpoint whether it is well, for health
//! commands of containers without a shell.

use crate::admin::Asked;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    asked: Asked,
    /// Ask whether it can serve (/readyz), not only whether it runs (/healthz).
    #[arg(long)]
    ready: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let endpoint = args.asked.endpoint()?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let answer = endpoint.get(path)?;
    let body = answer.body.trim();
    if answer.status == 200 {
        return output::to_stdout(&format!("{body}\n"));
    }
    Err(Failure::Internal(format!("{endpoint}{path} says: {body}")))
}
