//! Tests that mistakes in the arguments give exit code 2 and a one-line message that names them; also tests of `--help`
//! and `inspect`.

use std::fs;

use crate::common::{Run, arg, run, succeed, target_with, target_with_elements, tiny};

/// Asserts that arguments are refused: exit code 2, empty stdout, and exactly `message` on stderr.
fn refused(args: &[&str], message: &str) {
    for args in [args.to_vec(), [&["--json"], args].concat()] {
        let Run { code, stdout, stderr } = run(&args);
        assert_eq!((code, stdout.as_str(), stderr), (Some(2), "", format!("error: {message}\n")), "{args:?}");
    }
}

#[test]
fn a_missing_gpu() {
    let Run { code, stdout, stderr } = run(&["--device", "cuda:99"]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    // Only the beginning of the message is compared, because the reason for the failure depends on the machine.
    let reason = stderr.strip_prefix("error: device `cuda:99` is not available: ").unwrap();
    assert!(reason.trim_end().len() > 10 && reason.lines().count() == 1, "{reason}");
}

#[test]
fn requests_outside_the_limits() {
    for (args, message) in [
        (&["--temperature", "-1"], "temperature must be finite and at least 0, found -1"),
        (&["--temperature", "nan"], "temperature must be finite and at least 0, found NaN"),
        (
            &["--temperature", "1e-39"],
            "temperature must be 0, or at least 2.94e-39 for a finite reciprocal, found 1e-39",
        ),
        (&["--temperature", "2e36"], "temperature must be at most 1e36, found 2e36"),
        (&["--top-p", "0"], "top-p must be above 0 and at most 1, found 0"),
        (&["--top-p", "1.5"], "top-p must be above 0 and at most 1, found 1.5"),
        (&["--min-p", "1"], "min-p must be at least 0 and below 1, found 1"),
        (&["--min-p", "-0.5"], "min-p must be at least 0 and below 1, found -0.5"),
        (
            &["--confidence-threshold", "1.01"],
            "confidence threshold must be at least 0 and at most 1, found 1.01",
        ),
        (&["--repetition-penalty", "0"], "repetition penalty must be finite and above 0, found 0"),
        (&["--frequency-penalty", "inf"], "frequency penalty must be finite, found inf"),
        (&["--presence-penalty", "nan"], "presence penalty must be finite, found NaN"),
        (&["--logit-bias", "2048=1"], "id 2048 of the logit bias is out of vocabulary (2048 ids)"),
        (&["--bad-words-ids", "3,2048"], "id 2048 of the bad words is out of vocabulary (2048 ids)"),
        (&["--bad-words-ids", ""], "bad word 0 is empty"),
        (&["--bad-words", " "], "--bad-words has a text without a word"),
        (&["--allowed-token-ids", "3,2048"], "--allowed-token-ids has id 2048, the vocabulary has 2048 ids"),
        (&["--allowed-token-ids", ""], "the mask and the bad words of one id forbid every id"),
        (&["--block-size", "0"], "block size 0 is not in 1..=16, the drafter's own"),
        (&["--block-size", "17"], "block size 17 is not in 1..=16, the drafter's own"),
        (
            &["--block-size", "18446744073709551615"],
            "block size 18446744073709551615 is not in 1..=16, the drafter's own",
        ),
        (&["--prompt", ""], "the prompt is empty"),
        (&["--prompt-ids", ""], "the prompt is empty"),
        (&["--prompt-ids", "5,2048"], "prompt token 2048 at position 1 is out of vocabulary (2048 ids)"),
        (&["--draft", "random:0"], "model configuration: `tail_layers` is 0, expected 1 to 5"),
        (&["--draft", "random:6"], "model configuration: `tail_layers` is 6, expected 1 to 5"),
        (
            &["--threads", "5000"],
            "device `cpu with 5000 threads` is not available: at most 1024 threads are supported",
        ),
    ] {
        refused(args, message);
    }
    refused(&["--logit-bias", "7=1", "--logit-bias", "7=2"], "--logit-bias has two numbers for id 7");
    refused(
        &["--draft", "random:2", "--block-size", "65"],
        "block size 65 is not in 1..=64, the drafter's own",
    );
    refused(
        &["--samples", "2", "--seed", "18446744073709551615"],
        "2 samples need consecutive seeds from 18446744073709551615 on, but the largest seed is \
         18446744073709551615; use a smaller --seed",
    );
    refused(
        &["--weights", "keep", "--device", "cuda:0"],
        "--weights keep needs --device cpu: a GPU takes only --weights bf16",
    );
    let long = vec!["5"; 1025].join(",");
    refused(&["--prompt-ids", &long], "the prompt has 1025 tokens, the context is 1024");
}

#[test]
fn files_that_are_missing_or_damaged() {
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name).display().to_string();
    let missing = "No such file or directory (os error 2)";
    let target = tiny("target");
    let target = arg(&target);
    refused(&["--prompt-file", &at("p")], &format!("cannot read prompt {}: {missing}", at("p")));
    refused(
        &["--target", &at("t"), "--prompt", "x"],
        &format!("cannot read {}: {missing}", at("t/config.json")),
    );
    refused(&["--draft", &at("d")], &format!("cannot read {}: {missing}", at("d/config.json")));
    refused(&["--target", target], "nothing to continue: pass --prompt, --prompt-file or --prompt-ids");
    refused(
        &["--target", target, "--prompt", "x", "--chat"],
        &format!(
            "{target} has no chat template (neither chat_template.jinja nor `chat_template` in \
             tokenizer_config.json); leave out --chat to use the text unchanged"
        ),
    );
    fs::write(at("p"), b"caf\xe9").unwrap();
    refused(
        &["--prompt-file", &at("p")],
        &format!("cannot read prompt {}: stream did not contain valid UTF-8", at("p")),
    );

    let deeper = target_with(|config| config["num_hidden_layers"] = 5.into());
    let dir = deeper.path().display();
    refused(
        &["--target", arg(deeper.path()), "--prompt", "x"],
        &format!("{dir}: tensor `model.layers.4.input_layernorm.weight` is missing"),
    );
    let wider = target_with(|config| config["intermediate_size"] = 161.into());
    let file = wider.path().join("model.safetensors");
    refused(
        &["--target", arg(wider.path()), "--prompt", "x"],
        &format!(
            "{}: tensor `model.layers.0.mlp.gate_proj.weight` has shape [160, 64], expected [161, 64]",
            file.display()
        ),
    );
    let cut = target_with(|_| {});
    let file = cut.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 4]).unwrap();
    let message = run(&["--target", arg(cut.path()), "--prompt", "x"]);
    assert_eq!(message.code, Some(2));
    let start = format!("error: {} is not a valid safetensors file: ", file.display());
    assert!(message.stderr.starts_with(&start) && message.stderr.ends_with("it may be truncated\n"));
    assert_eq!(message.stderr.lines().count(), 1);
}

