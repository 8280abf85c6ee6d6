//! Replays recordings of the official Orthrus implementation on a tiny model, token for token.
//!
//! `tests/fixtures/orthrus` of the workspace holds a 4-layer Qwen3 with its drafter in one checkpoint, and the record of
//! 12 greedy requests. The tests replay all of them in f64; the record was made in f32.

use std::ops::Range;

use flexdraft_reference::accept::Rule;
use flexdraft_reference::decode::{Request, autoregressive, decode};
use flexdraft_reference::model::{Drafter, DrafterKind, Target};
use flexdraft_reference::process::Processors;
use flexdraft_reference::schedule::Strategy;
use flexdraft_reference::warp::Warping;

use crate::checkpoint::{self, Safetensors, assert_confidence, ids, number};

const BLOCK_SIZE: usize = 8;

fn model() -> (Target<f64>, Drafter<f64>) {
    let folder = checkpoint::fixtures().join("orthrus");
    let target = checkpoint::target(&folder);
    let config = checkpoint::json(&folder.join("config.json"));
    assert_eq!(number(&config["block_size"]), BLOCK_SIZE);
    let weights = Safetensors::open(&folder.join("model.safetensors"));
    let projectors = |i: usize| weights.projectors(&format!("model.layers.{i}"), "_diff");
    let drafter = Drafter {
        kind: DrafterKind::Orthrus,
        attention: (0..target.layers.len()).map(projectors).collect(),
        mask_embedding: target.embedding(number(&config["mask_token_id"]) as u32).to_vec(),
        calibrator: None,
        chain: None,
    };
    (target, drafter)
}

/// Replays the recorded cases `cases`. Steps are compared while the official loop has whole blocks, tokens everywhere.
fn replay(cases: Range<usize>) {
    let (target, drafter) = model();
    let all = checkpoint::json(&checkpoint::fixtures().join("orthrus/cases.json"));
    for index in cases {
        let case = &all[index];
        let request = Request {
            prompt: ids(&case["prompt"]),
            max_new_tokens: number(&case["max_new_tokens"]),
            stop_tokens: vec![],
            processors: Processors::OFF,
            processors_on_drafts: false,
            warping: Warping::GREEDY,
            rule: Rule::Rejection,
            seed: 0,
            block_size: BLOCK_SIZE,
            threshold: 0.0,
            strategy: Strategy::CumulativeProduct,
        };
        let decoded = decode(&target, &drafter, &request);
        assert_eq!(decoded.output, ids(&case["output"]), "case {index}");
        assert_eq!(autoregressive(&target, &request), decoded.output, "case {index}");

        let end = request.prompt.len() + request.max_new_tokens;
        let steps = case["steps"].as_array().unwrap();
        let whole = steps.iter().take_while(|step| number(&step["start"]) + BLOCK_SIZE <= end).count();
        assert!(whole > 0 && decoded.steps.len() >= whole, "case {index}");
        let mut draft = &decoded.first_draft;
        for (i, (step, recorded)) in decoded.steps.iter().zip(&steps[..whole]).enumerate() {
            let name = format!("case {index}, step {i}");
            assert_eq!(step.start, number(&recorded["start"]), "{name}");
            assert_eq!(step.verify_len, BLOCK_SIZE - 1, "{name}");
            assert_eq!(step.candidates[0], number(&recorded["anchor"]) as u32, "{name}");
            assert_eq!(step.candidates[1..], ids(&recorded["draft"]), "{name}");
            assert_eq!(step.accepted, number(&recorded["accepted"]), "{name}");
            assert_eq!(step.bonus, number(&recorded["bonus"]) as u32, "{name}");
            assert_confidence(&name, &draft.confidence, &recorded["confidence"]);
            draft = &step.draft;
        }
    }
}

#[test]
fn first_third() {
    replay(0..4);
}

#[test]
fn second_third() {
    replay(4..8);
}

#[test]
fn last_third() {
    replay(8..12);
}
