//! An example that measures prompt lookup: the acceptance length τ of several settings on prompts of the bundled target.
//!
//!     cargo run --release --features runner --example lookup_settings -- 30
//!
//! The number is the number of prompts; the default is 2. `docs/cli.md` has the table of 30 prompts.

use std::error::Error;
use std::path::Path;

use flexdraft::decode::{Engine, EngineOptions, Mode, PromptLookup, Record, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{Model, TargetWeights, Tokenizer};

/// Number of tokens per output.
const TOKENS: usize = 128;

/// Runs the example of measuring prompt lookup.
pub fn main() -> Result<(), Box<dyn Error>> {
    let prompts = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(2);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny");
    let target = TargetWeights::read(&folder.join("target"))?;
    let tokenizer = Tokenizer::read(&folder.join("target"), target.config.vocab_size)?;
    let mut model = Model::new(Cpu::new(CpuOptions::default())?, &target, None)?;
    let lines = std::fs::read_to_string(folder.join("unseen.jsonl"))?;
    let mut texts = Vec::new();
    for line in lines.lines().take(prompts) {
        let value: serde_json::Value = serde_json::from_str(line)?;
        texts.push(tokenizer.encode(value["prompt"].as_str().unwrap_or_default(), true)?);
    }

    println!(
        "| n-grams | tokens | τ | steps with a proposal | rows per step | accepted at place 1, 2, 4, 8 |"
    );
    println!("|---|---|---|---|---|---|");
    let mut best = 1.0f64;
    let n_grams = [(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (6, 2), (4, 3)]
        .map(|(longest, shortest)| (longest, shortest, 8));
    for (longest, shortest, tokens) in n_grams.into_iter().chain([4, 16, 32].map(|tokens| (4, 2, tokens))) {
        let lookup = PromptLookup { longest, shortest, tokens };
        let options = EngineOptions { proposers: true, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Mode::Sequential, options)?;
        for prompt in &texts {
            let request = Request::new(prompt.clone(), TOKENS);
            let stop_ids = target.config.eos_ids.clone();
            let proposer = Some(Box::new(lookup) as _);
            engine.add(Request { proposer, stop_ids, record: true, ..request })?;
        }
        let mut steps = Vec::new();
        while !engine.is_idle() {
            steps.extend(engine.step()?.into_iter().filter_map(|report| match report.record {
                Some(Record::Step(step)) => Some((step.verify_len, step.accepted)),
                _ => None,
            }));
        }
        println!("| {longest} to {shortest} | {tokens} | {} |", columns(&steps));
        best = best.max(mean(&steps, |&(_, accepted)| accepted + 1));
        model = engine.into_model();
    }
    assert!(best > 1.2, "the bundled target's text repeats itself");
    Ok(())
}

fn mean<T>(steps: &[T], number: impl Fn(&T) -> usize) -> f64 {
    steps.iter().map(number).sum::<usize>() as f64 / steps.len() as f64
}

/// Returns the columns of the table, from verify length and accepted length of each step. A token counts as verified if
/// all tokens before it were accepted.
fn columns(steps: &[(usize, usize)]) -> String {
    let tau = mean(steps, |&(_, accepted)| accepted + 1);
    let proposed = 100.0 * mean(steps, |&(verified, _)| usize::from(verified > 0));
    let rows = mean(steps, |&(verified, _)| verified + 1);
    let places = [1, 2, 4, 8].map(|place| {
        let tested: Vec<_> = steps.iter().filter(|step| step.0 >= place && step.1 + 1 >= place).collect();
        match tested.is_empty() {
            true => "–".into(),
            false => format!("{:.2}", mean(&tested, |step| usize::from(step.1 >= place))),
        }
    });
    format!("{tau:.2} | {proposed:.0}% | {rows:.1} | {}", places.join(", "))
}
