//! The command `flexdraft inspect`, which reports the contents of a model's files.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use flexdraft::model::inspect::{Report, TensorReport};

use crate::error::{CliError, Result};

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model: a Hugging Face directory with config.json and safetensors, or a GGUF file
    ///
    /// The command maps the files into memory; they must not change while it runs.
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub target: PathBuf,
    /// A drafter's directory, to check together with the target [default: none]
    #[arg(long, value_name = "DIR")]
    pub draft: Option<PathBuf>,
}

/// Prints a report on a model's files. Invalid weights are an error that the user can fix.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    // SAFETY: other processes cannot be prevented from changing these files, only forbidden to, which the help of
    // --target does; this process writes to no file.
    let report = unsafe { Report::map(&args.target, args.draft.as_deref()) }?;
    let mut stdout = io::stdout().lock();
    write!(stdout, "{report}").and_then(|()| stdout.flush()).map_err(CliError::Output)?;
    let drafter = report.drafter.as_ref().map(|drafter| &drafter.tensors);
    match [&report.target].into_iter().chain(drafter).find_map(fault) {
        Some(fault) => Err(CliError::Usage(fault)),
        None => Ok(()),
    }
}

/// Counts the problems that prevent a checkpoint from running, and describes them.
fn fault(tensors: &TensorReport) -> Option<String> {
    let (misfits, odd) = (tensors.problems.len(), tensors.non_finite.len());
    let path = tensors.path.display();
    match (misfits, odd) {
        (0, 0) => None,
        (0, _) => Some(format!("{path}: tensors with numbers that are not finite: {odd} (see the report)")),
        (_, 0) => Some(format!("{path}: tensors that are missing or do not fit: {misfits} (see the report)")),
        _ => Some(format!(
            "{path}: tensors that are missing or do not fit: {misfits}, tensors with numbers that are not finite: \
             {odd} (see the report)"
        )),
    }
}
