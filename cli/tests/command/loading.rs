//! Tests that models stored in unusual ways give the tokens and the text of transformers or llama.cpp, or an error that
//! names the problem. `tests/fixtures/loading` holds the models, and its README says how the right values are known.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::common::{Run, Sample, arg, finished, flexdraft, run};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/loading")
}

#[derive(Debug, Deserialize)]
struct Case {
    target: String,
    args: Vec<String>,
    max_new_tokens: usize,
    want: Want,
}

/// The expected result of a run. Absent fields are not compared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Want {
    prompt_ids: Option<Vec<u32>>,
    output_ids: Option<Vec<u32>>,
    text: Option<String>,
    finish_reason: Option<String>,
    /// Text that the error must contain.
    error: Option<String>,
    /// Acceptable results; the run must give one of them.
    any: Option<Vec<Want>>,
}

/// Runs `flexdraft generate` on a model of the fixtures.
fn generate(target: &Path, args: &[&str], max_new_tokens: usize) -> Run {
    let max_new_tokens = max_new_tokens.to_string();
    let common =
        ["generate", "--mode", "ar", "--device", "cpu", "--json", "--max-new-tokens", &max_new_tokens];
    run(&[&common[..], &["--target", arg(target)], args].concat())
}

fn sample(run: &Run) -> Sample {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

fn fits(want: &Want, run: &Run) -> bool {
    if let Some(any) = &want.any {
        return any.iter().any(|want| fits(want, run));
    }
    if let Some(error) = &want.error {
        return run.code == Some(2) && run.stderr.contains(error);
    }
    let Ok(found) = serde_json::from_str::<Sample>(&run.stdout) else { return false };
    want.prompt_ids.as_ref().is_none_or(|ids| *ids == found.prompt_ids)
        && want.output_ids.as_ref().is_none_or(|ids| *ids == found.output_ids)
        && want.text.as_ref().is_none_or(|text| *text == found.text)
        && want.finish_reason.as_ref().is_none_or(|reason| *reason == found.finish_reason)
}

#[test]
fn recorded_cases() {
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 14);
    for case in &cases {
        let args: Vec<&str> = case.args.iter().map(String::as_str).collect();
        let run = generate(&fixtures().join(&case.target), &args, case.max_new_tokens);
        assert!(fits(&case.want, &run), "{case:?}: {} {}", run.stdout, run.stderr);
    }
}

/// Returns a copy of one of the fixtures' directories.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn warnings_go_to_stderr() {
    let run = generate(&fixtures().join("tied-but-own-head"), &["--prompt", "hi"], 5);
    assert_eq!(sample(&run).output_ids, [111, 107, 257]);
    assert!(run.stderr.contains("warning: `tie_word_embeddings` is true"), "{}", run.stderr);

    let dir = copy("yarn-context");
    edit(dir.path(), "config.json", |config| {
        config["attention_multiplier"] = 0.5.into();
        config["rope_scaling"]["attn_factor"] = 2.0.into();
        config["hidden_dropout_factor"] = serde_json::Value::Null;
    });
    let run = generate(dir.path(), &["--prompt", "x"], 1);
    sample(&run);
    for warning in
        ["config.json: `attention_multiplier` is 0.5", "config.json: `rope_scaling.attn_factor` is 2.0"]
    {
        assert!(run.stderr.contains(warning), "{}", run.stderr);
    }
    assert_eq!(run.stderr.lines().count(), 2, "{}", run.stderr);
}

#[test]
fn the_context_can_be_set() {
    let target = fixtures().join("yarn-context");
    let prompt = "x".repeat(100);
    let run = generate(&target, &["--prompt", &prompt, "--context", "99"], 1);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("the prompt has 100 tokens, the context is 99"), "{}", run.stderr);
    // The model has 64 positions, which its rope scaling stretches by 4.
    let long = "x".repeat(256);
    assert_eq!(sample(&generate(&target, &["--prompt", &long], 1)).finish_reason, "length");
    let longer = "x".repeat(257);
    assert_eq!(generate(&target, &["--prompt", &longer], 1).code, Some(2));
    let run = generate(&target, &["--prompt", &longer, "--context", "300"], 2);
    assert_eq!(sample(&run).output_ids.len(), 2);
    assert!(run.stderr.contains("--context 300 is longer than the model's context of 256"), "{}", run.stderr);
}

