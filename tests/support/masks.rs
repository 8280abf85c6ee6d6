//! Checks of mask providers and of rows without an allowed id, for every device.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    Confidence, DecodeError, Engine, EngineOptions, Finish, HookError, MaskProvider, Mode, Policy, Request,
};
use flexdraft::device::Device;
use flexdraft::logits::LogitsFault;
use flexdraft::model::Model;
use flexdraft::processors::LogitProcessors;
use flexdraft::sampling::SamplingParams;

use super::faults::spec;
use super::policies::RandomGroups;
use super::processors::all_but;
use super::runs::{Output, blocks, proposing, run};

fn engine<D: Device>(device: D, policy: impl Policy + 'static) -> Engine<D> {
    let (target, drafter) = spec().weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    Engine::new(model, policy, EngineOptions { cache_tokens: 512, ..EngineOptions::default() }).unwrap()
}

fn policies() -> [(&'static str, Box<dyn Policy>); 4] {
    [
        ("ar", Box::new(Mode::Autoregressive)),
        ("parallel", Box::new(Mode::Parallel)),
        ("sequential", Box::new(Mode::Sequential)),
        ("any groups", Box::new(RandomGroups(7))),
    ]
}

/// Returns a greedy request, and one of each rule.
fn requests() -> [Request; 4] {
    [(Rule::Match, 0.0), (Rule::Match, 1.0), (Rule::Rejection, 1.0), (Rule::Block, 1.0)].map(
        |(rule, temperature)| Request {
            rule,
            sampling: SamplingParams::at_temperature(temperature),
            seed: 3,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            ..Request::new(vec![3, 1, 4, 1, 5], 16)
        },
    )
}

/// Only 9 and 11 are allowed, and no pair of them. Whatever the first token is, no second token is allowed.
pub fn a_row_without_an_allowed_id_ends_its_request<D: Device>(device: impl Fn() -> D) {
    let vocab = spec().vocab;
    let allowed = (0..vocab.div_ceil(32)).map(|word| if word == 0 { 1 << 9 | 1 << 11 } else { 0 });
    let processors = LogitProcessors {
        allowed: Some(allowed.collect()),
        bad_words: vec![vec![9, 9], vec![9, 11], vec![11, 9], vec![11, 11]],
        ..LogitProcessors::default()
    };
    for (name, policy) in policies() {
        let mut engine = engine(device(), policy);
        let forbidden = requests().map(|request| Request { processors: processors.clone(), ..request });
        let outputs = run(&mut engine, forbidden.into_iter().chain(requests()).collect());
        for output in &outputs[..4] {
            assert!(matches!(output.tokens[..], [9 | 11]), "{name}: {output:?}");
            let error = DecodeError::Logits { position: 6, fault: LogitsFault::Forbidden };
            assert_eq!(output.finish, Some(Finish::Failed(error)), "{name}");
        }
        assert!(outputs[4..].iter().all(|output| output.finish == Some(Finish::Length)), "{name}");
        assert_eq!(engine.stats().pages_in_use, 0);
    }
}

/// Returns whether the grammar of these tests allows `id` after `before`: the sum of both must not be divisible by 3.
fn allows(before: u32, id: u32) -> bool {
    !(before + id).is_multiple_of(3)
}

/// Returns a provider of the grammar's masks, which counts its calls.
fn grammar(calls: Arc<AtomicUsize>, vocab: usize) -> Box<dyn MaskProvider> {
    Box::new(move |prompt: &[u32], output: &[u32], draft: &[u32], masks: &mut [u32]| {
        calls.fetch_add(1, Ordering::Relaxed);
        assert_eq!((prompt, masks.len()), (&[3, 1, 4, 1, 5][..], (draft.len() + 1) * vocab.div_ceil(32)));
        let newest = output.last().or(prompt.last());
        for (&before, mask) in newest.into_iter().chain(draft).zip(masks.chunks_exact_mut(vocab.div_ceil(32)))
        {
            assert!(mask.iter().all(|&word| word == u32::MAX));
            mask.fill(0);
            (0..vocab as u32)
                .filter(|&id| allows(before, id))
                .for_each(|id| mask[id as usize / 32] |= 1 << (id % 32));
        }
        Ok(())
    })
}

/// A provider's masks have the effect of a hook that forbids the same ids, together with a mask of the request.
pub fn a_provider_forbids_what_a_hook_forbids<D: Device>(device: impl Fn() -> D) {
    let vocab = spec().vocab;
    let restricted = |request: Request| Request {
        processors: LogitProcessors { allowed: Some(all_but(7, vocab)), ..LogitProcessors::default() },
        ..request
    };
    let forbid = |_: usize, prefix: &[u32], logits: &mut [f32]| -> Result<(), HookError> {
        let before = prefix[prefix.len() - 1];
        (0..)
            .zip(logits)
            .filter(|&(id, _)| !allows(before, id))
            .for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        Ok(())
    };
    let hooked =
        requests().map(|request| Request { logits_hook: Some(Box::new(forbid)), ..restricted(request) });
    let expected = run(&mut engine(device(), Mode::Autoregressive), hooked.into());
    let free = run(&mut engine(device(), Mode::Autoregressive), requests().into());
    assert!(expected.iter().zip(&free).all(|(expected, free)| expected.tokens != free.tokens));
    for (name, policy) in policies() {
        let calls = Arc::new(AtomicUsize::new(0));
        let provided = |request| Request {
            mask_provider: Some(grammar(calls.clone(), vocab)),
            record: true,
            ..restricted(request)
        };
        let [greedy, matching, ..] = requests().map(provided);
        let proposals = [greedy, matching].into_iter().zip(&expected);
        let proposals = proposals.map(|(request, known)| proposing(request, known, vocab));
        let mut engine = engine(device(), policy);
        let outputs = run(&mut engine, requests().map(provided).into_iter().chain(proposals).collect());
        for (output, expected) in
            outputs.iter().zip([&expected[..2], &expected[2..], &expected[..2]].concat())
        {
            let all = [&[5], &output.tokens[..]].concat();
            assert!(all.windows(2).all(|pair| allows(pair[0], pair[1]) && pair[1] != 7), "{name}: {all:?}");
            assert_eq!(output.tokens.len(), 16);
            if name == "ar" {
                assert_eq!(output.tokens, expected.tokens, "{name}");
            }
        }
        let same = |output: &Output, expected: &Output| assert_eq!(output.tokens, expected.tokens, "{name}");
        [0, 1].into_iter().for_each(|index| same(&outputs[index], &expected[index]));
        [0, 1].into_iter().for_each(|index| same(&outputs[4 + index], &expected[index]));
        // One call per step: the first token of an output is drawn in the step that reads the prompt.
        let steps: usize = outputs.iter().map(|output| output.records.len()).sum();
        assert_eq!(calls.load(Ordering::Relaxed), steps, "{name}");
    }
}

/// A mistake that a mask provider makes at a position.
#[derive(Clone, Copy, Debug)]
enum Mistake {
    Error,
    Panic,
    ForbidsAll,
}

fn mistaken(mistake: Mistake, at: usize) -> Option<Box<dyn MaskProvider>> {
    Some(Box::new(
        move |prompt: &[u32], output: &[u32], draft: &[u32], masks: &mut [u32]| -> Result<(), HookError> {
            let position = prompt.len() + output.len();
            let words = masks.len() / (draft.len() + 1);
            match mistake {
                Mistake::ForbidsAll => {
                    if let Some(mask) =
                        at.checked_sub(position).and_then(|row| masks.chunks_mut(words).nth(row))
                    {
                        mask.fill(0);
                    }
                }
                _ if position < at => {}
                Mistake::Error => return Err("no grammar".into()),
                Mistake::Panic => panic!("planted"),
            }
            Ok(())
        },
    ))
}

pub fn a_provider_s_mistake_ends_its_request_alone<D: Device>(device: impl Fn() -> D) {
    let whole = run(&mut engine(device(), Mode::Autoregressive), requests().into());
    for (mistake, reason) in [
        (Mistake::Error, "no grammar"),
        (Mistake::Panic, "it panicked: planted"),
        (Mistake::ForbidsAll, "it forbids every token"),
    ] {
        for (name, policy) in policies() {
            let [greedy, matching, ..] = requests();
            let faulty = [greedy, matching]
                .into_iter()
                .zip(&whole)
                .map(|(request, known)| proposing(request, known, spec().vocab))
                .map(|request| Request { mask_provider: mistaken(mistake, 12), ..request });
            let mut engine = engine(device(), policy);
            let outputs = run(&mut engine, requests().into_iter().chain(faulty).collect());
            assert_eq!(outputs[..2], whole[..2], "{name}, {mistake:?}");
            for (output, whole) in outputs[4..].iter().zip(&whole) {
                let Some(Finish::Failed(DecodeError::Hook { hook, position, reason: found })) =
                    &output.finish
                else {
                    panic!("{name}, {mistake:?}: {output:?}");
                };
                assert_eq!((*hook, found.as_str()), ("mask provider", reason));
                // A provider that fails as a whole fails at the step's first row; a mask fails at its own row.
                assert!(
                    *position == 12 || *position > 12 && !matches!(mistake, Mistake::ForbidsAll),
                    "{position}"
                );
                assert_eq!(output.tokens, whole.tokens[..position - 5], "{name}, {mistake:?}");
            }
        }
    }
}

/// With bias and mask on the drafter's logits, all draft tokens are allowed, parallel and sequential drafts are the same,
/// and greedy and `match` tokens are the tokens of plain decoding. Without, some draft tokens are forbidden.
pub fn drafts_obey_the_mask_if_asked<D: Device>(device: impl Fn() -> D) {
    let vocab = spec().vocab;
    let even: Vec<u32> = (0..vocab.div_ceil(32)).map(|_| 0x5555_5555).collect();
    let asks = |processors_on_drafts| {
        requests().map(|request| Request {
            processors: LogitProcessors {
                allowed: Some(even.clone().into()),
                logit_bias: [(4, 2.0), (6, -1.0), (9, 3.0)].into(),
                ..LogitProcessors::default()
            },
            processors_on_drafts,
            record: true,
            ..request
        })
    };
    let plain = run(&mut engine(device(), Mode::Autoregressive), asks(true).into());
    let drafted = |outputs: &[Output]| -> Vec<u32> {
        blocks(outputs).into_iter().flat_map(|block| block.draft).collect()
    };
    let free = run(&mut engine(device(), Mode::Parallel), asks(false).into());
    assert!(drafted(&free).iter().any(|id| id % 2 == 1));
    // One request of the batch does not ask.
    let [first, second, third, _] = asks(true);
    let [.., last] = asks(false);
    let mixed = run(&mut engine(device(), Mode::Sequential), vec![first, second, third, last]);
    let parallel = run(&mut engine(device(), Mode::Parallel), asks(true).into());
    assert!(drafted(&parallel).len() > 100 && drafted(&parallel).iter().all(|id| id % 2 == 0));
    assert!(drafted(&mixed[3..]).iter().any(|id| id % 2 == 1));
    assert_eq!(blocks(&mixed[..3]), blocks(&parallel[..3]));
    for outputs in [&free, &parallel, &mixed] {
        for (output, plain) in outputs.iter().zip(&plain) {
            assert!(output.tokens.len() == 16 && output.tokens.iter().all(|id| id % 2 == 0));
            let certain = [&outputs[0], &outputs[1]].iter().any(|certain| std::ptr::eq(*certain, output));
            assert!(!certain || output.tokens == plain.tokens);
        }
    }
}
