//! Tests of the probe, whose result the command keeps, and of explanations.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Run, finished, flexdraft, recorded};

/// Runs the command on the recorded pair with the cache folder `cache`.
fn run_with(cache: &Path, args: &[&str]) -> Run {
    let args = recorded(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let run = finished(flexdraft(&args).env("XDG_CACHE_HOME", cache).output().unwrap());
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    run
}

/// Returns the kept results and their contents.
fn kept(cache: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(files) = fs::read_dir(cache.join("flexdraft")) else { return Vec::new() };
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}

const AUTO: [&str; 7] = ["--json", "--prompt-ids", "1,2,3", "--max-new-tokens", "12", "--mode", "auto"];

#[test]
fn a_probe_runs_once_and_its_result_is_kept() {
    let cache = tempfile::tempdir().unwrap();
    let first = run_with(cache.path(), &AUTO);
    let before = kept(cache.path());
    assert_eq!(before.len(), 1);
    run_with(cache.path(), &AUTO);
    assert_eq!(kept(cache.path()), before);
    // A batch of another size has other steps.
    run_with(cache.path(), &[&AUTO[..], &["--samples", "2"]].concat());
    assert_eq!(kept(cache.path()).len(), 2);
    // Damaged files are replaced.
    for damaged in ["", "{", "{\"key\":\"other\",\"steps\":[]}"] {
        fs::write(&before[0].0, damaged).unwrap();
        let again = run_with(cache.path(), &AUTO);
        let found = fs::read(&before[0].0).unwrap();
        assert!(found.starts_with(b"{\"key\":") && found.len() > 200, "{damaged:?}");
        let tokens = |run: &Run| {
            let line: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            line["output_ids"].clone()
        };
        assert_eq!(tokens(&first), tokens(&again));
    }
}

#[test]
fn no_probe_without_need() {
    let cache = tempfile::tempdir().unwrap();
    run_with(cache.path(), &[&AUTO[..], &["--no-probe"]].concat());
    let ar = ["--json", "--prompt-ids", "1,2,3", "--max-new-tokens", "12", "--mode", "ar"];
    run_with(cache.path(), &ar);
    assert_eq!(kept(cache.path()), []);
}

#[test]
fn without_a_cache_folder_the_command_works() {
    let args = recorded(&AUTO);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = flexdraft(&args);
    let run = finished(command.env_remove("XDG_CACHE_HOME").env_remove("HOME").output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    // A folder that cannot be made.
    let file = tempfile::NamedTempFile::new().unwrap();
    run_with(file.path(), &AUTO);
}

#[test]
fn each_step_is_explained() {
    let cache = tempfile::tempdir().unwrap();
    let run = run_with(cache.path(), &[&AUTO[..], &["--explain"]].concat());
    let line: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    // One explanation per step, and one for the pass over the prompt.
    let steps = line["steps"].as_array().unwrap().len() + 1;
    for part in ["chose ", "> ", "  took "] {
        let found = run.stderr.lines().filter(|line| line.starts_with(part)).count();
        assert_eq!(found, steps, "{part:?}\n{}", run.stderr);
    }
    assert!(run.stderr.contains("no drafts") && run.stderr.contains("median error"), "{}", run.stderr);
    let ar = ["--json", "--prompt-ids", "1,2,3", "--max-new-tokens", "4", "--mode", "ar", "--explain"];
    assert_eq!(run_with(cache.path(), &ar).stderr, "");
}

#[test]
fn bench_expects_durations() {
    let cache = tempfile::tempdir().unwrap();
    let bench = |more: &[&str]| {
        let args = [&["bench", "--synthetic", "tiny", "--quick", "--context", "16"], more].concat();
        let run = finished(flexdraft(&args).env("XDG_CACHE_HOME", cache.path()).output().unwrap());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stdout
    };
    let text = bench(&[]);
    assert!(text.contains("expected ms") && text.contains("median error of the expected times"), "{text}");
    assert_eq!(kept(cache.path()).len(), 1);
    for line in bench(&["--json"]).lines().skip(1) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["expected_seconds"].as_f64().unwrap() > 0.0, "{line}");
    }
    let text = bench(&["--no-probe"]);
    assert!(!text.contains("expected"), "{text}");
}
