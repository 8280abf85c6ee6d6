//! An example of generating text with the bundled target and drafter; it shows how many tokens each step committed.
//!
//!     cargo run --release --features runner --example generate

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterWeights, Model, TargetWeights, TextStream, Tokenizer};

/// Runs the example of generating text.
pub fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny");
    let target = TargetWeights::read(&folder.join("target"))?;
    let drafter = DrafterWeights::read(&folder.join("drafter"), &target.config)?;
    let tokenizer = Arc::new(Tokenizer::read(&folder.join("target"), target.config.vocab_size)?);

    let model = Model::new(Cpu::new(CpuOptions::default())?, &target, Some(&drafter))?;
    let mut engine = Engine::new(model, Mode::Parallel, EngineOptions::default())?;
    let prompt = tokenizer.encode("/// Adds packed 32-bit integers in `a` and `b`.\n", true)?;
    let mut text = TextStream::after(tokenizer.clone(), true, &prompt)?;
    engine.add(Request { stop_ids: target.config.eos_ids.clone(), ..Request::new(prompt, 64) })?;

    let (mut steps, mut tokens) = (0, 0);
    while !engine.is_idle() {
        for committed in engine.step()? {
            steps += 1;
            tokens += committed.tokens.len();
            print!("{}", text.push(&committed.tokens)?);
        }
    }
    println!("{}", text.finish()?);
    println!("{tokens} tokens in {steps} steps");
    assert!(steps < tokens, "some drafts of the bundled drafter are accepted");
    Ok(())
}
