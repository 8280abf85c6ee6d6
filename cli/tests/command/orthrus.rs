//! Tests of the command on an Orthrus model, whose directory holds the target and the drafter.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Run, arg, json, run, succeed, tiny};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/orthrus")
}

/// Returns the arguments for a recorded request, and the tokens that the official implementation gave.
fn recorded(index: usize) -> (Vec<String>, Vec<u32>) {
    let cases: Value = serde_json::from_slice(&std::fs::read(model().join("cases.json")).unwrap()).unwrap();
    let case = &cases[index];
    let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
    let prompt: Vec<String> = ids("prompt").iter().map(u32::to_string).collect();
    let tokens = case["max_new_tokens"].to_string();
    let dir = model();
    let args = ["--target", arg(&dir), "--prompt-ids", &prompt.join(","), "--max-new-tokens", &tokens];
    (args.map(str::to_owned).to_vec(), ids("output"))
}

#[test]
fn every_mode_but_parallel_gives_the_recorded_tokens() {
    let (args, output) = recorded(4);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for mode in ["sequential", "auto", "ar"] {
        let samples = json(&[&args[..], &["--mode", mode]].concat());
        assert_eq!(samples[0].output_ids, output, "{mode}");
    }
    // The report compares the modes that the drafter has.
    let report = succeed(&[&args[..], &["--mode", "sequential"]].concat()).stderr;
    assert!(report.contains("Lossless: every mode gave the same 64 tokens as `ar`."), "{report}");
    assert!(report.contains("only an acceptance length above 2 gains"), "{report}");
    assert!(!report.contains("parallel"), "{report}");
}

const REFUSED: &str = "error: mode `parallel` drafts in the verification pass; a mask group of Orthrus begins with the \
    bonus token, which is known only after that pass, so `sequential`, `auto` and `ar` run\n";

#[test]
fn parallel_is_refused() {
    let (args, _) = recorded(0);
    let generate: Vec<&str> = args.iter().map(String::as_str).collect();
    let dir = model();
    let bench = ["bench", "--quick", "--target", arg(&dir)];
    for args in [&generate[..], &bench] {
        let Run { code, stdout, stderr } = run(&[args, &["--mode", "parallel"]].concat());
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(2), "", REFUSED), "{args:?}");
    }
}

#[test]
fn a_drafter_that_is_given_takes_the_place_of_the_models_own() {
    let (args, output) = recorded(5);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let draft = tiny("draft");
    let samples = json(&[&args[..], &["--draft", arg(&draft), "--mode", "parallel"]].concat());
    assert_eq!(samples[0].output_ids, output);
}

#[test]
fn bench_times_the_steps_that_there_are() {
    let dir = model();
    let args = ["bench", "--quick", "--json", "--target", arg(&dir), "--verify-len", "7", "--context", "0"];
    let lines = succeed(&args).stdout;
    let steps: Vec<Value> = lines.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let modes: Vec<&str> = steps.iter().map(|step| step["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["prefill", "ar", "sequential"]);
}

#[test]
fn inspect_reports_on_both_halves() {
    let dir = model();
    let report = succeed(&["inspect", "--target", arg(&dir)]).stdout;
    assert!(report.contains("  Qwen3ForCausalLM: 4 layers"), "{report}");
    assert!(report.contains("  Orthrus, in the target's checkpoint: all 4 layers, block size 8"), "{report}");
    assert_eq!(report.matches("missing or misshapen: none").count(), 2, "{report}");
}
