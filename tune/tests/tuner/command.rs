//! The command `flexdraft-tune`: its output and its errors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn tiny(name: &str) -> String {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    folder.join(name).to_str().unwrap().to_owned()
}

fn tune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flexdraft-tune")).args(args).output().unwrap()
}

/// Runs a command that must succeed and returns its stdout.
fn succeeds(args: &[&str]) -> String {
    let output = tune(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the message of a command that must fail with exit code 2.
fn is_refused(args: &[&str]) -> String {
    let output = tune(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let line = stderr.strip_prefix("error: ").unwrap();
    assert_eq!(line.lines().count(), 1, "{stderr}");
    line.trim_end().to_owned()
}

#[test]
fn data_is_made_shown_and_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (target, draft, out) = (tiny("target"), path("draft"), path("data"));
    // The card is written into a copy of the drafter.
    fs::create_dir(&draft).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&tiny("draft")).join(file), Path::new(&draft).join(file)).unwrap();
    }
    let text: String = (0..50).map(|i| format!("def f{i}(self, x):\n    return x + {i}\n\n")).collect();
    fs::write(path("text.py"), text).unwrap();
    let data = [
        "data",
        "--target",
        &target,
        "--out",
        &out,
        "--continue",
        &path("text.py"),
        "--window",
        "12",
        "--count",
        "20",
        "--max-response",
        "16",
        "--held-out",
        "0.5",
    ];
    succeeds(&data);
    let lines = |name| fs::read_to_string(folder.path().join("data").join(name)).unwrap().lines().count();
    assert_eq!(lines("train.jsonl") + lines("heldout.jsonl"), 20);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("data/data.json")).unwrap()).unwrap();
    assert_eq!(json["settings"]["source"]["file"], "text.py");
    assert_eq!(json["result"]["response_tokens"], 320);

    // A folder of transcripts cannot be continued with another seed.
    let error = is_refused(&[&data[..], &["--seed", "1"]].concat());
    assert!(error.contains("belongs to a run with another seed: 0 there, 1 now"), "{error}");

    let held_out = path("data/heldout.jsonl");
    let shown = succeeds(&["show", "--target", &target, &held_out, "--count", "2"]);
    assert_eq!(shown.matches('▶').count(), 2);
    assert!(shown.contains("return"), "{shown}");

    let eval = ["eval", "--target", &target, "--draft", &draft, "--transcripts", &held_out, "--limit", "4"];
    let table = succeeds(&[&eval[..], &["--max-new-tokens", "24"]].concat());
    assert!(table.contains("acceptance length τ") && table.contains("same tokens"), "{table}");
    assert!(table.contains("τ by walking transcripts") && table.contains("of 4\n"), "{table}");
    let json = succeeds(&[&eval[..], &["--max-new-tokens", "24", "--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["prompts"].as_array().unwrap().len(), 4);
    assert!(json["tau"].as_f64().unwrap() >= 1.0);
    assert_eq!(json["walk"]["transcripts"], 4);
    assert!(json["walk"]["tau"].as_f64().unwrap() >= 1.0);

    // The card gets an acceptance length for each set of prompts.
    let tau = json["tau"].clone();
    succeeds(&[&eval[..], &["--max-new-tokens", "24", "--card"]].concat());
    let card = |draft: &str| {
        let config = fs::read(Path::new(draft).join("config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&config).unwrap()["flexdraft_card"].clone()
    };
    assert_eq!(card(&draft)["acceptance_lengths"], serde_json::json!({ "heldout": tau }));
    assert!(card(&draft)["block_size"].as_u64().unwrap() > 1, "{}", card(&draft));
    let copy = path("other.jsonl");
    fs::copy(&held_out, &copy).unwrap();
    let other = ["eval", "--target", &target, "--draft", &draft, "--transcripts", &copy, "--limit", "1"];
    succeeds(&[&other[..], &["--max-new-tokens", "4", "--card"]].concat());
    assert_eq!(card(&draft)["acceptance_lengths"].as_object().unwrap().len(), 2);
    assert_eq!(card(&draft)["acceptance_lengths"]["heldout"], tau);

    // The acceptance length along transcripts is reported only for greedy decoding of transcripts.
    let sampled = [&eval[..], &["--max-new-tokens", "4", "--temperature", "1", "--json"]].concat();
    let of_prompts = [
        "eval",
        "--target",
        &target,
        "--draft",
        &draft,
        "--prompts",
        &path("text.py"),
        "--raw",
        "--limit",
        "2",
    ];
    for without in [sampled, [&of_prompts[..], &["--max-new-tokens", "4", "--json"]].concat()] {
        let json: serde_json::Value = serde_json::from_str(&succeeds(&without)).unwrap();
        assert!(json["walk"].is_null() && json["tau"].as_f64().unwrap() >= 1.0);
    }
}

#[test]
fn curves_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(
        path("metrics.jsonl"),
        "{\"step\":1,\"anchors\":8,\"loss\":9}\n{\"step\":2,\"anchors\":16,\"loss\":8}\n",
    )
    .unwrap();
    succeeds(&["curves", folder.path().to_str().unwrap(), "--out", &path("c.svg")]);
    assert!(fs::read_to_string(path("c.svg")).unwrap().starts_with("<svg"));
    assert!(is_refused(&["curves", &path("none"), "--out", &path("c.svg")]).starts_with("cannot read"));
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (target, out) = (tiny("target"), path("data"));
    let data = |rest: &[&str]| is_refused(&[&["data", "--target", &target, "--out", &out], rest].concat());

    let error = data(&[]);
    assert!(error.contains("has no chat template") && error.contains("--continue FILE"), "{error}");
    assert!(data(&["--prompts", &path("none.txt"), "--raw"]).starts_with("cannot read"));
    for (name, text, message) in [
        ("empty.txt", "\n", "expected at least 1 prompts, found 0"),
        ("garbled.jsonl", "{\"prompt\": \"a\"}\n{]\n", "line 2:"),
        ("long.txt", &"x y ".repeat(1000), "fewer than the context, 1024"),
    ] {
        fs::write(path(name), text).unwrap();
        let error = data(&["--prompts", &path(name), "--raw"]);
        assert!(error.contains(message), "{error}");
    }
    fs::write(path("text.txt"), "short").unwrap();
    assert!(data(&["--continue", &path("text.txt")]).contains("tokens, found"));
    assert!(data(&["--continue", &path("text.txt"), "--window", "0"]).contains("window"));
    assert!(data(&["--prompts", &path("text.txt"), "--raw", "--temperature", "-1"]).contains("temperature"));
    assert!(
        data(&["--prompts", &path("text.txt"), "--raw", "--held-out", "2"])
            .contains("held_out is 2, expected a share")
    );
    assert!(is_refused(&["data", "--target", &path("none"), "--out", &out]).contains("none"));
}

#[test]
fn text_is_taken_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text: String = (0..50).map(|i| format!("def f{i}(self, x):\n    return x + {i}\n\n")).collect();
    fs::write(path("text.py"), text).unwrap();
    let (target, out, text) = (tiny("target"), path("data"), path("text.py"));
    let data =
        ["data", "--target", &target, "--out", &out, "--continue", &text, "--as-written", "--count", "20"];
    let with = |rest: &[&'static str]| [&data[..], &["--max-response", "16"], rest].concat();
    succeeds(&with(&["--held-out", "0"]));
    let train = fs::read_to_string(path("data/train.jsonl")).unwrap();
    assert_eq!(train.lines().count(), 20);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path("data/data.json")).unwrap()).unwrap();
    assert_eq!(
        (&json["settings"]["source"]["kind"], &json["result"]["response_tokens"]),
        (&"as-written".into(), &320.into())
    );

    // Windows of a text overlap, so either all or none of them are held out.
    assert!(is_refused(&with(&[])).contains("0 or 1 with --as-written"));
    let long = [&data[..], &["--held-out", "1", "--max-response", "1000", "--window", "30"]].concat();
    assert!(is_refused(&long).contains("at most the target's context, 1024 tokens"), "{}", is_refused(&long));
    assert_eq!(tune(&with(&["--temperature", "1"])).status.code(), Some(2));
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").to_str().unwrap().to_owned();
    let tune = ["tune", "--target", &tiny("target"), "--data", &tiny("target"), "--out", &out, "--device"];
    #[cfg(not(feature = "cuda"))]
    assert!(is_refused(&[&tune[..], &["cuda:0"]].concat()).contains("lacks the feature `cuda`"));
    let output = self::tune(&[&tune[..], &["gpu"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected `cpu` or `cuda:N`"));
}

#[test]
fn a_chain_is_trained_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text: String = (0..50).map(|i| format!("def f{i}(self, x):\n    return x + {i}\n\n")).collect();
    fs::write(path("text.py"), text).unwrap();
    let (target, draft, data, out) = (tiny("target"), tiny("draft"), path("data"), path("run"));
    let continued = ["data", "--target", &target, "--out", &data, "--continue", &path("text.py")];
    succeeds(&[&continued[..], &["--count", "20", "--max-response", "16", "--held-out", "0.5"]].concat());

    let chain = ["chain", "--target", &target, "--draft", &draft, "--data", &data, "--out", &out];
    let steps = ["--steps", "3", "--rank", "4", "--evaluate-every", "2", "--kind", "hidden", "--top-k", "8"];
    succeeds(&[&chain[..], &steps].concat());
    let metrics = fs::read_to_string(path("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("\"tau\"")).count(), 2);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(path("run/drafter/config.json")).unwrap()).unwrap();
    assert_eq!(config["flexdraft_config"]["chain_kind"], "hidden");
    assert_eq!(config["flexdraft_config"]["chain_top_k"], 8);
    assert!(config["flexdraft_card"]["acceptance_lengths"]["heldout"].as_f64() >= Some(1.0), "{config}");
    // A run is not continued with another kind.
    let error = is_refused(&[&chain[..], &["--steps", "3", "--rank", "4", "--top-k", "8"]].concat());
    assert!(error.contains("another configuration: kind: \"hidden\" there, kind: \"pair\" now"), "{error}");
    let error = is_refused(&[&chain[..], &["--rank", "0"]].concat());
    assert!(error.contains("rank is 0, expected at least 1"), "{error}");

    let unseen = path("data/heldout.jsonl");
    let headroom = ["headroom", "--target", &target, "--transcripts", &unseen];
    let table = succeeds(&[&headroom[..], &["--draft", &path("run/drafter")]].concat());
    for line in
        ["τ without the chain", "τ with the chain", "oracle's τ at 8", "back-off trigram's τ", "recall at 8"]
    {
        assert!(table.contains(line), "{table}");
    }
    let json = succeeds(&[&headroom[..], &["--draft", &draft, "--json", "--limit", "2"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["top_k"].as_u64(), json["chained_tau"].as_f64()), (Some(16), None));
    assert!(json["oracle_tau"].as_f64() >= json["tau"].as_f64());
    let table =
        succeeds(&["eval", "--target", &target, "--draft", &path("run/drafter"), "--transcripts", &unseen]);
    assert!(table.contains("headroom closed") && table.contains("same tokens"), "{table}");
    let error = is_refused(&[&headroom[..], &["--draft", &draft, "--max-new-tokens", "1"]].concat());
    assert!(error.contains("expected at least 1 transcripts with two response tokens, found 0"), "{error}");
    let error = is_refused(&[&headroom[..], &["--draft", &draft, "--confidence-threshold", "1"]].concat());
    assert!(error.contains("--confidence-threshold is 1, expected at least 0 and below 1"), "{error}");
}

#[test]
fn tuning_takes_whole_folders_of_its_own_target_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text: String = (0..50).map(|i| format!("def f{i}(self, x):\n    return x + {i}\n\n")).collect();
    fs::write(path("text.py"), text).unwrap();
    let (target, data, text, out) = (tiny("target"), path("data"), path("text.py"), path("run"));
    let make =
        ["data", "--target", &target, "--out", &data, "--continue", &text, "--as-written", "--count", "20"];
    succeeds(&[&make[..], &["--max-response", "16", "--held-out", "0"]].concat());
    let tune = ["tune", "--target", &target, "--data", &data, "--out", &out, "--tail-layers", "2"];
    let edited = |edit: &dyn Fn(&mut serde_json::Value)| {
        let file = path("data/data.json");
        let original = fs::read_to_string(&file).unwrap();
        let mut json = serde_json::from_str(&original).unwrap();
        edit(&mut json);
        fs::write(&file, json.to_string()).unwrap();
        let error = is_refused(&tune);
        fs::write(&file, original).unwrap();
        error
    };
    let error = edited(&|json| json["settings"]["target"]["hash"] = "0".into());
    assert!(error.contains("belongs to a run with another target: hash 0 there"), "{error}");
    let error = edited(&|json| json["result"] = serde_json::Value::Null);
    assert!(error.contains("the command `data` has not finished it"), "{error}");
    let error = edited(&|json| *json = "?".into());
    assert!(error.contains("data.json"), "{error}");
    // A complete folder gets to the next check, whose error names it. The default number of tail layers fits this target.
    let tune = &tune[..tune.len() - 2];
    let error = is_refused(tune);
    assert!(error.starts_with(&format!("{data}: ")), "{error}");
    assert!(error.contains("expected at least 1 held-out transcripts with two response tokens"), "{error}");
}

/// A reader that has seen enough closes the pipe, as `head` does.
#[test]
fn a_closed_pipe_is_not_an_error() {
    let (target, draft) = (tiny("target"), tiny("draft"));
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.txt");
    fs::write(&prompts, "def f(x):").unwrap();
    // A target without quantised weights takes every choice of weights and rounding.
    let args =
        ["eval", "--target", &target, "--draft", &draft, "--weights", "keep", "--dtype", "q8", "--raw"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_flexdraft-tune"))
        .args(args)
        .args(["--max-new-tokens", "4", "--prompts"])
        .arg(&prompts)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
