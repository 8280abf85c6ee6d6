//! The output of a request depends on the request alone.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{DecodeError, Engine, EngineOptions, Finish, Mode, Request};
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

/// Compares outputs and records except for the group sets, which the policy chooses.
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
    let spec = Spec::default();
    let expected = each_alone(&spec);
    let default = EngineOptions::default();
    for (threads, options) in [
        (1, default.clone()),
        (2, EngineOptions { prefill_rows: 7, page_size: 1, ..default.clone() }),
        (2, EngineOptions { prefill_rows: 64, max_batch: 5, page_size: 128, ..default.clone() }),
    ] {
        assert_same(&run(&mut with_options(&spec, threads, options), requests(&spec)), &expected);
    }
    let reversed = requests(&spec).into_iter().rev().collect();
    let mut outputs = run(&mut with_options(&spec, 1, default), reversed);
    outputs.reverse();
    assert_same(&outputs, &expected);
}

/// If the cache holds only a few sequences, the other sequences wait, or are preempted and computed again.
#[test]
fn a_small_cache_changes_no_output() {
    let spec = Spec::default();
    let expected = each_alone(&spec);
    for (cache_tokens, page_size) in [(112, 16), (200, 8), (400, 32)] {
        let options = EngineOptions { cache_tokens, page_size, ..EngineOptions::default() };
        assert_same(&run(&mut with_options(&spec, 1, options), requests(&spec)), &expected);
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

/// A request that outgrows the whole cache fails alone, and keeps the tokens that it had committed.
#[test]
fn a_request_larger_than_the_cache_fails_alone() {
    let spec = Spec::default();
    let options = EngineOptions { cache_tokens: 64, page_size: 16, ..EngineOptions::default() };
    let mut engine = with_options(&spec, 1, options);
    let (small, large) = (|| Request::new(vec![1, 2, 3], 20), || Request::new(vec![4; 40], 100));
    let outputs = run(&mut engine, vec![small(), large(), small()]);
    let alone = run_alone(&spec, Mode::Sequential, small());
    assert_same(&[outputs[0].clone(), outputs[2].clone()], &[alone.clone(), alone]);
    let error = DecodeError::CacheExhausted { needed: 5, pages: 4, page_size: 16 };
    assert_eq!(outputs[1].finish, Some(Finish::Failed(error)));
    let whole = run_alone(&spec, Mode::Sequential, large());
    assert!(!outputs[1].tokens.is_empty());
    assert_eq!(outputs[1].tokens[..], whole.tokens[..outputs[1].tokens.len()]);
    let error = engine.add(Request::new(vec![0; 65], 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the KV cache is too small: the request needs 5 pages of 16 tokens, there are 4"
    );
    // All pages of the cache are free again: a request that needs every page runs.
    let outputs = run(&mut engine, vec![Request::new(vec![1; 50], 10)]);
    assert_eq!(outputs[0].finish, Some(Finish::Length));
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
