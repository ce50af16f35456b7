//! `qmux-bench performance`: the page of all measurements.

use std::path::PathBuf;

use qmux_bench::harness::BenchError;
use qmux_bench::performance::{Results, page};

/// What the page is made of.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The prose, with lines that say what was measured stands under them
    #[arg(long, value_name = "FILE")]
    template: PathBuf,
    /// A directory of results; NAME=DIR is taken as if it were called NAME
    #[arg(long = "from", value_name = "DIR")]
    from: Vec<String>,
}

/// Prints it.
pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let path = args.template.display();
    let template = std::fs::read_to_string(&args.template)
        .map_err(BenchError::io(format!("reading {path}")))?;
    let mut results = Results::default();
    for from in &args.from {
        results.add(from).map_err(BenchError::Failed)?;
    }
    let page = page(&template, &results)
        .map_err(|wrong| BenchError::Failed(format!("{path}, {wrong}")))?;
    print!("{page}");
    Ok(true)
}
