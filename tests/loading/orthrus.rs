//! Tests of Orthrus models: target and drafter are read from the files of one directory.

use std::fs;
use std::path::Path;

use flexdraft::model::inspect::Report;
use flexdraft::model::weights::AttentionWeights;
use flexdraft::model::{Architecture, DrafterKind, DrafterWeights, ModelConfig, ModelWeights};
use flexdraft::tensor::{Elements, Tensor};
use serde_json::{Map, Value, json};

use crate::bad_model_files::directory::{Copy, ORTHRUS, fixture, join, split};

const MASK_TOKEN: usize = 383;

fn values(weights: &ModelWeights) -> Vec<Vec<f32>> {
    let attention = |attention: &AttentionWeights| {
        let (q_norm, k_norm) = attention.qk_norms.clone().unwrap();
        let linears = [&attention.q, &attention.k, &attention.v, &attention.o].map(|l| l.weight.to_f32());
        linears.into_iter().chain([q_norm.to_f32(), k_norm.to_f32()]).collect::<Vec<_>>()
    };
    let ModelWeights { target, drafter } = weights;
    let drafter = drafter.as_ref().unwrap();
    let layers = target.layers.iter().map(|layer| &layer.attention).chain(&drafter.attention);
    let tables = [&target.embed, &target.lm_head, &drafter.mask_embedding].map(Tensor::to_f32);
    layers.flat_map(attention).chain(tables).collect()
}

fn address(tensor: &Tensor) -> usize {
    match tensor.elements() {
        Elements::Bf16(x) => x.as_ptr() as usize,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_halves_come_from_one_directory() {
    let weights = ModelWeights::read(&fixture(ORTHRUS)).unwrap();
    let ModelWeights { target, drafter } = &weights;
    let drafter = drafter.as_ref().unwrap();
    assert_eq!(target.config.architecture, Architecture::Qwen3);
    assert!(target.warnings.is_empty() && target.config.tied_embeddings);
    assert_eq!(
        (drafter.config.kind, drafter.config.tail_layers, drafter.config.block_size),
        (DrafterKind::Orthrus, 4, 8)
    );
    assert!(drafter.calibrator.is_none());
    assert_eq!(drafter.mask_embedding.to_f32(), target.embed.to_f32()[MASK_TOKEN * 64..]);
    for (layer, drafter) in target.layers.iter().zip(&drafter.attention) {
        assert_eq!(layer.attention.q.weight.shape(), drafter.q.weight.shape());
        assert_ne!(layer.attention.q.weight.to_f32(), drafter.q.weight.to_f32());
    }
    // The mask embedding of an Orthrus model is a row of the token embedding, in the same memory.
    assert_eq!(address(&drafter.mask_embedding), address(&target.embed) + 2 * MASK_TOKEN * 64);
    assert_eq!(address(&target.lm_head), address(&target.embed));
    // SAFETY: no process writes to the fixtures while the tests run.
    let mapped = unsafe { ModelWeights::map(&fixture(ORTHRUS)) }.unwrap();
    assert_eq!(values(&mapped), values(&weights));
}

/// Writes the named tensors of a file's header and data to `path`, one after the other.
fn write_tensors(path: &Path, header: &Map<String, Value>, data: &[u8], chosen: impl Fn(&str) -> bool) {
    let (mut kept, mut bytes) = (Map::new(), Vec::new());
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__" && chosen(name)) {
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let mut tensor = tensor.clone();
        let tensor_bytes = &data[offset(0)..offset(1)];
        tensor["data_offsets"] = json!([bytes.len(), bytes.len() + tensor_bytes.len()]);
        bytes.extend(tensor_bytes);
        kept.insert(name.clone(), tensor);
    }
    fs::write(path, join(&serde_json::to_vec(&kept).unwrap(), &bytes)).unwrap();
}

#[test]
fn sharded_and_without_the_model_prefix() {
    let whole = ModelWeights::read(&fixture(ORTHRUS)).unwrap();
    let copy = Copy::of(ORTHRUS);
    let file = copy.path().join("model.safetensors");
    let (header, data) = split(&fs::read(&file).unwrap());
    fs::remove_file(&file).unwrap();
    // The target's and the drafter's projections of a layer may be in different shards.
    let second = |name: &str| name.contains("_diff") || name.contains("layers.3");
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    write_tensors(&copy.path().join(shards[0]), &header, &data, |name| !second(name));
    write_tensors(&copy.path().join(shards[1]), &header, &data, second);
    let shard = |name: &String| json!(shards[usize::from(second(name))]);
    let names = header.keys().filter(|name| *name != "__metadata__");
    let map: Map<String, Value> = names.map(|name| (name.clone(), shard(name))).collect();
    copy.write("model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    assert_eq!(values(&ModelWeights::read(copy.path()).unwrap()), values(&whole));

    let bare = Copy::of(ORTHRUS);
    bare.edit_header(|header| {
        let bare = |name: String| name.strip_prefix("model.").map(str::to_owned).unwrap_or(name);
        *header = std::mem::take(header).into_iter().map(|(name, tensor)| (bare(name), tensor)).collect();
    });
    assert_eq!(values(&ModelWeights::read(bare.path()).unwrap()), values(&whole));
}

#[test]
fn a_head_of_its_own_and_the_older_rope_keys() {
    let whole = ModelWeights::read(&fixture(ORTHRUS)).unwrap();
    let copy = Copy::of(ORTHRUS);
    copy.edit("config.json", |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), json!(10000.0));
        config.insert("tie_word_embeddings".into(), json!(false));
    });
    let path = copy.path().join("model.safetensors");
    let (mut header, mut data) = split(&fs::read(&path).unwrap());
    let head = vec![0u8; 384 * 64 * 2];
    let offsets = json!([data.len(), data.len() + head.len()]);
    data.extend(head);
    header.insert(
        "lm_head.weight".into(),
        json!({ "dtype": "BF16", "shape": [384, 64], "data_offsets": offsets }),
    );
    fs::write(&path, join(&serde_json::to_vec(&header).unwrap(), &data)).unwrap();
    let weights = ModelWeights::read(copy.path()).unwrap();
    assert!(!weights.target.config.tied_embeddings);
    assert_eq!(weights.target.lm_head.to_f32(), vec![0.0; 384 * 64]);
    assert_eq!(weights.target.config.rope, whole.target.config.rope);
    let drafter = weights.drafter.unwrap();
    assert_eq!(drafter.mask_embedding.to_f32(), whole.drafter.unwrap().mask_embedding.to_f32());
}

