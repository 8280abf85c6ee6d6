//! An example of a policy: it drafts in parallel while few sequences run, and sequentially when many do.
//!
//! A policy decides when to draft and how much to verify. It cannot change greedy output, which this example checks.
//!
//!     cargo run --release --features runner --example custom_policy

use std::error::Error;
use std::path::Path;

use flexdraft::decode::{BatchView, Choice, Engine, EngineOptions, Mode, Policy, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::layout::GroupSet;
use flexdraft::model::{DrafterWeights, Model, TargetWeights};

/// A policy that drafts in parallel up to a number of sequences, and sequentially above it.
struct ParallelUpTo(usize);

impl Policy for ParallelUpTo {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let parallel = batch.sequences.len() <= self.0;
        let choose = |view| {
            let choice = Choice::drafting(view, GroupSet::NONE);
            // The policy asks for a mask group for every accepted length: the next draft is ready whatever the target
            // accepts.
            if parallel { Choice { groups: GroupSet::all(choice.verify_len), ..choice } } else { choice }
        };
        batch.sequences.iter().map(choose).collect()
    }

    fn name(&self) -> &'static str {
        "parallel up to a batch size"
    }
}

/// Runs the example of a custom policy.
pub fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny");
    let target = TargetWeights::read(&folder.join("target"))?;
    let drafter = DrafterWeights::read(&folder.join("drafter"), &target.config)?;

    let run = |policy: Box<dyn Policy>| -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
        let model = Model::new(Cpu::new(CpuOptions::default())?, &target, Some(&drafter))?;
        let mut engine = Engine::new(model, policy, EngineOptions::default())?;
        let mut ids = Vec::new();
        for first in 1..=4 {
            ids.push(engine.add(Request::new(vec![first, 2, 3], 24))?);
        }
        let mut outputs = vec![Vec::new(); ids.len()];
        while !engine.is_idle() {
            for committed in engine.step()? {
                let index = ids.iter().position(|&id| id == committed.id).ok_or("an unknown request")?;
                outputs[index].extend(committed.tokens);
            }
        }
        Ok(outputs)
    };
    let own = run(Box::new(ParallelUpTo(2)))?;
    assert_eq!(own, run(Box::new(Mode::Autoregressive))?);
    println!("{} sequences, the same tokens as without drafts", own.len());
    Ok(())
}
