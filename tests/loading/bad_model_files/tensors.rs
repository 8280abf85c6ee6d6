//! Tests with checkpoints that are incomplete or inconsistent.

use std::fs;

use flexdraft::model::inspect::Report;
use flexdraft::model::{ChatTemplate, TargetWeights, Tokenizer};
use serde_json::json;

use super::directory::{Copy, LLAMA, SHARDED, fixture, join, split};

#[test]
fn missing_files() {
    let empty = Copy(tempfile::tempdir().unwrap());
    assert_eq!(empty.target_error(), "cannot read config.json: No such file or directory (os error 2)");
    fs::copy(fixture(LLAMA).join("config.json"), empty.path().join("config.json")).unwrap();
    assert_eq!(
        TargetWeights::read(empty.path()).unwrap_err().to_string(),
        format!(
            "{} has no weights: expected model.safetensors or model.safetensors.index.json",
            empty.path().display()
        )
    );
    let error = Tokenizer::read(empty.path(), 64).unwrap_err();
    assert_eq!(empty.message(error), "cannot read tokenizer.json: No such file or directory (os error 2)");
    assert_eq!(
        ChatTemplate::read(empty.path()).unwrap_err().to_string(),
        format!(
            "{} has no chat template (neither chat_template.jinja nor `chat_template` in tokenizer_config.json)",
            empty.path().display()
        )
    );

    let copy = Copy::of(SHARDED);
    fs::remove_file(copy.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_eq!(
        copy.target_error(),
        "cannot read model-00002-of-00002.safetensors: No such file or directory (os error 2)"
    );
    fs::remove_file(copy.path().join("config.json")).unwrap();
    fs::create_dir(copy.path().join("config.json")).unwrap();
    assert_eq!(
        copy.target_error(),
        "expected a regular file at config.json, found a directory, pipe or device"
    );
}

#[test]
fn truncated_at_any_point() {
    let copy = Copy::of(LLAMA);
    let file = fs::read(copy.path().join("model.safetensors")).unwrap();
    let header_end = file.len() - split(&file).1.len();
    let cuts =
        (0..32).chain((32..file.len()).step_by(797)).chain([header_end - 1, header_end, file.len() - 1]);
    for cut in cuts {
        copy.write("model.safetensors", &file[..cut]);
        let error = copy.target_error();
        let expected = match cut {
            0..8 => format!(
                "model.safetensors is not a valid safetensors file: it has {cut} bytes, expected at least 8"
            ),
            _ if cut < header_end => format!(
                "model.safetensors is not a valid safetensors file: its header needs {} bytes, and the file has {cut}; it may be truncated",
                header_end - 8
            ),
            _ => format!("of the data, which has {}; it may be truncated", cut - header_end),
        };
        assert!(error.contains(&expected), "cut at {cut}: {error}");
        // SAFETY: no process writes to the file while it is mapped.
        let mapped = unsafe { TargetWeights::map(copy.path()) }.unwrap_err();
        assert_eq!(copy.message(mapped), error);
    }
    copy.write("model.safetensors", [&file[..], &[0]].concat());
    assert_eq!(
        copy.target_error(),
        "model.safetensors is not a valid safetensors file: incomplete metadata, file not fully covered"
    );
}

#[test]
fn shapes_and_tensors() {
    let copy = Copy::of(LLAMA);
    copy.edit_header(|header| header["model.layers.1.mlp.up_proj.weight"]["shape"] = json!([32, 40]));
    assert_eq!(
        copy.target_error(),
        "model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` has shape [32, 40], expected [40, 32]"
    );
    let copy = Copy::of(LLAMA);
    copy.edit_header(|header| {
        let tensor = header.remove("model.layers.0.input_layernorm.weight").unwrap();
        header.insert("something.else".into(), tensor);
    });
    let dir = copy.path().display();
    assert_eq!(
        copy.target_error(),
        format!("{dir}: tensor `model.layers.0.input_layernorm.weight` is missing")
    );
    // The changed config requires tensors that the checkpoint lacks.
    let copy = Copy::of(LLAMA);
    copy.set("attention_bias", json!(true));
    let dir = copy.path().display();
    assert_eq!(
        copy.target_error(),
        format!("{dir}: tensor `model.layers.0.self_attn.q_proj.bias` is missing")
    );
    let copy = Copy::of(LLAMA);
    copy.set("vocab_size", json!(65));
    assert_eq!(
        copy.target_error(),
        "model.safetensors: tensor `model.embed_tokens.weight` has shape [64, 32], expected [65, 32]"
    );
}

#[test]
fn element_types() {
    for (found, size) in [("I32", 1), ("F64", 2), ("Q4_0", 1)] {
        let copy = Copy::of(LLAMA);
        copy.edit_header(|header| {
            let norm = &mut header["model.norm.weight"];
            norm["dtype"] = json!(found);
            norm["shape"] = json!([32 / size]);
        });
        assert_eq!(
            copy.target_error(),
            format!(
                "model.safetensors: tensor `model.norm.weight` has element type {found}; supported: F32, F16, BF16"
            )
        );
    }
    // A problem in an unused tensor is not an error.
    let copy = Copy::of(LLAMA);
    copy.set("num_hidden_layers", json!(1));
    copy.edit_header(|header| header["model.layers.1.input_layernorm.weight"]["dtype"] = json!("I32"));
    assert!(TargetWeights::read(copy.path()).is_ok());
}

#[test]
fn headers_that_do_not_describe_the_file() {
    let file = fs::read(fixture(LLAMA).join("model.safetensors")).unwrap();
    let (header, data) = split(&file);
    let text = serde_json::to_string(&header).unwrap();
    let copy = Copy::of(LLAMA);
    let error_with = |header: &str| {
        copy.write("model.safetensors", join(header.as_bytes(), &data));
        copy.target_error()
    };
    let invalid = "model.safetensors is not a valid safetensors file: ";

    let norm = serde_json::to_string(&header["model.norm.weight"]).unwrap();
    let twice = format!("{{\"model.norm.weight\":{norm},{}", &text[1..]);
    assert_eq!(error_with(&twice), "model.safetensors: tensor `model.norm.weight` occurs more than once");

    let mut overlapping = header.clone();
    overlapping["model.norm.weight"]["data_offsets"] = json!([0, 128]);
    let error = error_with(&serde_json::to_string(&overlapping).unwrap());
    assert!(error.starts_with(&format!("{invalid}invalid offset for tensor")), "{error}");

    let mut backwards = header.clone();
    backwards["model.norm.weight"]["data_offsets"] = json!([128, 0]);
    assert!(error_with(&serde_json::to_string(&backwards).unwrap()).starts_with(invalid));

    let mut huge = header.clone();
    huge["model.norm.weight"]["data_offsets"] = json!([0, u64::MAX]);
    assert_eq!(
        error_with(&serde_json::to_string(&huge).unwrap()),
        format!(
            "{invalid}tensor `model.norm.weight` ends at byte {} of the data, which has {}; it may be truncated",
            u64::MAX,
            data.len()
        )
    );

    let mut wide = header;
    wide["model.norm.weight"]["shape"] = json!([u64::MAX, 2]);
    assert_eq!(
        error_with(&serde_json::to_string(&wide).unwrap()),
        format!("{invalid}overflow computing buffer size from shape and/or element type")
    );

    for wrong in ["[]", "{", "{\"a\": 1}", "{\"a\": {\"dtype\": \"F32\"}}", "\u{0}"] {
        let error = error_with(wrong);
        assert!(error.starts_with(&format!("{invalid}its header is damaged: ")), "{error}");
    }
    copy.write("model.safetensors", [&u64::MAX.to_le_bytes()[..], &data].concat());
    assert_eq!(
        copy.target_error(),
        format!(
            "{invalid}its header needs {} bytes, and the file has {}; it may be truncated",
            u64::MAX,
            data.len() + 8
        )
    );
}

#[test]
fn shards() {
    let index = "model.safetensors.index.json";
    let first = "model-00001-of-00002.safetensors";
    for outside in ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/../../b", ""] {
        let copy = Copy::of(SHARDED);
        copy.edit(index, |index| index["weight_map"]["model.norm.weight"] = json!(outside));
        assert_eq!(
            copy.target_error(),
            format!("{index}: expected a path within the model's directory, found `{outside}`")
        );
    }
    let copy = Copy::of(SHARDED);
    // The index may list a tensor that its file does not have, as long as the model does not need it.
    copy.edit(index, |index| index["weight_map"]["lm_head.bias"] = json!(first));
    assert!(TargetWeights::read(copy.path()).is_ok());
    copy.edit(index, |index| {
        index["weight_map"]["model.layers.0.mlp.up_proj.weight"] = json!("model-00002-of-00002.safetensors");
    });
    assert!(TargetWeights::read(copy.path()).is_ok(), "the tensor is in another file");
    // A shard may be missing too, unless a tensor that the model needs is in it.
    copy.edit(index, |index| index["weight_map"]["vision.weight"] = json!("vision.safetensors"));
    assert!(TargetWeights::read(copy.path()).is_ok());
    copy.edit(index, |index| index["weight_map"]["extra.bias"] = json!(first));
    let part = Copy::of(SHARDED);
    fs::remove_file(part.path().join(first)).unwrap();
    assert_eq!(part.target_error(), format!("cannot read {first}: No such file or directory (os error 2)"));
    let lacking = Copy::of(SHARDED);
    let (mut header, data) = split(&fs::read(lacking.path().join(first)).unwrap());
    let moved = header.remove("model.layers.0.mlp.up_proj.weight").unwrap();
    header.insert("elsewhere".into(), moved);
    lacking.write(first, join(&serde_json::to_vec(&header).unwrap(), &data));
    assert_eq!(
        lacking.target_error(),
        format!("{first}: tensor `model.layers.0.mlp.up_proj.weight` is missing")
    );
    copy.edit(index, |index| index["weight_map"]["lm_head.bias"] = json!(1));
    assert_eq!(copy.target_error(), format!("{index}: `weight_map.lm_head.bias` is 1, expected a file name"));
    copy.write(index, "{}");
    assert_eq!(copy.target_error(), format!("{index}: key `weight_map` is missing"));

    let copy = Copy::of(SHARDED);
    fs::copy(copy.path().join(first), copy.path().join("again.safetensors")).unwrap();
    copy.edit(index, |index| index["weight_map"]["model.embed_tokens.weight"] = json!("again.safetensors"));
    let error = copy.target_error();
    assert!(
        error.starts_with(&format!("{first}: tensor `")) && error.ends_with("occurs more than once"),
        "{error}"
    );
}

