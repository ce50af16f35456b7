//! `qmux-bench performance`: the page of all measurements.

use std::path::PathBuf;

use anyhow::{Result, anyhow};

use crate::harness::cleanup::say;
use crate::harness::read;
use crate::performance::{Results, page};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The prose, with lines that say what was measured stands under them
    #[arg(long, value_name = "FILE")]
    template: PathBuf,
    /// A directory of results; NAME=DIR is taken as if it were called NAME
    #[arg(long = "from", value_name = "DIR")]
    from: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let template = read(&args.template)?;
    let mut results = Results::default();
    args.from.iter().try_for_each(|from| results.add(from))?;
    let path = args.template.display();
    let page = page(&template, &results).map_err(|wrong| anyhow!("{path}, {wrong:#}"))?;
    say!("{}", page.strip_suffix('\n').unwrap_or(&page));
    Ok(true)
}
