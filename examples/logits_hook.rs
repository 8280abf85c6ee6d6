//! An example of a logits hook, which forbids the target one token. Drafting stays lossless with respect to the edited
//! target.
//!
//!     cargo run --release --features runner --example logits_hook

use std::error::Error;
use std::path::Path;

use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterWeights, Model, TargetWeights};

/// Runs the example of a logits hook.
pub fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny");
    let target = TargetWeights::read(&folder.join("target"))?;
    let drafter = DrafterWeights::read(&folder.join("drafter"), &target.config)?;

    let run = |mode, forbidden: Option<u32>| -> Result<Vec<u32>, Box<dyn Error>> {
        let model = Model::new(Cpu::new(CpuOptions::default())?, &target, Some(&drafter))?;
        let mut engine = Engine::new(model, mode, EngineOptions::default())?;
        let mut request = Request::new(vec![1, 2, 3], 32);
        if let Some(id) = forbidden {
            // The hook sees every row of target logits that the step looks at, before temperature and truncation.
            request.logits_hook = Some(Box::new(move |_: usize, _: &[u32], logits: &mut [f32]| {
                logits[id as usize] = f32::NEG_INFINITY;
                Ok(())
            }));
        }
        engine.add(request)?;
        let mut tokens = Vec::new();
        while !engine.is_idle() {
            for committed in engine.step()? {
                tokens.extend(committed.tokens);
            }
        }
        Ok(tokens)
    };
    let plain = run(Mode::Autoregressive, None)?;
    let forbidden = plain[0];
    let edited = run(Mode::Parallel, Some(forbidden))?;
    assert!(!edited.contains(&forbidden));
    assert_eq!(edited, run(Mode::Autoregressive, Some(forbidden))?);
    println!("token {forbidden} never occurs in {edited:?}");
    Ok(())
}
