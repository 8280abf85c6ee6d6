//! Results of probes in files.

use std::path::{Path, PathBuf};
use std::{env, fs, io, process};

use flexdraft::decode::{Probe, ProbedStep, StepShape};
use serde::{Deserialize, Serialize};

use super::key::hash;

/// Returns the folder for results of probes: `flexdraft` in `XDG_CACHE_HOME`, or in `.cache` in `HOME`. `None` if neither
/// variable names an absolute path.
pub fn folder() -> Option<PathBuf> {
    folder_from(|name| env::var_os(name).map(PathBuf::from))
}

fn folder_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // A relative path is invalid by the XDG Base Directory Specification.
    let path = |name| variable(name).filter(|path| path.is_absolute());
    let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    Some(caches?.join("flexdraft"))
}

/// Returns the file in `folder` that keeps the result for `key`.
pub fn file(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("probe-{:016x}.json", hash(key)))
}

#[derive(Serialize, Deserialize)]
struct File {
    key: String,
    steps: Vec<Step>,
}

#[derive(Serialize, Deserialize)]
struct Step {
    #[serde(with = "Shape")]
    shape: StepShape,
    seconds: f64,
    repeats: usize,
}

/// The fields of a [`StepShape`] as a file has them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "StepShape")]
struct Shape {
    sequences: usize,
    candidates: usize,
    reads: usize,
    mask_rows: usize,
    cached: usize,
    group_cached: usize,
    draft_rows: usize,
    draft_cached: usize,
}

/// Reads the result for `key`. `None` if there is no file, or if the file is damaged or of another key.
pub fn read(file: &Path, key: &str) -> Option<Probe> {
    let file: File = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let is_duration = |step: &Step| step.seconds.is_finite() && step.seconds > 0.0;
    let is_whole = file.key == key && !file.steps.is_empty() && file.steps.iter().all(is_duration);
    let step = |Step { shape, seconds, repeats }| ProbedStep { shape, seconds, repeats };
    is_whole.then(|| Probe { steps: file.steps.into_iter().map(step).collect() })
}

/// Writes the result for `key`, so that other processes see either the whole file or none.
pub fn write(file: &Path, key: &str, probe: &Probe) -> io::Result<()> {
    let step = |&ProbedStep { shape, seconds, repeats }: &ProbedStep| Step { shape, seconds, repeats };
    let contents = File { key: key.to_owned(), steps: probe.steps.iter().map(step).collect() };
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let unfinished = file.with_extension(process::id().to_string());
    fs::write(&unfinished, serde_json::to_vec(&contents)?)?;
    fs::rename(&unfinished, file).inspect_err(|_| _ = fs::remove_file(&unfinished))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_cache() {
        let folder = |variables: &[(&str, &str)]| {
            folder_from(|name| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), path("/c/flexdraft"));
        assert_eq!(folder(&[("HOME", "/h")]), path("/h/.cache/flexdraft"));
        assert_eq!(folder(&[("XDG_CACHE_HOME", ""), ("HOME", "/h")]), path("/h/.cache/flexdraft"));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "c"), ("HOME", "/h")]), path("/h/.cache/flexdraft"));
        assert_eq!(folder(&[("HOME", "")]), None);
        assert_eq!(folder(&[]), None);
    }
}
