//! Tests of the probe: what it measures, and that an engine is the same afterwards.

use flexdraft::decode::{DecodeError, Engine, EngineOptions, Flex, Mode, Probe, ProbeOptions, Request};
use flexdraft::device::cpu::Cpu;
use flexdraft::model::Model;

use crate::support::models::Spec;
use crate::support::runs::{cpu, engine, model, run};

/// Enough time for every step of a tiny model.
const LONG: ProbeOptions = ProbeOptions { seconds: 60.0, block_size: None };

fn with_batch(spec: &Spec, max_batch: usize) -> Engine<Cpu> {
    let options = EngineOptions { max_batch, ..EngineOptions::default() };
    Engine::new(model(spec, cpu(1)), Mode::Autoregressive, options).unwrap()
}

fn requests() -> Vec<Request> {
    (1..4).map(|first| Request { record: true, ..Request::new(vec![first; 20], 12) }).collect()
}

/// Returns whether the probe has a step for which `is` is true.
fn has(probe: &Probe, is: impl Fn(&flexdraft::decode::StepShape) -> bool) -> bool {
    probe.steps.iter().any(|step| is(&step.shape))
}

#[test]
fn all_parts_of_a_step_are_measured() {
    let slots = Spec::default().block_size;
    for batch in [1, 6] {
        let probe = with_batch(&Spec::default(), batch).probe(&LONG).unwrap();
        assert!(probe.steps.iter().all(|step| step.seconds > 0.0 && step.repeats > 0), "{probe:?}");
        // Decoding without drafts; drafts apart; one mask group and all of them; prompts; more cached positions.
        let found = [
            has(&probe, |s| (s.sequences, s.candidates, s.mask_rows, s.draft_rows) == (batch, batch, 0, 0)),
            has(&probe, |s| (s.candidates, s.draft_rows) == (batch, batch * slots)),
            has(&probe, |s| (s.candidates, s.draft_rows) == (batch * slots, batch * slots)),
            has(&probe, |s| (s.candidates, s.mask_rows) == (batch, batch * slots)),
            has(&probe, |s| (s.candidates, s.mask_rows) == (batch * slots, batch * slots * slots)),
            has(&probe, |s| s.sequences == 1 && s.cached > 200 && s.draft_cached == s.cached),
            has(&probe, |s| s.reads > 200),
        ];
        assert_eq!(found, [true; 7], "{probe:?}");
    }
}

#[test]
fn a_smaller_block_has_fewer_rows() {
    let probe = with_batch(&Spec::default(), 1).probe(&ProbeOptions { block_size: Some(3), ..LONG }).unwrap();
    let most = probe.steps.iter().map(|step| step.shape.mask_rows).max();
    assert_eq!(most, Some(3 * 3));
}

#[test]
fn drafters_limit_what_is_measured() {
    let orthrus = with_batch(&Spec::default().with_orthrus(), 2).probe(&LONG).unwrap();
    assert!(has(&orthrus, |shape| shape.draft_rows > 0) && !has(&orthrus, |shape| shape.mask_rows > 0));
    let (target, _) = Spec::default().weights();
    let plain = Model::new(cpu(1), &target, None).unwrap();
    let mut plain = Engine::new(plain, Mode::Autoregressive, EngineOptions::default()).unwrap();
    let plain = plain.probe(&LONG).unwrap();
    assert!(has(&plain, |shape| shape.sequences == 64));
    assert!(!has(&plain, |shape| shape.draft_rows + shape.mask_rows > 0));
}

#[test]
fn the_engine_is_the_same_afterwards() {
    let mut untouched = with_batch(&Spec::default(), 3);
    untouched.set_policy(Mode::Parallel).unwrap();
    let mut probed = with_batch(&Spec::default(), 3);
    probed.set_policy(Mode::Parallel).unwrap();
    let (before, probe) = (probed.stats(), probed.probe(&LONG).unwrap());
    assert!(probed.is_idle());
    let after = probed.stats();
    assert_eq!((&after.drafts, &after.prefixes), (&before.drafts, &before.prefixes));
    assert_eq!((after.pages_in_use, after.preempted), (0, 0));
    assert_eq!(run(&mut untouched, requests()), run(&mut probed, requests()));
    // The engine kept its policy.
    assert_eq!(untouched.stats().drafts, probed.stats().drafts);
    probed.set_policy(Flex::new(probe.cost_model())).unwrap();
    let tokens = |engine: &mut Engine<Cpu>| run(engine, requests()).into_iter().map(|output| output.tokens);
    assert!(tokens(&mut probed).eq(tokens(&mut untouched)));
}

#[test]
fn little_time_or_room_means_few_steps() {
    let least =
        engine(&Spec::default(), Mode::Autoregressive).probe(&ProbeOptions { seconds: 0.0, ..LONG }).unwrap();
    assert!(has(&least, |shape| (shape.sequences, shape.candidates) == (1, 1)), "{least:?}");
    assert!(least.steps.len() <= 3, "{least:?}");
    for (cache_tokens, context_len) in [(16, 512), (48, 512), (16_384, 2), (16_384, 9)] {
        let options = EngineOptions { cache_tokens, max_batch: 64, ..EngineOptions::default() };
        let spec = Spec { context_len, ..Spec::default() };
        let mut engine = Engine::new(model(&spec, cpu(1)), Mode::Autoregressive, options).unwrap();
        assert!(!engine.probe(&LONG).unwrap().steps.is_empty(), "{cache_tokens} {context_len}");
        assert!(engine.is_idle());
    }
}

#[test]
fn what_a_probe_refuses() {
    let mut engine = with_batch(&Spec::default(), 1);
    let wide = engine.probe(&ProbeOptions { block_size: Some(9), ..LONG });
    assert_eq!(wide, Err(DecodeError::BlockSize { requested: 9, trained: 5 }));
    assert!(engine.is_idle());
    engine.add(Request::new(vec![1], 4)).unwrap();
    assert_eq!(engine.probe(&LONG), Err(DecodeError::ProbeOfBusyEngine));
    // The request still runs.
    let mut tokens = 0;
    while !engine.is_idle() {
        tokens += engine.step().unwrap().iter().map(|report| report.tokens.len()).sum::<usize>();
    }
    assert_eq!(tokens, 4);
}
