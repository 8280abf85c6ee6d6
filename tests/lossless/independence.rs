//! Tests that the output of a request depends on the request alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    BatchView, Choice, Confidence, DecodeError, Engine, EngineOptions, Finish, Mode, Policy, Proposal,
    Request, StepView,
};
use flexdraft::device::cpu::Cpu;
use flexdraft::sampling::SamplingParams;

use crate::support::models::Spec;
use crate::support::policies::RandomGroups;
use crate::support::runs::{Output, cpu, engine, model, run, run_alone};

/// Returns sixty-four requests that differ in every parameter.
fn requests(spec: &Spec) -> Vec<Request> {
    let rules = [Rule::Rejection, Rule::Block, Rule::Match];
    let request = |i: usize| Request {
        seed: i as u64,
        rule: rules[i % 3],
        sampling: SamplingParams {
            temperature: [0.0, 0.7, 1.0, 1.3][i % 4],
            top_k: [0, 5][i / 2 % 2],
            top_p: [1.0, 0.9][i / 4 % 2],
            min_p: [0.0, 0.05][i / 8 % 2],
        },
        block_size: (!i.is_multiple_of(5)).then_some(i % 5),
        stop_ids: if i.is_multiple_of(7) { vec![3] } else { vec![] },
        record: true,
        ..Request::new((0..1 + i * 5 % 61).map(|p| (p * 11 + i) as u32 % spec.vocab as u32).collect(), i % 33)
    };
    (0..64).map(request).collect()
}

fn with_options(spec: &Spec, threads: usize, options: EngineOptions) -> Engine<Cpu> {
    Engine::new(model(spec, cpu(threads)), RandomGroups(99), options).unwrap()
}

/// Checks that outputs and records are the same, except for the group sets, which the policy chooses.
fn assert_same(outputs: &[Output], expected: &[Output]) {
    use flexdraft::decode::Record;
    assert_eq!(outputs.len(), expected.len());
    for (index, (output, expected)) in outputs.iter().zip(expected).enumerate() {
        assert_eq!(output.tokens, expected.tokens, "request {index}");
        assert_eq!(output.finish, expected.finish, "request {index}");
        let blocks = |output: &Output| -> Vec<_> {
            let block = |record: &Record| match record {
                Record::Prefill(next) => (0, Vec::new(), 0, next.clone()),
                Record::Step(s) => (s.position, s.candidates.clone(), s.accepted, s.next.clone()),
            };
            output.records.iter().map(block).collect()
        };
        assert_eq!(blocks(output), blocks(expected), "request {index}");
    }
}

fn each_alone(spec: &Spec) -> Vec<Output> {
    requests(spec).into_iter().map(|request| run_alone(spec, Mode::Sequential, request)).collect()
}

#[test]
fn alone_or_in_a_batch_of_64_whatever_the_threads_pages_and_chunks() {
    let default = EngineOptions::default();
    for spec in [Spec::default(), Spec::default().with_orthrus()] {
        let expected = each_alone(&spec);
        for (threads, options) in [
            (1, default.clone()),
            (2, EngineOptions { prefill_rows: 7, page_size: 1, ..default.clone() }),
            (2, EngineOptions { prefill_rows: 64, max_batch: 5, page_size: 128, ..default.clone() }),
        ] {
            assert_same(&run(&mut with_options(&spec, threads, options), requests(&spec)), &expected);
        }
        let reversed = requests(&spec).into_iter().rev().collect();
        let mut outputs = run(&mut with_options(&spec, 1, default.clone()), reversed);
        outputs.reverse();
        assert_same(&outputs, &expected);
    }
}

