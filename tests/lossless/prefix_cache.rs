//! Tests of the prefix cache: requests that begin with the same tokens read these tokens once, and no output depends on
//! that.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, HookError, Mode, Policy, PrefixCounts, Proposal, Request};
use flexdraft::device::cpu::Cpu;
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;

use crate::support::models::{Shapes, Spec, either_drafter, spec};
use crate::support::noise::SplitMix;
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::runs::{Output, blocks, cpu, model, run};

const PAGE_SIZE: usize = 16;

fn options() -> EngineOptions {
    EngineOptions { cache_tokens: 4096, page_size: PAGE_SIZE, ..EngineOptions::default() }
}

fn with_options(spec: &Spec, policy: impl Policy + 'static, options: EngineOptions) -> Engine<Cpu> {
    Engine::new(model(spec, cpu(1)), policy, options).unwrap()
}

/// Returns `len` random tokens, other tokens for each seed.
fn tokens(seed: u64, len: usize, vocab: usize) -> Vec<u32> {
    let mut random = SplitMix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (0..len).map(|_| (random.bits() % vocab as u64) as u32).collect()
}

/// Runs requests and returns their outputs, with the change of the engine's counts.
fn counted(engine: &mut Engine<Cpu>, requests: Vec<Request>) -> (Vec<Output>, PrefixCounts) {
    let before = engine.stats().prefixes;
    let outputs = run(engine, requests);
    let stats = engine.stats();
    assert_eq!((stats.pages_in_use, stats.running, stats.waiting), (0, 0, 0));
    let after = stats.prefixes;
    let counts = PrefixCounts {
        tokens_read: after.tokens_read - before.tokens_read,
        tokens_reused: after.tokens_reused - before.tokens_reused,
        pages_evicted: after.pages_evicted - before.pages_evicted,
    };
    (outputs, counts)
}

fn counts(tokens_read: u64, tokens_reused: u64) -> PrefixCounts {
    PrefixCounts { tokens_read, tokens_reused, pages_evicted: 0 }
}

/// Returns a recorded request with one of the rules and temperatures.
fn request(prompt: Vec<u32>, kind: usize) -> Request {
    let (rule, temperature) =
        [(Rule::Match, 0.0), (Rule::Match, 1.0), (Rule::Rejection, 0.9), (Rule::Block, 1.1)][kind % 4];
    Request {
        rule,
        sampling: SamplingParams::at_temperature(temperature),
        seed: kind as u64,
        record: true,
        ..Request::new(prompt, 12)
    }
}

/// Returns the modes of a drafter, plain decoding, and mask groups at random.
fn policies(spec: &Spec) -> Vec<Box<dyn Policy>> {
    let modes = spec.drafting_modes().into_iter().chain([Mode::Autoregressive]);
    let boxed = modes.map(|mode| Box::new(mode) as Box<dyn Policy>);
    boxed.chain([Box::new(RandomGroups(3)) as _]).collect()
}

/// The second request with a prompt of 1,000 tokens reads 8 of them, in one step of at most 16 rows, and then has the
/// tokens, drafts, confidences and accepted lengths of the first.
#[test]
fn a_long_prompt_is_read_once() {
    for spec in [Spec::default(), Spec::default().with_orthrus()] {
        let spec = Spec { context_len: 2048, ..spec };
        let prompt = tokens(1, 1000, spec.vocab);
        for (policy, same_policy) in policies(&spec).into_iter().zip(policies(&spec)) {
            let options = EngineOptions { prefill_rows: 16, ..options() };
            let without = EngineOptions { prefix_cache: false, ..options.clone() };
            let mut without = with_options(&spec, same_policy, without);
            let mut engine = with_options(&spec, policy, options);
            let mut read = 1000;
            for kind in 0..4 {
                let request = || request(prompt.clone(), kind);
                let (expected, counted_without) = counted(&mut without, vec![request()]);
                assert_eq!((expected[0].tokens.len(), counted_without), (12, counts(1000, 0)));
                for _ in 0..2 {
                    let (found, counted) = counted(&mut engine, vec![request()]);
                    assert_eq!(counted, counts(read, 1000 - read));
                    assert_eq!(
                        (&found[0].tokens, &found[0].finish),
                        (&expected[0].tokens, &expected[0].finish)
                    );
                    assert_eq!(blocks(&found), blocks(&expected));
                    read = 8;
                }
            }
            let prompt = [&prompt[..800], &prompt[..101]].concat();
            assert_eq!(steps_until_the_first_token(&mut engine, Request::new(prompt.clone(), 3)), 7);
            assert_eq!(steps_until_the_first_token(&mut engine, Request::new(prompt, 3)), 1);
        }
    }
}