#[test]
fn arguments_that_are_not_understood() {
    for (args, message) in [
        (
            &["--device", "tpu"][..],
            "invalid value 'tpu' for '--device <auto|cpu|cuda:N>': expected `auto`, `cpu` or `cuda:N`, such \
             as `cuda:0`",
        ),
        (
            &["--prompt-ids", "1,x"],
            "invalid value '1,x' for '--prompt-ids <1,2,3>': expected token ids separated by commas, found `x`",
        ),
        (&["--samples", "0"], "invalid value '0' for '--samples <N>': expected a whole number of at least 1"),
        (
            &["--draft", "random:many"],
            "invalid value 'random:many' for '--draft <DIR|ID|random:N|lookup>': expected a number of layers after `random:`, found `many`",
        ),
        (&["--products", "fast"], "invalid value 'fast' for '--products <ALGORITHMS>'"),
        (&["bench", "--products", "all"], "invalid value 'all' for '--products <ALGORITHMS>'"),
        (&["--mode", "fast"], "invalid value 'fast' for '--mode <MODE>'"),
        (&["--prompt", "a", "--prompt-ids", "1"], "the argument '--prompt <TEXT>' cannot be used with"),
        (
            &["--prompt-ids", "1", "--chat"],
            "the argument '--prompt-ids <1,2,3>' cannot be used with '--chat'",
        ),
        (&["inspect"], "the following required arguments were not provided:"),
        (&["--nonsense"], "unexpected argument '--nonsense' found"),
    ] {
        let run = run(args);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{args:?}");
        let first = run.stderr.lines().next().unwrap();
        assert!(first.starts_with(&format!("error: {message}")), "{args:?}: {first}");
    }
}