/// If the cache holds only a few sequences, the other sequences wait or are preempted and computed again, with the same
/// output. Requests whose tokens do not depend on the verify length verify shorter drafts then.
#[test]
fn a_small_cache_changes_no_output() {
    let spec = Spec::default();
    let expected = each_alone(&spec);
    for (cache_tokens, page_size) in [(112, 16), (200, 8), (400, 32)] {
        let options = EngineOptions { cache_tokens, page_size, ..EngineOptions::default() };
        let outputs = run(&mut with_options(&spec, 1, options), requests(&spec));
        for (index, request) in requests(&spec).iter().enumerate() {
            assert_eq!(outputs[index].tokens, expected[index].tokens, "request {index}");
            assert_eq!(outputs[index].finish, expected[index].finish, "request {index}");
            if !request.sampling.is_greedy() && request.rule != Rule::Match {
                assert_same(&outputs[index..=index], &expected[index..=index]);
            }
        }
    }
}

/// Returns a request whose prompt and output fill 59 of 60 positions: the last token's keys and values are not
/// computed.
fn filling(rule: Rule, temperature: f32, record: bool) -> Request {
    let sampling = SamplingParams { temperature, ..SamplingParams::GREEDY };
    Request { rule, sampling, record, seed: 5, ..Request::new((0..20).collect(), 40) }
}

/// Drafts reach beyond the last token of an output, and must not make a request fail that plain decoding completes.
#[test]
fn a_cache_that_plain_decoding_fills_is_large_enough_for_every_mode() {
    let spec = Spec::default();
    for page_size in [1, 4, 20] {
        let cached = |policy: Box<dyn Policy>, request| {
            let options = EngineOptions { cache_tokens: 60, page_size, ..EngineOptions::default() };
            let mut engine = Engine::new(model(&spec, cpu(1)), policy, options).unwrap();
            run(&mut engine, vec![request]).remove(0)
        };
        for rule in [Rule::Rejection, Rule::Block, Rule::Match] {
            for (temperature, record) in [(0.0, false), (0.0, true), (1.0, false), (1.0, true)] {
                let plain = cached(Box::new(Mode::Autoregressive), filling(rule, temperature, record));
                assert_eq!((plain.tokens.len(), &plain.finish), (40, &Some(Finish::Length)));
                let policies: [Box<dyn Policy>; 3] =
                    [Box::new(Mode::Parallel), Box::new(Mode::Sequential), Box::new(RandomGroups(3))];
                for policy in policies {
                    let output = cached(policy, filling(rule, temperature, record));
                    assert_eq!((output.tokens.len(), &output.finish), (40, &Some(Finish::Length)));
                    if temperature == 0.0 || rule == Rule::Match {
                        assert_eq!(output.tokens, plain.tokens);
                    }
                }
            }
        }
    }
}

/// A policy that drafts in parallel and counts the tokens of all steps, before they are cut at the end of the output.
struct Counting(Arc<AtomicUsize>);

impl Policy for Counting {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        Mode::Parallel.choose(batch)
    }

    fn observe(&mut self, step: &StepView<'_>) {
        let committed: usize = step.sequences.iter().map(|sequence| sequence.committed).sum();
        self.0.fetch_add(committed, Ordering::Relaxed);
    }

    fn name(&self) -> &'static str {
        "counting"
    }
}

/// All drafts are right, so steps would commit whole blocks of 5, but the output of 12 tokens ends within a block. Only
/// a record needs whole blocks.
#[test]
fn drafts_beyond_the_output_are_not_verified() {
    let spec = Spec::default();
    let prompt = vec![1, 2, 3, 4];
    let known = run_alone(&spec, Mode::Autoregressive, Request::new(prompt.clone(), 40)).tokens;
    for (record, expected) in [(false, 12), (true, 16)] {
        let known = known.clone();
        let proposer = move |prefix: &[u32], proposal: &mut Proposal<'_>| {
            for &token in &known[prefix.len() - 4..][..4] {
                proposal.push(token)?;
            }
            Ok(())
        };
        let request = Request {
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            proposer: Some(Box::new(proposer)),
            record,
            ..Request::new(prompt.clone(), 12)
        };
        let committed = Arc::new(AtomicUsize::new(0));
        let output = run_alone(&spec, Counting(committed.clone()), request);
        assert_eq!(output.tokens.len(), 12);
        assert_eq!(committed.load(Ordering::Relaxed), expected);
    }
}