fn steps_until_the_first_token(engine: &mut Engine<Cpu>, request: Request) -> usize {
    let id = engine.add(request).unwrap();
    let mut steps = 1;
    while engine.step().unwrap().iter().all(|report| report.tokens.is_empty()) {
        steps += 1;
    }
    engine.cancel(id);
    steps
}

#[test]
fn a_token_that_differs_ends_the_shared_prefix() {
    let spec = Spec::default();
    let mut engine = with_options(&spec, Mode::Parallel, options());
    let prompt = tokens(2, 100, spec.vocab);
    assert_eq!(counted(&mut engine, vec![request(prompt.clone(), 0)]).1, counts(100, 0));
    for (changed, pages) in
        [(3 * PAGE_SIZE + 5, 3), (3 * PAGE_SIZE, 3), (3 * PAGE_SIZE - 1, 2), (0, 0), (99, 6)]
    {
        let mut other = prompt.clone();
        other[changed] = (other[changed] + 1) % spec.vocab as u32;
        let expected =
            counted(&mut with_options(&spec, Mode::Sequential, options()), vec![request(other.clone(), 0)]);
        let (found, counted) = counted(&mut engine, vec![request(other, 0)]);
        let reused = (pages * PAGE_SIZE) as u64;
        assert_eq!(counted, counts(100 - reused, reused), "token {changed}");
        assert_eq!(blocks(&found), blocks(&expected.0));
    }
    // A prompt that ends with a page, or within one: its last token is always read, because the first token of the
    // output is drawn from its row.
    for (len, read) in [(96, 16), (97, 1), (17, 1), (16, 16), (1, 1)] {
        let counted = counted(&mut engine, vec![request(prompt[..len].to_vec(), 0)]).1;
        assert_eq!(counted, counts(read, len as u64 - read));
    }
}

/// Samples of one prompt that arrive together wait until the first of them has read the prompt.
#[test]
fn samples_of_one_prompt_read_it_once() {
    let spec = Spec::default();
    for kind in 0..4 {
        for prefill_rows in [7, 512] {
            let prompt = tokens(3, 70, spec.vocab);
            let requests = || {
                let sample = |seed| Request { seed, ..request(prompt.clone(), kind) };
                let mut requests: Vec<_> = (0..5).map(sample).collect();
                // This request has only two pages in common with the others.
                requests.insert(2, request([&prompt[..40], &[5; 40]].concat(), kind));
                requests
            };
            let options = EngineOptions { prefill_rows, ..options() };
            let without = EngineOptions { prefix_cache: false, ..options.clone() };
            let expected = run(&mut with_options(&spec, RandomGroups(1), without), requests());
            let mut engine = with_options(&spec, RandomGroups(2), options);
            let (found, counted) = counted(&mut engine, requests());
            assert_eq!(counted, counts(70 + 4 * 6 + 48, 4 * 64 + 32), "{prefill_rows} rows a step");
            assert_eq!(blocks(&found), blocks(&expected));
        }
    }
}

