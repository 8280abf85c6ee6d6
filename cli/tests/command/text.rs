//! Tests of the command's text output: the generated text on stdout, remarks and the report on stderr.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use crate::common;
use crate::common::{
    arg, bundled, finished, flexdraft, recorded, run, sample, succeed, succeed_recorded, target_with, tiny,
};

#[test]
fn without_arguments_the_bundled_pair_writes_text_and_is_compared() {
    let elsewhere = tempfile::tempdir().unwrap();
    let run = finished(flexdraft(&[]).current_dir(elsewhere.path()).output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.stdout, bundled(&[]).text);
    assert!(run.stderr.contains("This model is tiny, for demonstration"), "{}", run.stderr);
    assert!(
        run.stderr.contains("\nar ")
            && run.stderr.contains("\nparallel ")
            && run.stderr.contains("\nsequential ")
            && run.stderr.contains("\n`auto` expected the times of its last steps with a median error of ")
    );
    assert!(
        run.stderr.ends_with("Lossless: every mode gave the same 256 tokens as `ar`.\n"),
        "{}",
        run.stderr
    );
    assert!(!run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'));
}

#[test]
fn the_bundled_pair_is_found_around_the_directory_or_missed() {
    // The test runs a copy of the command outside the repository, because from its own path the command would find the
    // bundled model.
    let elsewhere = tempfile::tempdir().unwrap();
    let binary = elsewhere.path().join("flexdraft");
    fs::copy(env!("CARGO_BIN_EXE_flexdraft"), &binary).unwrap();
    let command = |dir: &std::path::Path| {
        let mut command = std::process::Command::new(&binary);
        command.env_remove("CARGO_MANIFEST_DIR").current_dir(dir).args(["--json", "--max-new-tokens", "1"]);
        finished(command.output().unwrap())
    };
    assert_eq!(command(&tiny("draft")).code, Some(0));
    let missed = command(elsewhere.path());
    assert_eq!(missed.code, Some(2));
    assert_eq!(
        missed.stderr,
        "error: cannot find the bundled model (demo/tiny) around the current directory or the executable: \
         run from a clone of the repository, or pass --target\n"
    );
}

#[test]
fn steps_can_be_seen_without_colours() {
    let run = succeed_recorded(&[
        "--prompt-ids",
        "282,71,83,14,73",
        "--max-new-tokens",
        "24",
        "--confidence-threshold",
        "0",
    ]);
    let (_, steps) = run.stderr.split_once("separated by bars:\n").unwrap();
    let (steps, _) = steps.split_once("\n\n").unwrap();
    // The expected numbers are the acceptance lengths of the official recording after the prefill; the length limit
    // cuts the last one.
    let tokens: Vec<usize> =
        steps.split("] [").flat_map(|s| s.split("]\n[")).map(|s| s.split('|').count()).collect();
    assert_eq!(tokens, [1, 1, 1, 1, 1, 1, 1, 1, 2, 5, 1, 1, 2, 2, 3]);
}

#[test]
fn colours_change_with_every_step() {
    let args = ["--prompt", "def f(", "--max-new-tokens", "32", "--no-compare"];
    let run = finished(flexdraft(&args).env("CLICOLOR_FORCE", "1").output().unwrap());
    assert_eq!(run.code, Some(0));
    let plain: String = {
        let mut pieces = run.stdout.split("\x1b[");
        let first = pieces.next().unwrap().to_owned();
        first + &pieces.map(|piece| piece.split_once('m').unwrap().1).collect::<String>()
    };
    let sample = bundled(&args[..4]);
    assert_eq!(plain.trim_end_matches('\n'), format!("def f({}", sample.text).trim_end_matches('\n'));
    let drafted = run.stdout.matches("\x1b[4m").count();
    let accepted: usize = sample.steps.iter().map(|step| step.accepted).sum();
    assert!(accepted > 0 && (1..=accepted).contains(&drafted), "{drafted} of {accepted}");
    assert!(run.stdout.contains("\x1b[36m") && run.stdout.contains("\x1b[33m"));
}

#[test]
fn samples_are_written_one_after_the_other() {
    let args = ["--prompt", "def f(", "--temperature", "1", "--max-new-tokens", "12", "--samples", "3"];
    let run = succeed_recorded(&args);
    let mut expected = String::new();
    for sample in common::json(&args) {
        if !expected.is_empty() && !expected.ends_with('\n') {
            expected.push('\n');
        }
        expected += &sample.text;
    }
    assert_eq!(run.stdout, expected);
    assert!(run.stderr.contains("sample 3, seed 2\n"));
    assert!(run.stderr.contains("36 tokens in 3 samples"));
    assert!(run.stderr.contains("Lossless in distribution: `rejection` keeps"), "{}", run.stderr);
}

#[test]
fn matching_samples_are_compared_token_by_token() {
    let run = succeed(&["--temperature", "1", "--rule", "match", "--max-new-tokens", "12", "--samples", "2"]);
    assert!(
        run.stderr.ends_with("Lossless: every mode gave the same 24 tokens as `ar`.\n"),
        "{}",
        run.stderr
    );
}

#[test]
fn the_comparison_can_be_left_out() {
    let run = succeed(&["--max-new-tokens", "8", "--no-compare", "--mode", "parallel"]);
    assert!(run.stderr.contains("\nparallel ") && !run.stderr.contains("\nar "));
    assert!(!run.stderr.contains("ossless"));
}

#[test]
fn without_a_drafter_only_ar_runs_and_says_so() {
    let target = tiny("target");
    let args = ["--target", arg(&target), "--prompt", "def f(", "--max-new-tokens", "8"];
    let plain = succeed(&args);
    assert!(
        plain
            .stderr
            .starts_with("There is no drafter (see --draft), so this is --mode ar: one token per step.\n")
    );
    assert!(
        plain.stderr.ends_with("Without a drafter there is nothing to compare: this was plain decoding.\n")
    );
    let asked = succeed(&[&args[..], &["--mode", "ar"]].concat());
    assert_eq!(asked.stdout, plain.stdout);
    assert!(!asked.stderr.contains("There is no drafter"));
    for mode in ["parallel", "sequential"] {
        let refused = run(&[&args[..], &["--mode", mode]].concat());
        let message = format!("error: mode `{mode}` needs a drafter; without a drafter, only `ar` runs\n");
        assert_eq!((refused.code, refused.stderr), (Some(2), message));
    }
}

#[test]
fn a_model_without_a_tokenizer_says_that_it_has_no_text() {
    let target = target_with(|_| {});
    fs::remove_file(target.path().join("tokenizer.json")).unwrap();
    let args = ["--target", arg(target.path()), "--max-new-tokens", "3"];
    let ids = succeed(&[&args[..], &["--prompt-ids", "1,2"]].concat());
    assert_eq!(ids.stdout, "");
    assert!(ids.stderr.contains("has no tokenizer.json, so there is no text to show."));
    let text = run(&[&args[..], &["--prompt", "x"]].concat());
    let message = format!(
        "error: {} has no tokenizer.json, so the prompt must be given as --prompt-ids\n",
        target.path().display()
    );
    assert_eq!((text.code, text.stderr), (Some(2), message));
}

#[test]
fn prompts_come_from_files_and_chat_templates() {
    let target = target_with(|_| {});
    let template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}";
    fs::write(target.path().join("chat_template.jinja"), template).unwrap();
    let file = target.path().join("prompt.txt");
    fs::write(&file, "def f(").unwrap();
    let args = ["--target", arg(target.path()), "--max-new-tokens", "2"];
    let prompt = |more: &[&str]| sample(&[&args[..], more].concat()).prompt_ids;
    let text = prompt(&["--prompt", "def f("]);
    assert_eq!(prompt(&["--prompt-file", arg(&file)]), text);
    let rendered = prompt(&["--prompt", "<user>def f("]);
    assert_ne!(rendered, text);
    assert_eq!(prompt(&["--prompt-file", arg(&file), "--chat"]), rendered);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for args in [&["--max-new-tokens", "900", "--no-compare"][..], &["--json", "--samples", "40"]] {
        let args = recorded(&[args, &["--prompt", "def f("]].concat());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = flexdraft(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 4]).unwrap();
        drop(stdout);
        let left = finished(child.wait_with_output().unwrap());
        assert_eq!(left.code, Some(0), "{}", left.stderr);
        assert!(!left.stderr.contains("error") && !left.stderr.contains("panic"), "{}", left.stderr);
    }
}
