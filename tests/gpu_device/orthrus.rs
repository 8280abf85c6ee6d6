//! Tests of an Orthrus drafter on the GPU device: recorded runs of the official implementation, and what a verification
//! refuses.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, Mode, Record, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{
    Device, DeviceError, DraftTables, LinearPart, SlotRows, StepTables, Verification, VerifyRows,
};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::model::{Model, ModelWeights};
use flexdraft::runtime::SimtOptions;
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{DType, Tensor};

use crate::decode_loop::gpu;
use crate::margins::{Margins, NEAR_TIE};
use crate::support::models::Spec;
use crate::support::official_orthrus::{Case, cases, fixture};
use crate::support::runs::run;

fn engine<D: Device>(device: D, mode: Mode) -> Engine<D> {
    let weights = ModelWeights::read(&fixture()).unwrap();
    let model = Model::new(device, &weights.target, weights.drafter.as_ref()).unwrap();
    Engine::new(model, mode, EngineOptions { cache_tokens: 4096, ..EngineOptions::default() }).unwrap()
}

/// The official implementation computes in f32 and the GPU device in bf16, so tokens may differ after a near-tie, and
/// drafts anywhere. A run is compared up to its first different token.
#[test]
fn the_official_runs_on_the_emulator() {
    let cases = cases();
    let margins: Vec<Margins> = cases.iter().map(|_| Margins::default()).collect();
    let cpu = Cpu::new(CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap();
    let watched = |(case, margins): (&Case, &Margins)| Request {
        logits_hook: Some(Box::new(margins.clone())),
        ..case.request()
    };
    let exact =
        run(&mut engine(cpu, Mode::Autoregressive), cases.iter().zip(&margins).map(watched).collect());
    let requests = cases.iter().map(Case::request).collect();
    let outputs = run(&mut engine(gpu(SimtOptions::default()), Mode::Sequential), requests);
    let [mut same_tokens, mut tokens, mut same_drafts, mut drafts, mut same_steps, mut steps] = [0; 6];
    for (index, ((case, output), margins)) in cases.iter().zip(&outputs).zip(&margins).enumerate() {
        assert_eq!(exact[index].tokens, case.output, "case {index}");
        let parting = case.output.iter().zip(&output.tokens).position(|(a, b)| a != b);
        if let Some(token) = parting {
            let margin = margins.of_token(token);
            assert!(
                margin < NEAR_TIE,
                "case {index}: token {token} differs at {margin} of the logits' range"
            );
        }
        let same = parting.unwrap_or(case.output.len());
        tokens += case.output.len();
        same_tokens += same;
        let Some(Record::Prefill(prefill)) = output.records.first() else { panic!("case {index}") };
        let mut block = prefill;
        for (official, record) in case.whole_steps().zip(&output.records[1..]) {
            let Record::Step(step) = record else { panic!("case {index}") };
            let end = official.start + official.accepted + 1 - case.prompt.len();
            if end >= same || step.position != official.start {
                break;
            }
            drafts += official.draft.len();
            for (slot, (found, expected)) in block.draft.iter().zip(&official.draft).enumerate() {
                same_drafts += usize::from(found == expected);
                let [found, expected] = [block.confidence[slot], official.confidence[slot]];
                assert!((found - expected).abs() < 0.1, "case {index}: {found}, official {expected}");
            }
            steps += 1;
            same_steps +=
                usize::from((step.accepted, step.next.bonus) == (official.accepted, official.bonus));
            block = &step.next;
        }
    }
    let found = format!(
        "{same_tokens} of {tokens} tokens, {same_drafts} of {drafts} drafts, {same_steps} of {steps} steps are the same"
    );
    assert!(10 * same_tokens >= 8 * tokens, "{found}");
    assert!(steps >= 60 && 10 * same_drafts >= 9 * drafts && 10 * same_steps >= 9 * steps, "{found}");
}

/// Calls `embed_bonus` with verdicts that a verification has and has not.
fn embed_bonus<D: Device>(device: D) {
    let spec =
        Spec { head_dim: 64, hidden: 32, dtype: DType::Bf16, layers: 2, ..Spec::default() }.with_orthrus();
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let device = model.device();
    let table = Tensor::from_f32(&[spec.vocab, spec.hidden], vec![0.5; spec.vocab * spec.hidden]).unwrap();
    let table = device.new_linear(&[LinearPart::new(&table, None)]).unwrap();
    let (pages, tokens) = ([0], [3]);
    let rows =
        SequenceRows { pages: &pages, start: 0, candidates: 1, groups: Vec::new(), slots: spec.block_size };
    let pass = Pass { sequences: vec![rows] };
    let (mut cache, mut work) = (model.new_cache(1, 16).unwrap(), model.new_workspace());
    let (sampling, mut results) = (SamplingParams::GREEDY, device.new_results());
    let verify = [VerifyRows {
        first_row: 0,
        draft: &[],
        draft_logits: None,
        edits: None,
        sampling: &sampling,
        rule: Rule::default(),
        seed: 0,
        start: 0,
    }];
    let drafts = DraftTables { drafts: &[], rows: SlotRows::Logits };
    let tables =
        StepTables { logits_rows: &[0], sequences: &verify, drafts, ..StepTables::new(&pass, &tokens) };
    let tables = model.forward(tables, &mut cache, &mut work).unwrap();
    let mut logits = model.new_logits();
    model.logits(&[0], &mut work, &mut logits).unwrap();
    let mut verification = device.verify(tables, &mut logits, &mut results).unwrap();
    let mut out = device.new_buffer(spec.hidden);
    let error = verification.embed_bonus(&table, &[0, 1], &mut out).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::OutOfRange { operation: "embed_bonus", what: "verdict", index: 1, limit: 1 }
        ),
        "{error}"
    );
    verification.embed_bonus(&table, &[0, 0], &mut out).unwrap();
    verification.embed_bonus(&table, &[], &mut out).unwrap();
}

#[test]
fn a_missing_verdict_has_no_bonus_token() {
    embed_bonus(gpu(SimtOptions::default()));
    embed_bonus(Cpu::new(CpuOptions::default()).unwrap());
}