#[test]
fn a_report_lists_everything_that_is_wrong() {
    let copy = Copy::of(LLAMA);
    copy.edit_header(|header| {
        header["model.layers.1.mlp.up_proj.weight"]["shape"] = json!([32, 40]);
        for name in ["model.layers.0.input_layernorm.weight", "model.norm.weight"] {
            let tensor = header.remove(name).unwrap();
            header.insert(format!("unknown.{name}"), tensor);
        }
    });
    let path = copy.path().join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let len = file.len();
    let embed = split(&file).0["model.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let data = len - split(&file).1.len();
    for (i, value) in [f32::NAN, f32::INFINITY].into_iter().enumerate() {
        let at = data + embed + 4 * i;
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    fs::write(&path, file).unwrap();

    let report = Report::read(copy.path(), None).unwrap();
    assert!(!report.is_sound());
    assert_eq!(report.target.problems.len(), 3);
    assert_eq!(report.target.non_finite, [("model.embed_tokens.weight".to_owned(), 2)]);
    // SAFETY: no process writes to the file while it is mapped.
    let mapped = unsafe { Report::map(copy.path(), None) }.unwrap();
    assert_eq!(mapped.to_string(), report.to_string());
    let dir = copy.path().display();
    let shown = report.to_string();
    let expected = [
        "  missing or misshapen: 3".to_owned(),
        format!("    {dir}: tensor `model.layers.0.input_layernorm.weight` is missing"),
        format!(
            "    {dir}/model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` has shape [32, 40], expected [40, 32]"
        ),
        format!("    {dir}: tensor `model.norm.weight` is missing"),
        "  not finite: 1".to_owned(),
        "    model.embed_tokens.weight: 2 elements".to_owned(),
        "  unused: 2".to_owned(),
        "    unknown.model.layers.*.input_layernorm.weight (1 layer)".to_owned(),
        "    unknown.model.norm.weight".to_owned(),
    ];
    assert!(shown.ends_with(&(expected.join("\n") + "\n")), "{shown}");
}
