//! Surveys the algorithms that cuBLASLt has for the products of a decode step, and which of them give a row the same
//! bits.
//!
//! `kernels first-products` adds lines of JSON to `first-products.jsonl`, in the directory that
//! `FLEXDRAFT_BENCH_RESULTS` names: the device with its peaks, then for each layer of Qwen3-8B and SmolLM2-135M the
//! layer, one line per algorithm and bucket of row counts (its times, and the class of its bits: equal classes are
//! equal bits), and the seconds of the products that the decode loop would use. A layer's lines are on disk as soon as
//! they are known.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use flexdraft::device::gpu::{CublasLt, Peaks, ProductCandidate, Products, Weights};
use flexdraft::runtime::{Cuda, Runtime};
use half::bf16;
use serde_json::json;

use crate::traced::Log;

/// A linear layer to survey: its model and name, the columns of its output and input, and whether its results are
/// logits.
type Layer = (&'static str, &'static str, usize, usize, bool);

/// The linear layers of two models; the products of the large model come first, because they take most of a step.
const LAYERS: [Layer; 10] = [
    ("qwen3-8b", "qkv", 6144, 4096, false),
    ("qwen3-8b", "o", 4096, 4096, false),
    ("qwen3-8b", "gate_up", 24_576, 4096, false),
    ("qwen3-8b", "down", 4096, 12_288, false),
    ("smollm2-135m", "qkv", 960, 576, false),
    ("smollm2-135m", "o", 576, 576, false),
    ("smollm2-135m", "gate_up", 3072, 576, false),
    ("smollm2-135m", "down", 576, 1536, false),
    ("smollm2-135m", "lm_head", 49_152, 576, true),
    ("qwen3-8b", "lm_head", 151_936, 4096, true),
];

/// Row counts of a plain step of 1 and 16 sequences, of a step that verifies 4 draft tokens at batch 1 without and with
/// five mask groups, of five groups at a batch of 16, and of a part of a prompt.
const ROWS: [usize; 6] = [1, 5, 16, 85, 512, 1360];

/// Number of distinct weights in a layer; a larger layer repeats the weights.
const DISTINCT: usize = 1 << 20;

/// Returns pseudo-random weights in −2..2 (xorshift).
fn weights(in_cols: usize, out_cols: usize) -> Weights {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bf16::from_f32((state >> 40) as f32 / (1u32 << 22) as f32 - 2.0)
    };
    let distinct: Vec<bf16> = (0..DISTINCT).map(|_| next()).collect();
    let weight = distinct.into_iter().cycle().take(in_cols * out_cols).collect();
    Weights { weight, bias: None, in_cols, out_cols }
}

/// Surveys cuBLASLt's algorithms for one linear layer.
fn survey(
    products: &CublasLt,
    runtime: &Cuda,
    stream: &<Cuda as Runtime>::Stream,
    (_, _, out_cols, in_cols, logits): Layer,
    log: &Log,
) -> Result<(), Box<dyn Error>> {
    let layer = products.new_layer(runtime, stream, &weights(in_cols, out_cols))?;
    let most = ROWS[ROWS.len() - 1];
    for candidate in products.survey(runtime, stream, &layer, out_cols, most, logits)? {
        let ProductCandidate { algorithm, rows, seconds, class } = candidate;
        log.add(&json!({"algorithm": algorithm, "rows": rows, "seconds": seconds, "class": class}))?;
    }
    products.prepare(runtime, stream, &layer, out_cols, most, logits)?;
    let seconds = ROWS.map(|rows| products.seconds(&layer, rows, logits));
    Ok(log.add(&json!({"chosen": {"rows": ROWS, "seconds": seconds}}))?)
}

/// Runs the command `kernels first-products`, which surveys the algorithms of all layers.
pub fn run() -> Result<(), Box<dyn Error>> {
    let directory = env::var_os("FLEXDRAFT_BENCH_RESULTS").map_or("target/kernels".into(), PathBuf::from);
    let context = match Cuda::context(0) {
        Err(error) if env::var_os("FLEXDRAFT_REQUIRE_GPU").is_none() => {
            eprintln!("*** SKIPPED on a GPU: {error} ***");
            return Ok(());
        }
        context => context?,
    };
    let log = Log::open(&directory.join("first-products.jsonl"))?;
    let stream = context.default_stream();
    log.add(&Peaks::measure(&context, &stream)?)?;
    let (runtime, products) = (Cuda::new(&context)?, CublasLt::new(&context, &stream)?);
    let mut failed: Result<(), Box<dyn Error>> = Ok(());
    for layer in LAYERS {
        let (model, name, out_cols, in_cols, logits) = layer;
        log.add(&json!({
            "model": model, "layer": name, "out_cols": out_cols, "in_cols": in_cols, "logits": logits,
        }))?;
        if let Err(error) = survey(&products, &runtime, &stream, layer, &log) {
            log.add(&json!({"error": error.to_string()}))?;
            failed = Err(error);
        }
    }
    failed
}