#[test]
fn a_report_names_both_halves() {
    let copy = Copy::of(ORTHRUS);
    copy.edit_header(|header| {
        let tensor = header.remove("model.layers.3.self_attn.k_norm_diff.weight").unwrap();
        header.insert("model.layers.3.self_attn.another.weight".into(), tensor);
    });
    let report = Report::read(copy.path(), None).unwrap();
    let path = copy.path().display().to_string();
    let expected = [
        "    model.norm            1 tensor                64  bf16",
        "  missing or misshapen: none",
        "  not finite: none",
        "  unused: 1",
        "    model.layers.*.self_attn.another.weight (1 layer)",
        "",
        "drafter  DIR",
        "  Orthrus, in the target's checkpoint: all 4 layers, block size 8",
        "  98,752 parameters, 192.9 KiB, 1 file",
        "    model.layers.0    6 tensors           24,704  bf16",
        "    model.layers.1    6 tensors           24,704  bf16",
        "    model.layers.2    6 tensors           24,704  bf16",
        "    model.layers.3    5 tensors           24,640  bf16",
        "  missing or misshapen: 1",
        "    DIR: tensor `model.layers.3.self_attn.k_norm_diff.weight` is missing",
        "  not finite: none",
        "  unused: none",
    ];
    let shown = report.to_string().replace(&path, "DIR");
    assert!(shown.ends_with(&(expected.join("\n") + "\n")), "{shown}");

    // A drafter that the user names takes the place of the drafter in the directory of the target.
    let draft = fixture("tiny/draft");
    let report = Report::read(&fixture(ORTHRUS), Some(&draft)).unwrap();
    assert_eq!(report.drafter.unwrap().config.kind, DrafterKind::FlexDraft);
    assert_eq!(report.target.unused.len(), 4 * 6);
    let config = ModelConfig::read(&fixture(ORTHRUS)).unwrap();
    assert!(DrafterWeights::read(&draft, &config).is_ok());
}
