//! An example of proposals from outside the model: drafts that are looked up in the text itself, and a proposer of one's
//! own. Neither needs a drafter, and the output stays the same.
//!
//!     cargo run --release --features runner --example proposer

use std::error::Error;
use std::path::Path;

use flexdraft::decode::{Engine, EngineOptions, HookError, Mode, PromptLookup, Proposal, Proposer, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{Model, TargetWeights};

/// A proposer that proposes to repeat the last token.
struct Again;

impl Proposer for Again {
    fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
        if let Some(&token) = prefix.last() {
            proposal.push(token)?;
        }
        Ok(())
    }
}

/// Runs the example of proposals.
pub fn main() -> Result<(), Box<dyn Error>> {
    let target = TargetWeights::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny/target"))?;
    let run = |proposer: Option<Box<dyn Proposer>>| -> Result<(Vec<u32>, usize), Box<dyn Error>> {
        let model = Model::new(Cpu::new(CpuOptions::default())?, &target, None)?;
        // Without a drafter, drafts come from proposers alone.
        let options = EngineOptions { proposers: true, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Mode::Sequential, options)?;
        engine.add(Request { proposer, ..Request::new(vec![1, 2, 3], 96) })?;
        let (mut tokens, mut steps) = (Vec::new(), 0);
        while !engine.is_idle() {
            steps += 1;
            for committed in engine.step()? {
                tokens.extend(committed.tokens);
            }
        }
        Ok((tokens, steps))
    };
    let (plain, plain_steps) = run(None)?;
    for (name, proposer) in [
        ("prompt lookup", Box::new(PromptLookup::default()) as Box<dyn Proposer>),
        ("the last token again", Box::new(Again)),
    ] {
        let (tokens, steps) = run(Some(proposer))?;
        assert_eq!(tokens, plain);
        println!("{name}: {steps} steps in place of {plain_steps}, and the same {} tokens", tokens.len());
    }
    Ok(())
}
