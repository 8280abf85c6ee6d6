//! Chat templates with their variables, and stop strings.

use std::fs;

use tempfile::TempDir;

use super::common::{arg, bundled, finished, flexdraft, run, sample, succeed, target_with, tiny};

/// A target whose chat template prints everything that it is given.
fn target() -> TempDir {
    let target = target_with(|_| {});
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                    {% if enable_thinking is defined %}|thinking {{ enable_thinking }}{% endif %}\
                    {% if level is defined %}|level {{ level + 1 }}{% endif %}\
                    {% if date is defined %}|{{ date }}{% endif %}\
                    {% if tools %}|{{ tools | tojson }}{% endif %}";
    fs::write(target.path().join("chat_template.jinja"), template).unwrap();
    target
}

#[test]
fn arguments_set_the_variables_of_the_chat_template() {
    let target = target();
    let prompt = |args: &[&str]| {
        let target = ["--target", arg(target.path()), "--max-new-tokens", "1", "--prompt"];
        sample(&[&target[..], args].concat()).prompt_ids
    };
    let tools = target.path().join("tools.json");
    fs::write(&tools, r#"[{"type": "function", "function": {"name": "f", "about": 1}}]"#).unwrap();
    for (args, rendered) in [
        (&["--system", "Be kind."][..], "<system>Be kind.<user>hi"),
        (&["--enable-thinking"], "<user>hi|thinking True"),
        (&["--no-thinking"], "<user>hi|thinking False"),
        (&["--enable-thinking", "--no-thinking"], "<user>hi|thinking False"),
        (&["--template-var", "level=2", "--template-var", "date=26 July"], "<user>hi|level 3|26 July"),
        (
            &["--tools", arg(&tools)],
            r#"<user>hi|[{"type": "function", "function": {"name": "f", "about": 1}}]"#,
        ),
    ] {
        assert_eq!(prompt(&[&["hi", "--chat"], args].concat()), prompt(&[rendered]), "{args:?}");
    }
}

#[test]
fn arguments_that_a_template_cannot_use() {
    let target = target();
    let args = ["--target", arg(target.path()), "--max-new-tokens", "1", "--mode", "ar", "--prompt", "hi"];
    let refused = |more: &[&str]| {
        let run = run(&[&args[..], more].concat());
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{more:?}: {}", run.stderr);
        run.stderr
    };
    for argument in [
        &["--system", "a"][..],
        &["--enable-thinking"],
        &["--no-thinking"],
        &["--template-var", "a=1"],
        &["--tools", "t"],
    ] {
        let message = format!("error: {} needs --chat: it is for a chat template\n", argument[0]);
        assert_eq!(refused(argument), message);
    }
    let tools = target.path().join("tools.json");
    let message =
        format!("error: cannot read tools {}: No such file or directory (os error 2)\n", tools.display());
    assert_eq!(refused(&["--chat", "--tools", arg(&tools)]), message);
    fs::write(&tools, "{}").unwrap();
    assert_eq!(
        refused(&["--chat", "--tools", arg(&tools)]),
        "error: variables of a chat template: `tools`: expected a list, found an object\n"
    );
    assert!(refused(&["--template-var", "a"]).contains("expected NAME=VALUE"));

    fs::write(target.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    fs::write(&tools, "[]").unwrap();
    let unread = succeed(
        &[&args[..], &["--chat", "--no-thinking", "--template-var", "a=1", "--tools", arg(&tools)]].concat(),
    );
    for (argument, variable) in
        [("--no-thinking", "enable_thinking"), ("--tools", "tools"), ("--template-var", "a")]
    {
        let warning = format!(
            "warning: {argument} has no effect: the model's chat template does not read `{variable}`\n"
        );
        assert!(unread.stderr.contains(&warning), "{}", unread.stderr);
    }
}

/// A drafter whose card is for another template, another mode or more accepted drafts.
#[test]
fn runs_that_do_not_fit_a_card() {
    let target = target();
    let draft = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(tiny("draft").join(file), draft.path().join(file)).unwrap();
    }
    let warnings = |card: serde_json::Value, more: &[&str]| {
        let path = draft.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["flexdraft_card"] = card;
        fs::write(&path, config.to_string()).unwrap();
        let args = [
            "--target",
            arg(target.path()),
            "--draft",
            arg(draft.path()),
            "--mode",
            "parallel",
            "--no-compare",
        ];
        let run = run(&[&args[..], &["--prompt", "def f(", "--ignore-eos"], more].concat());
        let warnings = run.stderr.lines().filter_map(|line| line.strip_prefix("warning: "));
        (run.code, warnings.map(str::to_owned).collect::<Vec<_>>(), run.stderr.clone())
    };
    let template = fs::read(target.path().join("chat_template.jinja")).unwrap();
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = format!("fnv1a64:{:016x}", template.iter().fold(0xcbf2_9ce4_8422_2325, mix));
    let card = |template: &str, thinking: Option<bool>, length: f64| {
        serde_json::json!({
            "template": template, "thinking": thinking, "block_size": 8, "acceptance_lengths": { "a": length, "b": 99.0 }
        })
    };
    let few = ["--max-new-tokens", "4", "--chat"];
    assert_eq!(warnings(card(&hash, None, 1.0), &few).1, [""; 0]);
    let thinking = [&few[..], &["--enable-thinking"]].concat();
    assert_eq!(warnings(card(&hash, Some(true), 1.0), &thinking).1, [""; 0]);
    let other = warnings(card("fnv1a64:0", Some(false), 1.0), &thinking).1;
    assert_eq!(
        other,
        [
            "the drafter was measured with another chat template, so it may be accepted less",
            "the drafter was measured with no thinking, and this run has thinking, so it may be accepted less",
        ]
    );
    let many = ["--max-new-tokens", "200"];
    assert_eq!(warnings(card(&hash, None, 2.0), &many).1, [""; 0]);
    let short = warnings(card(&hash, None, 20.0), &many).1;
    assert!(short.len() == 1 && short[0].starts_with("the acceptance length is "), "{short:?}");
    assert!(short[0].contains("the drafter's card says 20.00"), "{short:?}");
    let (code, _, stderr) = warnings(serde_json::json!({ "thinking": 3 }), &many);
    assert!(code == Some(2) && stderr.contains("`flexdraft_card` is "), "{stderr}");
}

/// Every mode cuts the same tokens and the same text, within an accepted run too.
#[test]
fn a_stop_string_ends_the_output_in_every_mode() {
    let whole = bundled(&["--max-new-tokens", "48", "--confidence-threshold", "0"]);
    // The longest run of accepted tokens: the stop string ends within it.
    let mut start = 1;
    let runs = whole.steps.iter().map(|step| {
        start += step.accepted + 1;
        (step.accepted + 1, start - step.accepted - 1)
    });
    let (length, start) = runs.max().unwrap();
    assert!(length >= 4 && start + length <= 48, "{length} tokens from {start}");
    let text = |mode: &str, stop: &str| {
        bundled(&["--max-new-tokens", "48", "--confidence-threshold", "0", "--mode", mode, "--stop", stop])
    };
    let before = bundled(&["--max-new-tokens", &(start + 1).to_string()]).text;
    let through = bundled(&["--max-new-tokens", &(start + 2).to_string()]).text;
    // The shortest end of the text that does not occur earlier, and begins in an earlier token.
    let at = (1..before.len()).rev().find(|&at| through.find(&through[at..]) == Some(at)).unwrap();
    let (kept, stop) = through.split_at(at);
    for mode in ["ar", "parallel", "sequential", "auto"] {
        let found = text(mode, stop);
        assert_eq!(found.text, kept, "{mode}");
        assert_eq!(found.output_ids, whole.output_ids[..start + 2], "{mode}");
        assert_eq!((found.finish_reason.as_str(), found.stats.tokens), ("stop", start + 2));
    }
    // A string that never comes changes nothing.
    assert_eq!(text("parallel", "no such text").text, whole.text);

    let args = ["--max-new-tokens", "48", "--confidence-threshold", "0", "--stop", "never", "--stop", stop];
    let shown = succeed(&args);
    assert_eq!(shown.stdout, kept);
    let count = start + 2;
    assert!(
        shown.stderr.ends_with(&format!("Lossless: every mode gave the same {count} tokens as `ar`.\n")),
        "{}",
        shown.stderr
    );
    let coloured = finished(flexdraft(&args).env("CLICOLOR_FORCE", "1").output().unwrap());
    assert_eq!(coloured.code, Some(0));
}

#[test]
fn stop_strings_that_cannot_be() {
    let empty = run(&["--stop", ""]);
    let message = "error: a stop string is empty, expected at least one character\n";
    assert_eq!((empty.code, empty.stderr.as_str()), (Some(2), message));
    let target = target_with(|_| {});
    fs::remove_file(target.path().join("tokenizer.json")).unwrap();
    let args = ["--target", arg(target.path()), "--prompt-ids", "1", "--stop", "a"];
    let message = "error: --stop needs a tokenizer, which this model does not have\n";
    assert_eq!(run(&args).stderr, message);
}
