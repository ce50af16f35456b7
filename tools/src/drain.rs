//! `qmux-ctl drain`: has a running program stop as SIGTERM does: no new flows, and an end when
//! those that are open have ended, at the latest after its `drain_timeout`.

use crate::admin::Asked;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    asked: Asked,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let endpoint = args.asked.endpoint()?;
    let answer = endpoint.post("/drain")?;
    let body = answer.body.trim();
    if (200..300).contains(&answer.status) {
        return output::to_stdout(&format!("{body}\n"));
    }
    Err(Failure::Internal(format!("{endpoint}/drain says: {body}")))
}