#[test]
fn a_record_changes_no_output() {
    let spec = Spec::default();
    let without = requests(&spec).into_iter().map(|request| Request { record: false, ..request }).collect();
    let options = EngineOptions { cache_tokens: 200, page_size: 8, ..EngineOptions::default() };
    let serve = |requests| run(&mut with_options(&spec, 1, options.clone()), requests);
    for (index, (without, with)) in serve(without).iter().zip(serve(requests(&spec))).enumerate() {
        assert_eq!((&without.tokens, &without.finish), (&with.tokens, &with.finish), "request {index}");
    }
}

#[test]
fn cancelled_neighbours_leave_no_trace() {
    let spec = Spec::default();
    let expected = each_alone(&spec);
    let mut engine = with_options(&spec, 1, EngineOptions { max_batch: 40, ..EngineOptions::default() });
    let ids: Vec<_> = requests(&spec).into_iter().map(|request| engine.add(request).unwrap()).collect();
    let mut outputs: Vec<Output> = ids.iter().map(|_| Output::default()).collect();
    let mut step = 0;
    while !engine.is_idle() {
        for committed in engine.step().unwrap() {
            let index = ids.iter().position(|&id| id == committed.id).unwrap();
            outputs[index].tokens.extend(committed.tokens);
            outputs[index].records.extend(committed.record);
            outputs[index].finish = committed.finish;
        }
        if step % 2 == 0 && step < 32 {
            let index = 1 + 2 * step % 64;
            if outputs[index].finish.is_none() {
                assert!(engine.cancel(ids[index]));
            }
            assert!(!engine.cancel(ids[index]));
        }
        step += 1;
    }
    for index in (0..64).step_by(2) {
        assert_same(&outputs[index..=index], &expected[index..=index]);
    }
    let cut = outputs.iter().zip(&expected).filter(|(output, expected)| output.tokens != expected.tokens);
    assert!(cut.count() > 3, "no request was cancelled on its way");
}

/// A request that exceeds the whole cache is refused before it takes pages from other requests.
#[test]
fn a_request_larger_than_the_cache_is_refused() {
    let spec = Spec::default();
    let options = EngineOptions { cache_tokens: 64, page_size: 16, ..EngineOptions::default() };
    let mut engine = with_options(&spec, 1, options);
    let exhausted = |needed| DecodeError::CacheExhausted { needed, pages: 4, page_size: 16 };
    for (prompt, max_new_tokens, needed) in [(40, 26, 5), (40, 100, 9), (65, 1, 5)] {
        let request = || Request::new(vec![4; prompt], max_new_tokens);
        assert_eq!(engine.add(request()), Err(exhausted(needed)));
    }
    assert_eq!(
        exhausted(5).to_string(),
        "the KV cache is too small: the request needs 5 pages of 16 tokens, there are 4"
    );
    assert!(engine.is_idle());
    // Requests that need every page of the cache run: the last token of an output is never in the cache.
    for (prompt, max_new_tokens) in [(40, 25), (64, 1), (50, 10)] {
        let outputs = run(&mut engine, vec![Request::new(vec![1; prompt], max_new_tokens)]);
        assert_eq!((outputs[0].tokens.len(), &outputs[0].finish), (max_new_tokens, &Some(Finish::Length)));
    }
}

#[test]
fn an_engine_moves_between_threads_and_may_be_dropped_at_any_time() {
    let spec = Spec::default();
    let mut engine = engine(&spec, Mode::Parallel);
    for request in requests(&spec) {
        engine.add(request).unwrap();
    }
    let engine = std::thread::spawn(move || {
        engine.step().unwrap();
        engine.step().unwrap();
        engine
    })
    .join()
    .unwrap();
    assert!(!engine.is_idle());
    drop(engine);
}