#[test]
fn the_help_has_every_option_and_its_default() {
    let short = succeed(&["-h"]).stdout;
    let long = succeed(&["generate", "--help"]).stdout;
    for option in [
        "--target",
        "--draft",
        "--device",
        "--products",
        "--dtype",
        "--weights",
        "--threads",
        "--prompt",
        "--prompt-file",
        "--prompt-ids",
        "--chat",
        "--system",
        "--enable-thinking",
        "--no-thinking",
        "--template-var",
        "--tools",
        "--mode",
        "--rule",
        "--block-size",
        "--confidence-threshold",
        "--confidence-strategy",
        "--max-new-tokens",
        "--ignore-eos",
        "--stop",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--seed",
        "--samples",
        "--json",
        "--no-compare",
    ] {
        assert!(short.contains(&format!("{option} ")) || short.contains(&format!("{option}\n")), "{option}");
        assert!(long.contains(option), "{option}");
    }
    let page = include_str!("../../../docs/cli.md");
    for option in long.split_whitespace().filter(|word| word.starts_with("--")) {
        let option = option.trim_end_matches(|c: char| !c.is_ascii_lowercase());
        let documented = page.contains(&format!("`{option}`")) || option == "--help";
        assert!(documented, "docs/cli.md does not describe {option}");
    }
    for default in ["256", "0.01", "cumulative-product", "rejection", "auto", "f32", "invariant"] {
        assert!(long.contains(&format!("[default: {default}]")), "{default}");
    }
    assert_eq!(succeed(&["--version"]).stdout, format!("flexdraft {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn inspect_reports_and_fails_on_what_cannot_run() {
    let (target, draft) = (tiny("target"), tiny("draft"));
    let sound = succeed(&["inspect", "--target", arg(&target), "--draft", arg(&draft)]);
    assert!(sound.stdout.contains("Qwen3ForCausalLM") && sound.stdout.contains("block size 8"));
    assert_eq!(sound.stderr, "");

    let deeper = target_with(|config| config["num_hidden_layers"] = 5.into());
    let broken = run(&["inspect", "--target", arg(deeper.path())]);
    assert_eq!(broken.code, Some(2));
    assert!(broken.stdout.contains("model.layers.4.self_attn.q_proj.weight"), "{}", broken.stdout);
    let message = format!(
        "error: {}: tensors that are missing or do not fit: 11 (see the report)\n",
        deeper.path().display()
    );
    assert_eq!(broken.stderr, message);

    for (value, count) in [(f32::NAN, 1), (f32::NEG_INFINITY, 3)] {
        let tensors = ["model.norm.weight", "model.layers.2.mlp.up_proj.weight"];
        let faulty = target_with_elements(&tensors, count, value);
        let broken = run(&["inspect", "--target", arg(faulty.path())]);
        assert_eq!(broken.code, Some(1));
        let elements = if count == 1 { "1 element" } else { "3 elements" };
        let message = format!(
            "error: {}: model.layers.2.mlp.up_proj.weight has NaN or infinity in {elements}; so do other tensors: 1 \
             (see the report)\n",
            faulty.path().display()
        );
        assert_eq!(broken.stderr, message);
        assert!(broken.stdout.contains("not finite: 2\n"), "{}", broken.stdout);
    }

    let nowhere = run(&["inspect", "--target", "nowhere"]);
    let message = "error: cannot read nowhere/config.json: No such file or directory (os error 2)\n";
    assert_eq!((nowhere.code, nowhere.stderr.as_str()), (Some(2), message));
}