/// A prompt of token ids is decoded even if the model's tokenizer cannot be read.
#[test]
fn ids_need_no_tokenizer() {
    let run = generate(&fixtures().join("gguf-pre/none.gguf"), &["--prompt-ids", "256"], 5);
    assert_eq!(sample(&run).text, "");
    assert!(run.stderr.contains("there is no text to show: "), "{}", run.stderr);
    let dir = copy("tied-saved-as-lm-head");
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_eq!(sample(&generate(dir.path(), &["--prompt-ids", "105"], 2)).output_ids, [105, 105]);
    assert_eq!(generate(dir.path(), &["--prompt", "i"], 2).code, Some(2));
}

/// Added tokens are read from every file that may list them, with their flags; an id that the tokenizer cannot give a
/// token is an error.
#[test]
fn tokens_beside_the_tokenizer() {
    let dir = copy("added-tokens/in-tokenizer-config");
    let config = dir.path().join("tokenizer_config.json");
    let text = |dir: &Path| sample(&generate(dir, &["--prompt", "hi"], 4)).text;
    assert_eq!(text(dir.path()), "<think>x");
    // A token that the config names, such as `pad_token`, is special, whatever its own flag says.
    edit(dir.path(), "tokenizer_config.json", |config| config["pad_token"] = "<think>".into());
    assert_eq!(text(dir.path()), "x");
    edit(dir.path(), "tokenizer_config.json", |config| {
        config["pad_token"] = serde_json::Value::Null;
        config["extra_special_tokens"] = serde_json::json!(["<think>"]);
    });
    assert_eq!(text(dir.path()), "x");
    edit(dir.path(), "tokenizer_config.json", |config| {
        let added = config["added_tokens_decoder"].as_object_mut().unwrap();
        let last = added.remove("262").unwrap();
        added.insert("263".into(), last);
    });
    let run = generate(dir.path(), &["--prompt", "hi"], 4);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("token `<think>` has id 262, expected 263, its id in "), "{}", run.stderr);

    // Older versions of transformers wrote the same added tokens into the files below.
    fs::write(&config, r#"{"bos_token": "<s>"}"#).unwrap();
    let added = r#"{"<|turn|>": 260, "<|end|>": 261, "<think>": 262}"#;
    fs::write(dir.path().join("added_tokens.json"), added).unwrap();
    assert_eq!(text(dir.path()), "<think>x");
    let map = r#"{"additional_special_tokens": ["<think>", "<|turn|>"]}"#;
    fs::write(dir.path().join("special_tokens_map.json"), map).unwrap();
    assert_eq!(text(dir.path()), "x");
}

/// A chat template prints the hour of the local clock, which is ten hours apart in the test's two time zones.
#[cfg(unix)]
#[test]
fn dates_in_prompts_are_local() {
    let dir = copy("none-is-iterable");
    fs::write(dir.path().join("chat_template.jinja"), "{{ strftime_now('%j %H') }}").unwrap();
    let hours = |zone: &str| {
        let args =
            ["--mode", "ar", "--device", "cpu", "--json", "--max-new-tokens", "0", "--chat", "--prompt", "a"];
        let mut command = flexdraft(&[&["generate", "--target", arg(dir.path())], &args[..]].concat());
        let bytes = sample(&finished(command.env("TZ", zone).output().unwrap())).prompt_ids;
        let text = String::from_utf8(bytes.iter().map(|&id| id as u8).collect()).unwrap();
        let (day, hour) = text.split_once(' ').unwrap();
        24 * day.parse::<i64>().unwrap() + hour.parse::<i64>().unwrap()
    };
    // The test allows for an hour that ends between two runs, and for a year that ends between the two time zones.
    let difference = |hours: i64| hours.rem_euclid(24);
    assert!([9, 10, 11].contains(&difference(hours("EAST-6") - hours("WEST4"))));
}