/// The next turn of a conversation begins with the prompt and the output of the turn before, whose pages hold accepted
/// drafts. Rejected drafts were written to the same pages, and must not be found there.
#[test]
fn a_conversation_is_not_read_again() {
    let spec = Spec { context_len: 2048, ..Spec::default() };
    for (kind, mode) in
        [(0, Mode::Parallel), (1, Mode::Sequential), (2, Mode::Parallel), (3, Mode::Sequential)]
    {
        let mut engine = with_options(&spec, mode, options());
        let without = EngineOptions { prefix_cache: false, ..options() };
        let mut without = with_options(&spec, RandomGroups(4), without);
        let mut conversation = Vec::new();
        for turn in 0..6 {
            let known = conversation.len();
            conversation.extend(tokens(turn, 9, spec.vocab));
            let request = || Request { max_new_tokens: 30, ..request(conversation.clone(), kind) };
            let expected = run(&mut without, vec![request()]);
            let (found, counted) = counted(&mut engine, vec![request()]);
            assert_eq!(blocks(&found), blocks(&expected));
            // The newest token of a turn is never in the cache, and its page is not full.
            let reused = known.saturating_sub(1) / PAGE_SIZE * PAGE_SIZE;
            assert_eq!(counted, counts((conversation.len() - reused) as u64, reused as u64));
            conversation.extend(&found[0].tokens);
        }
    }
}

#[test]
fn hooks_and_log_probabilities_see_the_same_rows() {
    let spec = Spec::default();
    let prompt = tokens(5, 64, spec.vocab);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let request = || {
        let seen = seen.clone();
        let hook = move |position: usize, prefix: &[u32], logits: &mut [f32]| -> Result<(), HookError> {
            seen.lock().unwrap().push((position, prefix.to_vec(), logits.to_vec()));
            logits[4] = f32::NEG_INFINITY;
            Ok(())
        };
        Request { logits_hook: Some(Box::new(hook)), logprobs: Some(2), ..request(prompt.clone(), 1) }
    };
    let mut engine = with_options(&spec, Mode::Parallel, options());
    let mut all = Vec::new();
    for reused in [0, 48] {
        let before = engine.stats().prefixes.tokens_reused;
        engine.add(request()).unwrap();
        let mut found = Vec::new();
        while !engine.is_idle() {
            for report in engine.step().unwrap() {
                assert_eq!(report.tokens.len(), report.logprobs.len());
                found.extend(report.tokens.into_iter().zip(report.logprobs));
            }
        }
        assert_eq!(engine.stats().prefixes.tokens_reused - before, reused);
        all.push((found, std::mem::take(&mut *seen.lock().unwrap())));
    }
    assert!(!all[0].1.is_empty());
    assert_eq!(all[0], all[1]);
}

/// In a cache of 8 pages, a prompt of 3 pages stays as long as the prompts after it need no more than the other pages.
#[test]
fn the_prefix_that_was_used_last_stays_longest() {
    let spec = Spec::default();
    let prompts: Vec<_> = (0..4).map(|seed| tokens(10 + seed, 3 * PAGE_SIZE, spec.vocab)).collect();
    let options = EngineOptions { cache_tokens: 8 * PAGE_SIZE, ..options() };
    let mut engine = with_options(&spec, Mode::Autoregressive, options);
    let mut reused = |prompt: usize| {
        let request = Request::new(prompts[prompt].clone(), 3);
        counted(&mut engine, vec![request]).1.tokens_reused as usize / PAGE_SIZE
    };
    // Each request needs 4 pages, one of them for its output. Two prompts fit, and the last page of a prompt is read
    // again.
    assert_eq!([0, 1, 0, 1].map(&mut reused), [0, 0, 2, 2]);
    // The third prompt takes the last pages of prompt 0, and leaves its first page.
    assert_eq!([2, 1, 0].map(&mut reused), [0, 2, 1]);
    let stats = engine.stats();
    assert!(stats.prefixes.pages_evicted > 0 && stats.pages_cached <= 8);
}

/// How a request ends before its output is complete.
#[derive(Clone, Copy, Debug)]
enum EarlyEnd {
    Cancelled,
    Ended,
    /// A hook fails at the position of the output's token with this index.
    Failed(usize),
}

/// The tokens of a greedy request with a prompt of 40 tokens, and of its output.
fn known_text(spec: &Spec) -> (Vec<u32>, Vec<u32>) {
    let prompt = tokens(6, 40, spec.vocab);
    let plain = EngineOptions { prefix_cache: false, ..options() };
    let request = Request::new(prompt.clone(), 80);
    let output = run(&mut with_options(spec, Mode::Autoregressive, plain), vec![request]).remove(0);
    (prompt, output.tokens)
}

