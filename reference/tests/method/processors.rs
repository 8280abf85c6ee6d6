//! Logit processors compared with transformers: greedy continuations of the tiny model, recorded with transformers'
//! repetition, bias, minimum-length and bad-words processors.

use flexdraft_reference::model::target_logits;
use flexdraft_reference::process::{History, Processors, process};
use flexdraft_reference::sample::argmax;
use serde_json::Value;

use crate::checkpoint::ids;
use crate::official_fixtures::model;

fn processors(row: &Value) -> Processors {
    let list = |key: &str| row[key].as_array().unwrap().clone();
    let bias = |pair: &Value| (pair[0].as_u64().unwrap() as u32, pair[1].as_f64().unwrap());
    Processors {
        repetition_penalty: row["repetition_penalty"].as_f64().unwrap(),
        bias: list("logit_bias").iter().map(bias).collect(),
        min_tokens: row["min_tokens"].as_u64().unwrap() as usize,
        bad_words: list("bad_words").iter().map(ids).collect(),
        ..Processors::OFF
    }
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    let text = include_str!("../../../tests/fixtures/transformers/processors.json");
    let recording: Value = serde_json::from_str(text).unwrap();
    let (target, _) = model();
    let rows = recording["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 40);
    for row in rows {
        let (prompt, tokens, stop_ids) = (ids(&row["prompt"]), ids(&row["tokens"]), ids(&row["stop_ids"]));
        let all = [&prompt[..], &tokens].concat();
        let logits = target_logits(&target, &all[..all.len() - 1]);
        let greedy = |len: usize| {
            let history = History { tokens: &all[..len], prompt_len: prompt.len(), end_ids: &stop_ids };
            argmax(&process(&logits[len - 1], &processors(row), history))
        };
        let found: Vec<u32> = (prompt.len()..all.len()).map(greedy).collect();
        assert_eq!(found, tokens, "{row}");
        let length = recording["max_new_tokens"].as_u64().unwrap() as usize;
        assert!(tokens.len() == length || stop_ids.contains(&tokens[tokens.len() - 1]));
    }
}
