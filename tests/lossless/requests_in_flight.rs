//! Tests of what a caller can do to a request while it runs (end it, change its limit), of how requests share an engine
//! (priorities, deadlines), and of what an engine tells of them (ids, statistics). None of this changes a token.

use std::time::{Duration, Instant};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    DecodeError, Engine, EngineOptions, Finish, Mode, Record, Request, RequestId, StepRecord,
};
use flexdraft::device::cpu::Cpu;
use flexdraft::sampling::SamplingParams;

use crate::support::models::Spec;
use crate::support::policies::RandomGroups;
use crate::support::runs::{Output, cpu, engine, model, run, run_alone};

fn request(token: u32, max_new_tokens: usize) -> Request {
    Request {
        rule: Rule::Match,
        sampling: SamplingParams::at_temperature(if token.is_multiple_of(2) { 0.0 } else { 1.0 }),
        seed: token.into(),
        ..Request::new(vec![3, token, 5], max_new_tokens)
    }
}

fn alone(request: Request) -> Output {
    run_alone(&Spec::default(), Mode::Autoregressive, request)
}

fn with_options(options: EngineOptions) -> Engine<Cpu> {
    Engine::new(model(&Spec::default(), cpu(1)), RandomGroups(5), options).unwrap()
}

/// Runs steps until the engine is idle; returns the output of each request, and the indices of the requests in the
/// order in which they ended.
fn serve(engine: &mut Engine<Cpu>, ids: &[RequestId]) -> (Vec<Output>, Vec<usize>) {
    let (mut outputs, mut order) = (vec![Output::default(); ids.len()], Vec::new());
    while !engine.is_idle() {
        take_step(engine, ids, &mut outputs, &mut order);
    }
    assert_eq!(engine.stats().pages_in_use, 0);
    (outputs, order)
}

fn take_step(engine: &mut Engine<Cpu>, ids: &[RequestId], outputs: &mut [Output], order: &mut Vec<usize>) {
    for report in engine.step().unwrap() {
        let index = ids.iter().position(|&id| id == report.id).unwrap();
        assert_eq!(outputs[index].finish, None);
        outputs[index].tokens.extend(report.tokens);
        outputs[index].finish = report.finish;
        if outputs[index].finish.is_some() {
            order.push(index);
        }
    }
}

#[test]
fn a_request_can_be_ended_at_any_time() {
    let mut engine = with_options(EngineOptions { max_batch: 2, ..EngineOptions::default() });
    let ids: Vec<_> = (0..4).map(|token| engine.add(request(token, 30)).unwrap()).collect();
    let (mut outputs, mut order) = (vec![Output::default(); 4], Vec::new());
    for _ in 0..4 {
        take_step(&mut engine, &ids, &mut outputs, &mut order);
    }
    // The caller ends one request that runs and one that waits.
    assert!(engine.finish(ids[0]) && engine.finish(ids[3]));
    assert!(!engine.finish(ids[0]), "it has ended");
    assert!(!engine.is_idle(), "ends were not reported");
    while !engine.is_idle() {
        take_step(&mut engine, &ids, &mut outputs, &mut order);
    }
    assert!(!engine.finish(ids[1]) && !engine.cancel(ids[1]));
    for (index, output) in outputs.iter().enumerate() {
        let expected = alone(request(index as u32, 30));
        match index {
            0 => assert!(output.tokens.len() > 1 && expected.tokens.starts_with(&output.tokens)),
            3 => assert!(output.tokens.is_empty()),
            _ => assert_eq!(*output, expected),
        }
    }
    assert_eq!([&outputs[0].finish, &outputs[3].finish], [&Some(Finish::Ended); 2]);
    // A request that has ended can still be cancelled before the step that reports its end.
    let id = engine.add(request(1, 5)).unwrap();
    assert!(engine.finish(id) && engine.cancel(id) && engine.is_idle());
}

#[test]
fn a_limit_can_change_while_the_request_runs() {
    let options = EngineOptions { cache_tokens: 64, page_size: 16, ..EngineOptions::default() };
    for (limit, expected) in [(40, 40), (21, 21), (1, 0)] {
        let mut engine = with_options(options.clone());
        let ids = [engine.add(request(4, 20)).unwrap(), engine.add(request(7, 20)).unwrap()];
        let (mut outputs, mut order) = (vec![Output::default(); 2], Vec::new());
        for _ in 0..4 {
            take_step(&mut engine, &ids, &mut outputs, &mut order);
        }
        let before = outputs[0].tokens.len();
        assert!((2..20).contains(&before));
        let too_much = engine.set_max_new_tokens(ids[0], 63);
        assert_eq!(too_much, Err(DecodeError::CacheExhausted { needed: 5, pages: 4, page_size: 16 }));
        assert_eq!(engine.set_max_new_tokens(ids[0], limit), Ok(true));
        while !engine.is_idle() {
            take_step(&mut engine, &ids, &mut outputs, &mut order);
        }
        assert_eq!(engine.set_max_new_tokens(ids[0], limit), Ok(false));
        let expected = if expected == 0 { before } else { expected };
        assert_eq!(outputs[0].tokens, alone(request(4, 40)).tokens[..expected]);
        assert_eq!((&outputs[0].finish, &outputs[1]), (&Some(Finish::Length), &alone(request(7, 20))));
    }
}

