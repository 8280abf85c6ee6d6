//! The command `flexdraft-tune curves`, which draws training curves.

use std::path::Path;

use flexdraft_tune::Result;
use flexdraft_tune::curves::{Run, draw};
use flexdraft_tune::metrics::Metrics;

use super::args::CurvesArgs;

/// Reads the metrics of runs and draws their training curves.
pub fn curves(args: &CurvesArgs) -> Result<()> {
    let runs = args.runs.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    draw(&args.out, &runs)
}

fn read(path: &Path) -> Result<Run> {
    let (folder, file) = match path.is_dir() {
        true => (Some(path), path.join("metrics.jsonl")),
        false => (path.parent(), path.to_owned()),
    };
    let name = folder.and_then(Path::file_name).unwrap_or(path.as_os_str());
    Ok(Run { name: name.to_string_lossy().into_owned(), metrics: Metrics::read(&file)? })
}
