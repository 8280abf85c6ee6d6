//! Functions that run requests on an engine to their end.

use flexdraft::decode::{
    BlockRecord, Committed, Engine, EngineOptions, Finish, Policy, Proposal, Proposer, Record, Request,
};
use flexdraft::device::Device;
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::Model;

use super::models::Spec;

/// The tokens and records of a request that has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    pub tokens: Vec<u32>,
    pub finish: Option<Finish>,
    pub records: Vec<Record>,
}

pub fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads, ..CpuOptions::default() }).unwrap()
}

pub fn model(spec: &Spec, device: Cpu) -> Model<Cpu> {
    let (target, drafter) = spec.weights();
    Model::new(device, &target, Some(&drafter)).unwrap()
}

pub fn engine(spec: &Spec, policy: impl Policy + 'static) -> Engine<Cpu> {
    Engine::new(model(spec, cpu(1)), policy, EngineOptions::default()).unwrap()
}

/// Adds requests to an engine and steps until all have ended; returns the outputs in the order of the requests.
pub fn run<D: Device>(engine: &mut Engine<D>, requests: Vec<Request>) -> Vec<Output> {
    let ids: Vec<_> = requests.into_iter().map(|request| engine.add(request).unwrap()).collect();
    let mut outputs: Vec<Output> = ids.iter().map(|_| Output::default()).collect();
    while !engine.is_idle() {
        for Committed { id, tokens, finish, record, .. } in engine.step().unwrap() {
            let Some(index) = ids.iter().position(|&other| other == id) else { continue };
            let output = &mut outputs[index];
            assert!(output.finish.is_none(), "a request is reported after its end");
            output.tokens.extend(tokens);
            output.records.extend(record);
            output.finish = finish;
        }
    }
    outputs
}

/// Runs one request on a new engine.
pub fn run_alone(spec: &Spec, policy: impl Policy + 'static, request: Request) -> Output {
    run(&mut engine(spec, policy), vec![request]).remove(0)
}

/// The verified and drafted tokens of a step, which must not depend on the mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub candidates: Vec<u32>,
    pub accepted: usize,
    pub bonus: u32,
    pub draft: Vec<u32>,
    /// The bits of the draft tokens' confidences.
    pub confidence: Vec<u32>,
}

impl Block {
    pub fn drafted(&self) -> usize {
        self.draft.len()
    }
}

/// Returns the recorded blocks of all requests, request after request.
pub fn blocks(outputs: &[Output]) -> Vec<Block> {
    let block = |candidates: &[u32], accepted, next: &BlockRecord| Block {
        candidates: candidates.to_vec(),
        accepted,
        bonus: next.bonus,
        draft: next.draft.clone(),
        confidence: next.confidence.iter().map(|c| c.to_bits()).collect(),
    };
    outputs
        .iter()
        .flat_map(|output| &output.records)
        .map(|record| match record {
            Record::Prefill(next) => block(&[], 0, next),
            Record::Step(step) => block(&step.candidates, step.accepted, &step.next),
        })
        .collect()
}

/// Returns a proposer that proposes `len` tokens: `continuation` (the output of the same request, known from before) with
/// at most one wrong token, whose place differs from step to step, so that every accepted length occurs.
pub fn corrupted_continuation(
    prompt_len: usize,
    continuation: Vec<u32>,
    vocab: usize,
    len: usize,
) -> Box<dyn Proposer> {
    Box::new(move |prefix: &[u32], proposal: &mut Proposal<'_>| {
        let known = continuation.get(prefix.len() - prompt_len..).unwrap_or(&[]);
        let hash = (prefix.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let corrupted = hash as usize % (len + 1);
        for (slot, token) in known.iter().copied().chain(std::iter::repeat(0)).take(len).enumerate() {
            proposal.push(if slot == corrupted { (token + 1) % vocab as u32 } else { token })?;
        }
        Ok(())
    })
}

/// Returns `request` with a proposer whose drafts follow the tokens of `expected` up to some place.
pub fn proposing(request: Request, expected: &Output, vocab: usize) -> Request {
    let proposer = corrupted_continuation(request.prompt.len(), expected.tokens.clone(), vocab, 5);
    Request { proposer: Some(proposer), ..request }
}