#[test]
fn priorities_decide_who_runs_first_and_who_makes_room() {
    let expected: Vec<_> = (0..4).map(|token| alone(request(token, 20))).collect();
    let priorities = [0, -1, 5, 0];
    let add = |engine: &mut Engine<Cpu>| -> Vec<RequestId> {
        (0..4)
            .map(|i| {
                let request = Request { priority: priorities[i as usize], ..request(i, 20) };
                engine.add(request).unwrap()
            })
            .collect()
    };
    let mut engine = with_options(EngineOptions { max_batch: 1, ..EngineOptions::default() });
    let ids = add(&mut engine);
    let (outputs, order) = serve(&mut engine, &ids);
    assert_eq!((outputs, order), (expected.clone(), vec![2, 0, 3, 1]));

    // The cache has room for two outputs only, so requests are suspended.
    let options = EngineOptions { cache_tokens: 48, page_size: 4, ..EngineOptions::default() };
    let mut engine = with_options(options);
    let mut ids = Vec::new();
    let (mut outputs, mut order) = (vec![Output::default(); 4], Vec::new());
    for (token, priority) in [(0, 0), (1, 0), (3, 0), (2, 7)] {
        ids.push(engine.add(Request { priority, ..request(token, 20) }).unwrap());
    }
    while !engine.is_idle() {
        take_step(&mut engine, &ids, &mut outputs, &mut order);
    }
    assert!(engine.stats().preempted > 0 && engine.stats().pages_in_use == 0);
    assert_eq!(order.len(), 4);
    for (output, token) in outputs.iter().zip([0, 1, 3, 2]) {
        assert_eq!(*output, expected[token]);
    }
}

#[test]
fn deadlines_end_requests_that_are_late() {
    let mut engine = with_options(EngineOptions { max_batch: 2, ..EngineOptions::default() });
    let (past, future) = (Instant::now(), Instant::now() + Duration::from_secs(100_000));
    let deadlines = [Some(past), Some(future), None, Some(past)];
    let ids: Vec<_> = (0..)
        .zip(deadlines)
        .map(|(token, deadline)| engine.add(Request { deadline, ..request(token, 20) }).unwrap())
        .collect();
    let (outputs, order) = serve(&mut engine, &ids);
    assert_eq!(order[..2], [0, 3]);
    for (index, output) in outputs.into_iter().enumerate() {
        match deadlines[index] {
            Some(deadline) if deadline == past => {
                assert_eq!((output.tokens.len(), output.finish), (0, Some(Finish::Deadline)));
            }
            _ => assert_eq!(output, alone(request(index as u32, 20))),
        }
    }
}

#[test]
fn ids_tell_engines_apart() {
    let spec = Spec::default();
    let [mut one, mut other] = [(); 2].map(|()| engine(&spec, Mode::Parallel));
    let ids = [one.add(request(1, 9)).unwrap(), other.add(request(1, 9)).unwrap()];
    assert_ne!(ids[0], ids[1]);
    assert!(!one.cancel(ids[1]) && !other.finish(ids[0]));
    assert_eq!(one.set_max_new_tokens(ids[1], 3), Ok(false));
    assert_ne!(ids[0].to_string(), ids[1].to_string());
    assert!(ids[0].to_string().ends_with(".0"), "{}", ids[0]);
}

#[test]
fn statistics_are_those_of_the_records() {
    let spec = Spec::default();
    let options = EngineOptions { max_batch: 3, ..EngineOptions::default() };
    let mut engine = with_options(options);
    assert_eq!(engine.stats().drafts.acceptance_length(), None);
    let requests = || (0..5).map(|token| Request { record: true, ..request(token, 30) }).collect::<Vec<_>>();
    for request in requests() {
        engine.add(request).unwrap();
    }
    engine.step().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.preempted), (3, 2, 0));
    assert!(stats.pages_in_use >= 3 && stats.pages_in_use < stats.pages);

    let mut engine = with_options(EngineOptions::default());
    let outputs = run(&mut engine, requests());
    let steps: Vec<StepRecord> = outputs
        .into_iter()
        .flat_map(|output| output.records)
        .filter_map(|record| match record {
            Record::Step(step) => Some(step),
            Record::Prefill(_) => None,
        })
        .collect();
    let drafts = engine.stats().drafts;
    assert_eq!(drafts.verifications(), steps.len() as u64);
    let tokens: usize = steps.iter().map(|step| step.accepted + 1).sum();
    assert_eq!(drafts.acceptance_length(), Some(tokens as f64 / steps.len() as f64));
    let expected: Vec<f64> = (1..spec.block_size)
        .map(|j| {
            let verified = steps.iter().filter(|step| step.verify_len >= j);
            let accepted = verified.clone().filter(|step| step.accepted >= j).count();
            accepted as f64 / verified.count() as f64
        })
        .filter(|fraction| fraction.is_finite())
        .collect();
    assert_eq!(drafts.acceptance(), expected);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.pages_in_use), (0, 0, 0));
}
