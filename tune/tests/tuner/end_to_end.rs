//! The commands in sequence: from text files to a drafter that decodes losslessly.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn flexdraft_tune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flexdraft-tune")).args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = flexdraft_tune(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the exit code and the message of a command that must fail.
fn fail(args: &[&str]) -> (i32, String) {
    let output = flexdraft_tune(args);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn from_text_to_a_lossless_drafter() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (target, data, tuned) = (path("target"), path("data"), path("tuned"));
    // The training text is three source files of flexdraft-tune.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let text = path("text.rs");
    let whole: String = ["norm.rs", "rope.rs", "silu.rs"]
        .map(|name| fs::read_to_string(sources.join(name)).unwrap())
        .concat();
    fs::write(&text, whole).unwrap();

    let shape =
        ["--vocab-size", "300", "--hidden-size", "32", "--layers", "3", "--q-heads", "2", "--kv-heads", "1"];
    let size = ["--head-dim", "16", "--intermediate-size", "64", "--context-len", "128", "--window", "64"];
    let run = ["--step-tokens", "512", "--steps", "20"];
    let pretrain = [&["pretrain", "--text", &text, "--out", &target][..], &shape, &size, &run].concat();
    succeed(&pretrain);

    let source = ["--continue", &text, "--window", "8", "--count", "24", "--held-out", "0.25"];
    let data_command =
        [&["data", "--target", &target, "--out", &data, "--max-response", "32"][..], &source].concat();
    succeed(&data_command);

    let drafter = ["--tail-layers", "2", "--block-size", "4", "--rank", "8"];
    let steps = ["--steps", "20", "--sequences", "4", "--anchors", "6", "--evaluate-every", "10"];
    let tune = [
        &["tune", "--target", &target, "--data", &data, "--out", &tuned, "--checkpoint-every", "10"][..],
        &drafter,
        &steps,
    ]
    .concat();
    succeed(&tune);

    // The drafter's card says what its acceptance length was, and that the prompts were rendered without a template.
    let config = fs::read(format!("{tuned}/drafter/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let card = &config["flexdraft_card"];
    assert!(card["acceptance_lengths"]["heldout"].as_f64().unwrap() >= 1.0, "{card}");
    assert_eq!((&card["template"], &card["block_size"]), (&serde_json::Value::Null, &4.into()), "{card}");

    // The command fails unless every mode gives the tokens of plain decoding.
    let draft = format!("{tuned}/drafter");
    let unseen = format!("{data}/heldout.jsonl");
    succeed(&["eval", "--target", &target, "--draft", &draft, "--transcripts", &unseen]);
    let picture = path("curves.svg");
    succeed(&["curves", "--out", &picture, &format!("{tuned}/metrics.jsonl")]);
    assert!(fs::read_to_string(&picture).unwrap().starts_with("<svg"));

    let (code, message) = fail(&[&data_command[..], &["--no-thinking"]].concat());
    assert!(
        code == 2 && message.contains("--no-thinking is given for prompts as they are"),
        "{code}: {message}"
    );

    // An Orthrus drafter is stored with its target, so the folder of the drafter is the target of an evaluation.
    let orthrus = path("orthrus");
    let tune_orthrus = [
        &["tune", "--kind", "orthrus", "--target", &target, "--data", &data, "--out", &orthrus][..],
        &["--block-size", "4", "--mask-token", "7"],
        &steps,
    ]
    .concat();
    succeed(&tune_orthrus);
    let model = format!("{orthrus}/drafter");
    succeed(&["eval", "--target", &model, "--transcripts", &unseen]);
    let (code, message) = fail(&["eval", "--target", &model, "--transcripts", &unseen, "--mode", "parallel"]);
    assert!(code == 2 && message.contains("sequential"), "{code}: {message}");
    let (code, message) = fail(&["eval", "--target", &target, "--transcripts", &unseen]);
    assert!(code == 2 && message.contains("--draft is not given"), "{code}: {message}");
    let (code, message) = fail(&[&tune_orthrus[..], &["--tail-layers", "2"]].concat());
    assert!(code == 2 && message.contains("--tail-layers is 2, expected no value"), "{code}: {message}");
    succeed(&tune_orthrus);

    // Commands that are repeated find nothing left to do; a folder of a run refuses other settings of the
    // drafter.
    succeed(&pretrain);
    succeed(&data_command);
    succeed(&tune);
    let (code, message) = fail(&[&tune[..], &["--gamma", "9"]].concat());
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("another configuration: gamma: 4.0 there, gamma: 9.0 now"), "{message}");

    // Transcripts with token ids outside the vocabulary are refused.
    fs::write(format!("{data}/train.jsonl"), "{\"prompt\":[299],\"response\":[300,1,2]}\n").unwrap();
    let (code, message) = fail(&tune);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("train.jsonl: line 1: token id 300"), "{message}");
}