/// Returns a greedy request whose proposer knows the next 12 tokens of the output.
fn foretold(prompt: &[u32], output: &[u32]) -> Request {
    let (prompt_len, max_new_tokens) = (prompt.len(), output.len());
    let output = output.to_vec();
    let proposer = move |prefix: &[u32], proposal: &mut Proposal<'_>| -> Result<(), HookError> {
        output.iter().skip(prefix.len() - prompt_len).take(12).try_for_each(|&token| proposal.push(token))?;
        Ok(())
    };
    Request { proposer: Some(Box::new(proposer)), ..Request::new(prompt.to_vec(), max_new_tokens) }
}

/// A request that ends early leaves the pages of the tokens that it committed, up to the last step in which a token was
/// drawn without a fault. Pages that it had not read to their end, drafts that were not verified yet, and the step that
/// failed leave nothing. A request for the same text, drafts included, shows what is there.
#[test]
fn a_request_that_ends_early_leaves_pages_of_committed_tokens() {
    let spec = Spec { context_len: 256, ..Spec::default() };
    let (prompt, output) = known_text(&spec);
    let text = [&prompt[..], &output].concat();
    let options = EngineOptions { prefill_rows: 7, ..options() };
    let early = |steps| [(EarlyEnd::Cancelled, steps), (EarlyEnd::Ended, steps)];
    let failing = (0..40).map(|index| (EarlyEnd::Failed(index), 100));
    let mut pages_left = [0; 3];
    for (end, steps) in (1..12).flat_map(early).chain(failing) {
        let mut engine = with_options(&spec, Mode::Parallel, options.clone());
        let mut request = foretold(&prompt, &output);
        if let EarlyEnd::Failed(index) = end {
            let at = prompt.len() + index;
            request.logits_hook = Some(Box::new(
                move |position: usize, _: &[u32], _: &mut [f32]| {
                    if position == at { Err("planted".into()) } else { Ok(()) }
                },
            ));
        }
        let id = engine.add(request).unwrap();
        // The number of output tokens after the last step without a fault.
        let mut len = 0;
        for _ in 0..steps {
            let reports = engine.step().unwrap();
            if reports.iter().any(|report| report.finish.is_some()) {
                break;
            }
            len += reports.iter().map(|report| report.tokens.len()).sum::<usize>();
        }
        match end {
            EarlyEnd::Cancelled => assert!(engine.cancel(id)),
            EarlyEnd::Ended => assert!(engine.finish(id) && engine.step().unwrap().len() == 1),
            EarlyEnd::Failed(_) => assert!(engine.is_idle()),
        }
        let cached = if len == 0 { 0 } else { prompt.len() + len - 1 };
        let pages = cached / PAGE_SIZE;
        let (found, counted) = counted(&mut engine, vec![Request::new(text.clone(), 12)]);
        let reused = (pages * PAGE_SIZE) as u64;
        assert_eq!(counted, counts(text.len() as u64 - reused, reused), "{end:?} after {steps} steps");
        let plain = EngineOptions { prefix_cache: false, ..options.clone() };
        let expected =
            run(&mut with_options(&spec, Mode::Autoregressive, plain), vec![Request::new(text.clone(), 12)]);
        assert_eq!(found[0].tokens, expected[0].tokens);
        let kind = match end {
            EarlyEnd::Cancelled => 0,
            EarlyEnd::Ended => 1,
            EarlyEnd::Failed(_) => 2,
        };
        pages_left[kind] = pages_left[kind].max(pages);
    }
    assert!(pages_left.iter().all(|&pages| pages > 3), "{pages_left:?}");
}

