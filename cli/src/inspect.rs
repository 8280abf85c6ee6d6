//! The command `flexdraft inspect`, which reports the contents of a model's files.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use flexdraft::model::inspect::{Report, TensorReport};

use crate::error::{CliError, Result};
use crate::hub;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model: a Hugging Face directory with config.json and safetensors, a GGUF file, or an id such as Qwen/Qwen3-8B
    ///
    /// The command maps the files into memory; they must not change while it runs.
    #[arg(long, value_name = "DIR|FILE.gguf|ID")]
    pub target: PathBuf,
    /// A drafter's directory or id, to check together with the target [default: none]
    #[arg(long, value_name = "DIR|ID")]
    pub draft: Option<PathBuf>,
}

/// Prints a report on a model's files. Weights that are missing, do not fit or are not finite are an error.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    let target = hub::local(&args.target)?;
    let draft = args.draft.as_deref().map(hub::local).transpose()?;
    // SAFETY: other processes cannot be prevented from changing these files, only forbidden to, which the help of
    // --target does; this process writes to no file.
    let report = unsafe { Report::map(&target, draft.as_deref()) }?;
    let mut stdout = io::stdout().lock();
    write!(stdout, "{report}").and_then(|()| stdout.flush()).map_err(CliError::Output)?;
    let drafter = report.drafter.as_ref().map(|drafter| &drafter.tensors);
    match [&report.target].into_iter().chain(drafter).find_map(fault) {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

/// Returns the error of a checkpoint that cannot run: tensors that are missing or do not fit, or the first tensor that
/// is not finite.
fn fault(tensors: &TensorReport) -> Option<CliError> {
    let path = tensors.path.display();
    let misfits = tensors.problems.len();
    if misfits > 0 {
        let message = format!("{path}: tensors that are missing or do not fit: {misfits} (see the report)");
        return Some(CliError::Usage(message));
    }
    let (first, count) = tensors.non_finite.first()?;
    let (elements, others) = (if *count == 1 { "element" } else { "elements" }, tensors.non_finite.len() - 1);
    let others = match others {
        0 => String::new(),
        others => format!("; so do other tensors: {others} (see the report)"),
    };
    Some(CliError::NotFinite(format!("{path}: {first} has NaN or infinity in {count} {elements}{others}")))
}
