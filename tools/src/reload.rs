//! `qmux-ctl reload`: has a running program read its configuration again, as SIGHUP does, and says
//! what has changed, or why nothing has.

use std::time::Duration;

use crate::admin::Asked;
use crate::failure::Failure;
use crate::output;

/// How long a reload may take: every new address is tried, and every core is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    asked: Asked,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let endpoint = args.asked.endpoint()?;
    let answer = endpoint.post_for("/reload", PATIENCE)?;
    let body = answer.body.trim();
    match answer.status {
        200..300 => output::to_stdout(&format!("{body}\n")),
        // The configuration cannot be used.
        422 => Err(Failure::Input(body.to_owned())),
        _ => Err(Failure::Internal(format!("{endpoint}/reload says: {body}"))),
    }
}