/// A request that gives up its pages while it reads its prompt leaves nothing, and reads all of its prompt again.
#[test]
fn a_request_that_is_suspended_while_it_reads_leaves_nothing() {
    let spec = Spec { context_len: 256, ..Spec::default() };
    let (prompt, output) = known_text(&spec);
    // The first request has read its prompt while the second has only begun. Then both grow by a token per step, until the
    // first takes the pages of the second.
    let output = &output[..52];
    let options = EngineOptions { prefill_rows: 1, cache_tokens: 8 * PAGE_SIZE, ..options() };
    let late = tokens(7, 60, spec.vocab);
    let plain = EngineOptions { prefix_cache: false, ..options.clone() };
    let request = || Request::new(late.clone(), 12);
    let expected = run(&mut with_options(&spec, Mode::Autoregressive, plain), vec![request()]).remove(0);
    let mut engine = with_options(&spec, Mode::Autoregressive, options);
    let first = Request::new(prompt, output.len());
    let (found, counted) = counted(&mut engine, vec![first, request()]);
    assert_eq!((&found[0].tokens[..], &found[1].tokens), (output, &expected.tokens));
    assert_eq!((engine.stats().preempted, counted.tokens_reused), (1, 0));
    assert!(counted.tokens_read > 100 + 2 * PAGE_SIZE as u64, "{counted:?}");
}

/// Returns a random prompt that begins as some of the other prompts do, and the kind of its request.
fn ask(random: &mut SplitMix, vocab: usize) -> (Vec<u32>, usize) {
    let mut below = |limit: u64| random.bits() % limit;
    let prompt = tokens(below(3), 1 + below(40) as usize, vocab);
    let own = tokens(100 + below(50), below(12) as usize, vocab);
    ([prompt, own].concat(), below(4) as usize)
}

proptest! {
    #![proptest_config(properties(12))]

    /// With requests that share prefixes, suspensions, cancellations and a small cache, outputs equal the outputs of an engine
    /// with a large cache and without prefix cache.
    #[test]
    fn outputs_do_not_depend_on_the_prefix_cache(
        spec in either_drafter(spec(Shapes::SMALL)),
        seed in any::<u64>(),
        page_size in prop::sample::select(vec![1usize, 3, 4, 16]),
        cache_tokens in 90usize..200,
        max_batch in 1usize..6,
        prefill_rows in prop::sample::select(vec![3usize, 16, 64]),
        free in any::<bool>(),
    ) {
        let random = &mut SplitMix(seed);
        let options = EngineOptions {
            cache_tokens: cache_tokens.next_multiple_of(page_size),
            page_size,
            max_batch,
            prefill_rows,
            ..EngineOptions::default()
        };
        // With any verify lengths, only greedy and `match` requests have the tokens of other runs.
        let mut engine = match free {
            true => with_options(&spec, RandomEverything(RandomGroups(seed)), options),
            false => with_options(&spec, RandomGroups(seed), options),
        };
        let plain = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
        let mut lives = Vec::new();
        while lives.len() < 24 || !engine.is_idle() {
            if lives.len() < 24 && random.bits().is_multiple_of(2) {
                let (prompt, kind) = ask(random, spec.vocab);
                let id = engine.add(request(prompt.clone(), kind)).unwrap();
                lives.push((id, prompt, kind, Output::default(), false));
            }
            if let Some(live) = lives.len().checked_sub(1 + random.bits() as usize % 4)
                && random.bits().is_multiple_of(12)
            {
                lives[live].4 |= engine.cancel(lives[live].0);
            }
            for report in engine.step().unwrap() {
                let (.., output, _) = lives.iter_mut().find(|live| live.0 == report.id).unwrap();
                output.tokens.extend(report.tokens);
                output.records.extend(report.record);
                output.finish = report.finish;
            }
        }
        let stats = engine.stats();
        prop_assert_eq!(stats.pages_in_use, 0);
        prop_assert!(stats.prefixes.tokens_reused > 0 || page_size > 4);
        for (_, prompt, kind, found, cancelled) in lives {
            let mut alone = with_options(&spec, Mode::Sequential, plain.clone());
            let expected = run(&mut alone, vec![request(prompt, kind)]).remove(0);
            if cancelled {
                prop_assert!(free || expected.tokens.starts_with(&found.tokens));
                continue;
            }
            prop_assert_eq!(&found.finish, &expected.finish);
            if kind < 2 {
                prop_assert_eq!(&found.tokens, &expected.tokens);
            } else if !free {
                prop_assert_eq!(blocks(&[found]), blocks(&[expected]));
            }
        }
    }
}
