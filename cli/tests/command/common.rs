//! Helpers that run the command `flexdraft`, and models to run it on.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use tempfile::TempDir;

/// Returns the path of the target or drafter with which the official implementation's output was recorded.
pub fn tiny(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(part)
}

/// Returns the command with an environment that does not depend on the tests' terminal and directory.
pub fn flexdraft(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flexdraft"));
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    // Results of probes stay in the folder of the build, where all tests find them.
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR")).args(args);
    command
}

/// The exit code and the output of a run of the command.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn finished(output: Output) -> Run {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub fn run(args: &[&str]) -> Run {
    finished(flexdraft(args).output().unwrap())
}

/// Runs a command that must succeed.
pub fn succeed(args: &[&str]) -> Run {
    let run = run(args);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    run
}

/// Runs a command that must succeed on the recorded target and drafter.
pub fn succeed_recorded(args: &[&str]) -> Run {
    let args = recorded(args);
    succeed(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Returns the arguments for the recorded target and drafter in parallel mode, unless `args` override them.
pub fn recorded(args: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let has = |args: &[String], option: &str| args.iter().any(|arg| arg == option);
    if !has(&args, "--target") {
        let defaults = [("--draft", tiny("draft")), ("--mode", "parallel".into())];
        for (option, value) in
            defaults.into_iter().filter(|(option, _)| !has(&args, option)).collect::<Vec<_>>()
        {
            args.extend([option.to_owned(), arg(&value).to_owned()]);
        }
        args.extend(["--target".to_owned(), arg(&tiny("target")).to_owned()]);
    }
    args
}

/// Returns the JSON lines of a successful run, on the recorded target and drafter unless `args` name other models.
pub fn json(args: &[&str]) -> Vec<Sample> {
    let args = recorded(args);
    lines(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Returns the only JSON line of a successful run on the recorded target and drafter.
pub fn sample(args: &[&str]) -> Sample {
    only(json(args))
}

/// Returns the only JSON line of a successful run, on the bundled target and drafter unless `args` name other models.
pub fn bundled(args: &[&str]) -> Sample {
    only(lines(args))
}

fn lines(args: &[&str]) -> Vec<Sample> {
    let run = succeed(&[&["--json"], args].concat());
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn only(mut samples: Vec<Sample>) -> Sample {
    assert_eq!(samples.len(), 1);
    samples.remove(0)
}

/// Makes a copy of the tiny target whose config `edit` has changed.
pub fn target_with(edit: impl FnOnce(&mut serde_json::Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(tiny("target").join(file), dir.path().join(file)).unwrap();
    }
    let config = fs::read(tiny("target/config.json")).unwrap();
    let mut config = serde_json::from_slice(&config).unwrap();
    edit(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// Makes a copy of the tiny target in which the first `count` elements of some tensors are `value`.
pub fn target_with_elements(tensors: &[&str], count: usize, value: f32) -> TempDir {
    let dir = target_with(|_| {});
    let path = dir.path().join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + header_len]).unwrap();
    for tensor in tensors {
        assert_eq!(header[tensor]["dtype"], "F32");
        let first = 8 + header_len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        for element in file[first..first + 4 * count].chunks_exact_mut(4) {
            element.copy_from_slice(&value.to_le_bytes());
        }
    }
    fs::write(path, file).unwrap();
    dir
}

/// Returns a path as a command-line argument.
pub fn arg(path: &(impl AsRef<Path> + ?Sized)) -> &str {
    path.as_ref().to_str().unwrap()
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    pub index: usize,
    pub seed: u64,
    pub prompt_ids: Vec<u32>,
    pub output_ids: Vec<u32>,
    pub text: String,
    pub finish_reason: String,
    pub prefill: Option<Block>,
    pub steps: Vec<Step>,
    /// The label of the output, if decoding was not guaranteed to be lossless.
    #[serde(default)]
    pub label: Option<String>,
    pub stats: Stats,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Block {
    pub bonus: u32,
    pub draft: Vec<u32>,
    pub confidence: Vec<f32>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub mode: String,
    pub position: usize,
    pub verify_len: usize,
    pub groups: Vec<usize>,
    pub candidates: Vec<u32>,
    pub accepted: usize,
    pub bonus: u32,
    pub draft: Vec<u32>,
    pub confidence: Vec<f32>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    pub tokens: usize,
    pub steps: usize,
    pub acceptance_length: f64,
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
    pub tokens_per_second: f64,
    /// The median error of the expected step times, only with `--mode auto`.
    #[serde(default)]
    pub median_time_error: Option<f64>,
}
