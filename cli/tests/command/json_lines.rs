//! Tests that the output of `--json` matches what the engine did.

use std::fs;

use flexdraft::decode::{Engine, EngineOptions, Mode, Record, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterWeights, Model, TargetWeights};

use crate::common::{Sample, arg, bundled, json, sample, succeed, succeed_recorded, target_with, tiny};

const PROMPT: &str = "282,71,83,14,73";

/// Returns the first recorded run of the official FlexDraft implementation, whose prompt is `PROMPT`.
fn official() -> serde_json::Value {
    let cases = fs::read(tiny("cases.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_slice(&cases).unwrap();
    cases[0].clone()
}

#[test]
fn keys_are_in_the_documented_order() {
    let line =
        succeed(&["--json", "--mode", "parallel", "--prompt-ids", PROMPT, "--max-new-tokens", "2"]).stdout;
    let keys: Vec<&str> = line.split('"').skip(1).step_by(2).filter(|word| *word != "parallel").collect();
    let text = keys.iter().position(|key| *key == "text").unwrap();
    // The words after the JSON keys `text` and `finish_reason` are values and not keys.
    let keys: Vec<&str> = keys
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != text + 1 && *i != text + 3)
        .map(|(_, key)| *key)
        .collect();
    let block = ["bonus", "draft", "confidence"];
    let head = ["index", "seed", "prompt_ids", "output_ids", "text", "finish_reason", "prefill"];
    let step = ["mode", "position", "verify_len", "groups", "candidates", "accepted"];
    let stats =
        ["tokens", "steps", "acceptance_length", "prefill_seconds", "decode_seconds", "tokens_per_second"];
    let steps = line.matches("\"mode\"").count();
    let steps = [&step[..], &block].concat().repeat(steps);
    assert_eq!(keys, [&head[..], &block, &["steps"], &steps, &["stats"], &stats].concat());
    assert!(line.ends_with("}\n") && line.lines().count() == 1);
}

#[test]
fn every_mode_gives_the_official_tokens() {
    let official = official();
    let expected: Vec<u32> = serde_json::from_value(official["output"].clone()).unwrap();
    for mode in ["ar", "parallel", "sequential", "auto"] {
        let found = sample(&[
            "--prompt-ids",
            PROMPT,
            "--mode",
            mode,
            "--max-new-tokens",
            "64",
            "--confidence-threshold",
            "0",
        ]);
        assert_eq!(found.output_ids, expected, "{mode}");
        let error = found.stats.median_time_error;
        assert_eq!(error.is_some_and(|error| error >= 0.0), mode == "auto", "{mode}: {error:?}");
        assert_eq!((found.finish_reason.as_str(), found.stats.tokens), ("length", 64));
        if mode == "parallel" || mode == "sequential" {
            let lengths: Vec<usize> = serde_json::from_value(official["acceptance_lengths"].clone()).unwrap();
            let found: Vec<usize> = found.steps.iter().map(|step| step.accepted + 1).collect();
            assert!(lengths.starts_with(&found) && found.len() + 1 >= lengths.len(), "{mode}: {found:?}");
        }
    }
}

#[test]
fn logit_processors_and_log_probabilities() {
    let base = ["--prompt-ids", PROMPT, "--max-new-tokens", "12"];
    let free = sample(&base).output_ids;
    let (first, second) = (free[0].to_string(), free[1].to_string());
    let biased = sample(&[&base[..], &["--logit-bias", "9=1000"]].concat());
    assert_eq!(biased.output_ids, [9; 12]);
    let allowed = sample(&[&base[..], &["--allowed-token-ids", "9, 11", "--bad-words-ids", "9"]].concat());
    assert_eq!(allowed.output_ids, [11; 12]);
    let word = [first.as_str(), second.as_str()].join(",");
    let cut = sample(&[&base[..], &["--bad-words-ids", &word, "--bad-words-ids", "9,9"]].concat());
    assert!(cut.output_ids[0] == free[0] && cut.output_ids[1] != free[1]);
    let penalties =
        ["--repetition-penalty", "1.8", "--frequency-penalty", "-0.5", "--presence-penalty", "0.5"];
    let modes = ["ar", "parallel", "sequential"]
        .map(|mode| sample(&[&base[..], &penalties, &["--mode", mode]].concat()).output_ids);
    assert!(modes[0] != free && modes.iter().all(|tokens| *tokens == modes[0]));

    let line = succeed_recorded(&[&["--json", "--logprobs", "2"], &base[..]].concat()).stdout;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let logprobs = line["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 12);
    for (token, logprobs) in free.iter().zip(logprobs) {
        let top = logprobs["top"].as_array().unwrap();
        assert_eq!((top.len(), &top[0][0]), (2, &serde_json::json!(token)));
        assert!(logprobs["logprob"] == top[0][1] && top[0][1].as_f64() >= top[1][1].as_f64());
    }
}

/// A text is forbidden in both of its spellings: alone, and with a space before it.
#[test]
fn texts_can_be_forbidden() {
    let prompt = ["--prompt", "/// Adds packed 16-bit integers.\npub", "--max-new-tokens", "40"];
    let free = bundled(&prompt);
    assert!(free.text.contains("unsafe"), "{}", free.text);
    for mode in ["ar", "parallel"] {
        let cut = bundled(&[&prompt[..], &["--bad-words", "unsafe", "--mode", mode]].concat());
        assert!(!cut.text.contains("unsafe") && cut.output_ids.len() == 40, "{}", cut.text);
    }
}

#[test]
fn steps_follow_from_each_other() {
    let args = ["--prompt-ids", PROMPT, "--max-new-tokens", "48", "--mode"];
    let modes = ["ar", "parallel", "sequential"].map(|mode| sample(&[&args[..], &[mode]].concat()));
    for (sample, mode) in modes.iter().zip(["ar", "parallel", "sequential"]) {
        let prefill = sample.prefill.as_ref().unwrap();
        let (mut position, mut bonus, mut draft) = (5, prefill.bonus, &prefill.draft);
        let mut output = vec![bonus];
        for step in &sample.steps {
            assert_eq!((step.mode.as_str(), step.position), (mode, position));
            assert_eq!(step.candidates, [&[bonus], &draft[..step.verify_len]].concat());
            assert!(step.accepted <= step.verify_len);
            match mode {
                "parallel" => assert_eq!(step.groups, Vec::from_iter(0..=step.verify_len)),
                _ => assert!(step.groups.is_empty()),
            }
            let slots = if mode == "ar" { 0 } else { 7 };
            assert_eq!((step.draft.len(), step.confidence.len()), (slots, slots));
            output.extend(&step.candidates[1..=step.accepted]);
            output.push(step.bonus);
            (position, bonus, draft) = (position + step.accepted + 1, step.bonus, &step.draft);
        }
        output.truncate(48);
        assert_eq!(sample.output_ids, output);
        check_stats(sample);
    }
    let [_, parallel, sequential] = modes;
    assert_eq!(parallel.prefill, sequential.prefill);
    for (a, b) in parallel.steps.iter().zip(&sequential.steps) {
        assert_eq!((&a.candidates, &a.draft, &a.confidence), (&b.candidates, &b.draft, &b.confidence));
    }
}

fn check_stats(sample: &Sample) {
    let stats = &sample.stats;
    assert_eq!((stats.tokens, stats.steps), (sample.output_ids.len(), sample.steps.len()));
    let accepted: usize = sample.steps.iter().map(|step| step.accepted + 1).sum();
    assert_eq!(stats.acceptance_length, accepted as f64 / stats.steps as f64);
    assert!(stats.prefill_seconds > 0.0 && stats.decode_seconds > 0.0);
    assert_eq!(stats.tokens_per_second, (stats.tokens - 1) as f64 / stats.decode_seconds);
}

#[test]
fn numbers_read_back_to_the_engines_bits() {
    let found = sample(&["--prompt-ids", PROMPT, "--mode", "parallel", "--max-new-tokens", "32"]);
    let target = TargetWeights::read(&tiny("target")).unwrap();
    let drafter = DrafterWeights::read(&tiny("draft"), &target.config).unwrap();
    let model = Model::new(Cpu::new(CpuOptions::default()).unwrap(), &target, Some(&drafter)).unwrap();
    let mut engine = Engine::new(model, Mode::Parallel, EngineOptions::default()).unwrap();
    engine.add(Request { record: true, ..Request::new(vec![282, 71, 83, 14, 73], 32) }).unwrap();
    let mut records = Vec::new();
    while !engine.is_idle() {
        records.extend(engine.step().unwrap().into_iter().filter_map(|committed| committed.record));
    }
    let bits = |confidence: &[f32]| confidence.iter().map(|c| c.to_bits()).collect::<Vec<_>>();
    let prefill = found.prefill.unwrap();
    let mut blocks = vec![(prefill.bonus, prefill.draft, bits(&prefill.confidence))];
    blocks.extend(found.steps.into_iter().map(|step| (step.bonus, step.draft, bits(&step.confidence))));
    let expected: Vec<_> = records
        .into_iter()
        .map(|record| match record {
            Record::Prefill(block) => block,
            Record::Step(step) => step.next,
        })
        .map(|block| (block.bonus, block.draft, bits(&block.confidence)))
        .collect();
    assert_eq!(blocks, expected);
}

#[test]
fn samples_come_in_order_and_are_those_of_their_seeds() {
    let sampled = ["--prompt", "def f(", "--temperature", "1", "--max-new-tokens", "24"];
    let batch = json(&[&sampled[..], &["--samples", "5", "--seed", "7"]].concat());
    let numbers: Vec<_> = batch.iter().map(|sample| (sample.index, sample.seed)).collect();
    assert_eq!(numbers, [(0, 7), (1, 8), (2, 9), (3, 10), (4, 11)]);
    let alone = sample(&[&sampled[..], &["--seed", "9"]].concat());
    assert_eq!((&alone.output_ids, &alone.text), (&batch[2].output_ids, &batch[2].text));
    assert_ne!(batch[0].output_ids, batch[1].output_ids);
}

#[test]
fn samples_that_end_early_wait_for_their_turn() {
    // With a stop id, the samples end in any order; samples beyond the engine's 64 places start when another sample
    // ends.
    let target = target_with(|config| config["eos_token_id"] = 83.into());
    let draft = tiny("draft");
    let args =
        ["--target", arg(target.path()), "--draft", arg(&draft), "--prompt", "def f(", "--temperature", "1"];
    let batch =
        json(&[&args[..], &["--samples", "70", "--max-new-tokens", "12", "--rule", "match"]].concat());
    assert_eq!(batch.len(), 70);
    for (i, sample) in batch.iter().enumerate() {
        assert_eq!((sample.index, sample.seed), (i, i as u64));
        let stop = sample.output_ids.iter().position(|id| *id == 83);
        match sample.finish_reason.as_str() {
            "stop" => assert_eq!(stop, Some(sample.output_ids.len() - 1)),
            reason => assert_eq!((reason, stop, sample.output_ids.len()), ("length", None, 12)),
        }
    }
    assert!(batch.iter().any(|sample| sample.finish_reason == "stop"));
    assert!(batch.iter().any(|sample| sample.finish_reason == "length"));
}

#[test]
fn match_gives_the_tokens_of_ar() {
    let sampled = ["--prompt", "class A", "--temperature", "0.9", "--top-p", "0.9", "--rule", "match"];
    let run = |mode| sample(&[&sampled[..], &["--max-new-tokens", "40", "--mode", mode]].concat()).output_ids;
    let ar = run("ar");
    assert_eq!(run("parallel"), ar);
    assert_eq!(run("sequential"), ar);
}

#[test]
fn an_end_of_sequence_id_ends_the_output() {
    let target = target_with(|_| {});
    fs::write(target.path().join("generation_config.json"), r#"{"eos_token_id": [331, 9]}"#).unwrap();
    let draft = tiny("draft");
    let args = ["--target", arg(target.path()), "--draft", arg(&draft), "--prompt-ids", PROMPT];
    for mode in ["ar", "parallel", "sequential"] {
        let stopped = sample(&[&args[..], &["--mode", mode]].concat());
        assert_eq!(stopped.output_ids, [288, 77, 83, 370, 263, 316, 331]);
        assert_eq!(stopped.finish_reason, "stop");
    }
    let ignored = sample(&[&args[..], &["--ignore-eos", "--max-new-tokens", "20"]].concat());
    assert_eq!((ignored.output_ids.len(), ignored.finish_reason.as_str()), (20, "length"));
}

#[test]
fn nothing_may_be_asked_for_and_the_context_ends() {
    let nothing = sample(&["--prompt-ids", PROMPT, "--max-new-tokens", "0"]);
    assert_eq!((nothing.output_ids.len(), nothing.prefill, nothing.steps.len()), (0, None, 0));
    assert_eq!((nothing.finish_reason.as_str(), nothing.stats.acceptance_length), ("length", 0.0));

    let target = target_with(|config| config["max_position_embeddings"] = 24.into());
    let draft = target_draft(24);
    let args = ["--target", arg(target.path()), "--draft", arg(draft.path()), "--prompt-ids", PROMPT];
    let full = sample(&args);
    assert_eq!((full.output_ids.len(), full.finish_reason.as_str()), (24 - 5, "length"));
}

/// Makes a copy of the tiny drafter for a target with another context length.
fn target_draft(context: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(tiny("draft/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let config = fs::read(tiny("draft/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["max_position_embeddings"] = context.into();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn text_needs_a_tokenizer_and_ids_do_not() {
    let target = target_with(|_| {});
    let whole = sample(&["--target", arg(target.path()), "--prompt-ids", PROMPT, "--max-new-tokens", "8"]);
    assert!(!whole.text.is_empty());
    fs::remove_file(target.path().join("tokenizer.json")).unwrap();
    let without = sample(&["--target", arg(target.path()), "--prompt-ids", PROMPT, "--max-new-tokens", "8"]);
    assert_eq!((&without.output_ids, without.text.as_str()), (&whole.output_ids, ""));
}

#[test]
fn random_drafters_and_rounded_activations_keep_the_tokens() {
    let tokens =
        |args: &[&str]| sample(&[&["--prompt-ids", PROMPT, "--max-new-tokens", "16"], args].concat());
    let plain = tokens(&["--mode", "ar"]);
    let random = tokens(&["--draft", "random:3", "--mode", "parallel", "--block-size", "20"]);
    assert_eq!(random.output_ids, plain.output_ids);
    assert_eq!(random.prefill.unwrap().draft.len(), 19);
    let random = tokens(&["--draft", "random:1"]);
    assert_eq!(random.output_ids, plain.output_ids);
    assert_eq!(random.prefill.unwrap().draft.len(), 15);
    let rounded =
        ["ar", "parallel"].map(|mode| tokens(&["--dtype", "bf16", "--threads", "2", "--mode", mode]));
    assert_eq!(rounded[0].output_ids, rounded[1].output_ids);
}
