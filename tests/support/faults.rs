//! Checks of faults that concern a single request, for every device: the request must end with a reason, after the
//! tokens before the fault, and the other requests must get the tokens that they would have had.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    Confidence, DecodeError, Engine, EngineOptions, Finish, HookError, LogitsHook, Mode, Policy, Proposal,
    Request,
};
use flexdraft::device::Device;
use flexdraft::logits::LogitsFault;
use flexdraft::model::Model;
use flexdraft::model::weights::{DrafterWeights, TargetWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{DType, Tensor};
use half::bf16;

use super::models::Spec;
use super::policies::RandomGroups;
use super::runs::{Output, proposing, run};

/// Returns the shape of a model that all devices support.
pub fn spec() -> Spec {
    let (head_dim, hidden, block_size, rank, dtype) = (64, 32, 4, Some(8), DType::Bf16);
    Spec { layers: 2, tail: 1, head_dim, hidden, block_size, rank, dtype, ..Spec::default() }
}

/// Number of pages in the tests' KV caches. Some tests end with a request that needs all pages.
const PAGES: usize = 12;
const PAGE_SIZE: usize = 16;

type Weights = (TargetWeights, DrafterWeights);

fn engine<D: Device>(device: D, (target, drafter): &Weights, policy: impl Policy + 'static) -> Engine<D> {
    let model = Model::new(device, target, Some(drafter)).unwrap();
    let options =
        EngineOptions { cache_tokens: PAGES * PAGE_SIZE, page_size: PAGE_SIZE, ..EngineOptions::default() };
    Engine::new(model, policy, options).unwrap()
}

fn modes() -> Vec<(&'static str, Box<dyn Policy>)> {
    vec![
        ("ar", Box::new(Mode::Autoregressive)),
        ("parallel", Box::new(Mode::Parallel)),
        ("sequential", Box::new(Mode::Sequential)),
        ("any groups", Box::new(RandomGroups(7))),
    ]
}

/// Returns a greedy request and a `match` request, which have the same tokens in every mode.
fn requests(max_new_tokens: usize) -> [Request; 2] {
    [(0.0, vec![3, 1, 4, 1, 5]), (1.0, vec![2, 7, 1, 8])].map(|(temperature, prompt)| Request {
        rule: Rule::Match,
        sampling: SamplingParams::at_temperature(temperature),
        seed: 9,
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        ..Request::new(prompt, max_new_tokens)
    })
}

/// Replaces an element of a bf16 tensor.
fn set(tensor: &mut Tensor, index: usize, value: f32) {
    let mut values: Vec<bf16> = tensor.to_f32().into_iter().map(bf16::from_f32).collect();
    values[index] = bf16::from_f32(value);
    *tensor = Tensor::from_bf16(tensor.shape(), values).unwrap();
}

/// Returns the outputs of requests that run one by one, without drafts.
fn alone<D: Device>(
    device: impl Fn() -> D,
    weights: &Weights,
    requests: impl IntoIterator<Item = Request>,
) -> Vec<Output> {
    let mut outputs = Vec::new();
    for request in requests {
        outputs.extend(run(&mut engine(device(), weights, Mode::Autoregressive), vec![request]));
    }
    outputs
}

/// Checks that no page of the cache was lost.
fn check_pages<D: Device>(engine: &mut Engine<D>) {
    assert!(engine.is_idle());
    let output = run(engine, vec![Request::new(vec![1; PAGES * PAGE_SIZE], 1)]).remove(0);
    // The request may fail because of the model's faulty logits, but not for want of pages.
    let has_room = matches!(output.finish, Some(Finish::Length | Finish::Failed(DecodeError::Logits { .. })));
    assert!(has_room, "{output:?}");
}

fn failed(output: &Output) -> &DecodeError {
    match &output.finish {
        Some(Finish::Failed(error)) => error,
        other => panic!("{other:?} after {:?}", output.tokens),
    }
}

/// Checks requests whose prompt has a token with a NaN embedding, which makes every logit after it NaN.
pub fn nan_logits_end_their_request_alone<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    let mut weights = spec.weights();
    let bad = spec.vocab as u32 - 1;
    set(&mut weights.0.embed, bad as usize * spec.hidden, f32::NAN);
    let expected = alone(&device, &weights, requests(20));
    assert!(expected.iter().all(|output| !output.tokens.contains(&bad)));
    for (name, policy) in modes() {
        let mut engine = engine(device(), &weights, policy);
        let [first, second] = requests(20);
        let outputs = run(&mut engine, vec![first, Request::new(vec![3, bad], 20), second]);
        for (output, expected) in [&outputs[0], &outputs[2]].into_iter().zip(&expected) {
            assert_eq!(output, expected, "{name}");
        }
        assert!(outputs[1].tokens.is_empty(), "{name}");
        let error = DecodeError::Logits { position: 2, fault: LogitsFault::Nan };
        assert_eq!(failed(&outputs[1]), &error, "{name}");
        assert_eq!(error.to_string(), "the target's logits for position 2 have a NaN");
        check_pages(&mut engine);
    }
}

/// Checks requests that begin with the tokens of a faulty prompt, whose last token has a NaN embedding. On a device whose
/// rows share tiles of keys, the NaN reaches the keys and values of tokens before it, which must not be used again.
pub fn a_faulty_prompt_leaves_no_pages_to_others<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    let mut weights = spec.weights();
    let bad = spec.vocab as u32 - 1;
    set(&mut weights.0.embed, bad as usize * spec.hidden, f32::NAN);
    let shared: Vec<u32> = (0..2 * PAGE_SIZE as u32).map(|position| position * position % bad).collect();
    let sound =
        || requests(10).map(|request| Request { prompt: [&shared[..], &request.prompt].concat(), ..request });
    let faulty = || Request::new([&shared[..], &[bad]].concat(), 10);
    let expected = alone(&device, &weights, sound());
    assert!(expected.iter().all(|output| output.tokens.len() == 10));
    for together in [false, true] {
        for (name, policy) in modes() {
            let mut engine = engine(device(), &weights, policy);
            let mut outputs = if together {
                run(&mut engine, [faulty()].into_iter().chain(sound()).collect())
            } else {
                [run(&mut engine, vec![faulty()]), run(&mut engine, sound().into())].concat()
            };
            let error = DecodeError::Logits { position: shared.len() + 1, fault: LogitsFault::Nan };
            assert_eq!(failed(&outputs.remove(0)), &error, "{name}");
            assert_eq!(outputs, expected, "{name}");
            let reused = engine.stats().prefixes.tokens_reused;
            assert_eq!(reused, shared.len() as u64, "the second request reuses the pages of the first");
            check_pages(&mut engine);
        }
    }
}

/// Checks a model in which one logit overflows to +∞ or −∞, depending on the sign of a hidden element. −∞ is legal.
pub fn an_infinite_logit_ends_an_output_at_its_place<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    let mut weights = spec.weights();
    for element in 0..2 {
        set(&mut weights.0.lm_head, 11 * spec.hidden + element, -3e38);
    }
    let requests = || {
        let six = (0..3).flat_map(|token| requests(30).map(|request| (token, request)));
        let varied = |(token, request): (u32, Request)| {
            let prompt = [&request.prompt[..], &[token]].concat();
            Request { prompt, seed: token.into(), ..request }
        };
        six.map(varied).collect::<Vec<_>>()
    };
    let expected = alone(&device, &weights, requests());
    let faults = expected.iter().filter(|output| matches!(output.finish, Some(Finish::Failed(_))));
    assert!(faults.clone().any(|output| !output.tokens.is_empty()), "{expected:?}");
    for output in faults {
        let DecodeError::Logits { fault, .. } = failed(output) else { panic!("{output:?}") };
        assert_eq!(*fault, LogitsFault::Infinite);
    }
    for (name, policy) in modes() {
        let proposed = requests()
            .into_iter()
            .zip(&expected)
            .map(|(request, output)| proposing(request, output, spec.vocab));
        let mut engine = engine(device(), &weights, policy);
        let outputs = run(&mut engine, requests().into_iter().chain(proposed).collect());
        for (index, (output, expected)) in outputs.iter().zip(expected.iter().chain(&expected)).enumerate() {
            assert_eq!(output, expected, "{name}, request {index}");
        }
        check_pages(&mut engine);
    }
}

/// Checks drafters whose calibrator has a NaN or infinite bias at some or all ids, so that drafts come from faulty
/// logits: the committed tokens do not change.
pub fn a_draft_s_faulty_logits_change_no_token<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    for (ids, value) in [(0..1, f32::NAN), (4..9, f32::NAN), (0..spec.vocab, f32::NAN), (5..7, f32::INFINITY)]
    {
        let mut weights = spec.weights();
        let calibrator = weights.1.calibrator.as_mut().unwrap();
        for id in ids {
            set(calibrator.output.bias.as_mut().unwrap(), id, value);
        }
        let expected = alone(&device, &weights, requests(12));
        for (name, policy) in modes() {
            let compared = [Rule::Rejection, Rule::Block].map(|rule| {
                let [_, request] = requests(12);
                Request { rule, ..request }
            });
            let mut engine = engine(device(), &weights, policy);
            let outputs = run(&mut engine, requests(12).into_iter().chain(compared).collect());
            assert_eq!(outputs[..2], expected, "{name}");
            for output in &outputs {
                assert_eq!((output.tokens.len(), &output.finish), (12, &Some(Finish::Length)), "{name}");
            }
        }
    }
}

/// A mistake that a logits hook makes.
#[derive(Clone, Copy, Debug)]
enum Mistake {
    Error,
    Panic,
    ForbidsAll,
    Nan,
    Infinite,
}

/// Returns a hook that makes a mistake at a position, and forbids token 0 elsewhere.
fn hook(mistake: Mistake, at: usize) -> Option<Box<dyn LogitsHook>> {
    Some(Box::new(move |position: usize, _: &[u32], logits: &mut [f32]| -> Result<(), HookError> {
        logits[0] = f32::NEG_INFINITY;
        match mistake {
            _ if position != at => {}
            Mistake::Error => return Err("no grammar".into()),
            Mistake::Panic => panic!("planted at {position}"),
            Mistake::ForbidsAll => logits.fill(f32::NEG_INFINITY),
            Mistake::Nan => logits[1] = f32::NAN,
            Mistake::Infinite => logits[1] = f32::INFINITY,
        }
        Ok(())
    }))
}

pub fn a_hook_s_mistake_ends_its_request_alone<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    let weights = spec.weights();
    let expected = alone(&device, &weights, requests(12));
    for (mistake, reason) in [
        (Mistake::Error, "no grammar"),
        (Mistake::Panic, "it panicked: planted at 11"),
        (Mistake::ForbidsAll, "it forbids every token"),
        (Mistake::Nan, "it leaves a NaN in the logits"),
        (Mistake::Infinite, "it leaves +infinity in the logits"),
    ] {
        let message = format!("the logits hook failed at position 11: {reason}");
        // The mistake at position 11 ends the two outputs after 6 and 7 tokens, because the prompts have 5 and 4
        // tokens.
        let hooked = |at| requests(12).map(|request| Request { logits_hook: hook(mistake, at), ..request });
        let whole = alone(&device, &weights, hooked(usize::MAX));
        for (name, policy) in modes() {
            let mut engine = engine(device(), &weights, policy);
            let hooked = hooked(11)
                .into_iter()
                .zip(&whole)
                .map(|(request, whole)| proposing(request, whole, spec.vocab));
            let outputs = run(&mut engine, requests(12).into_iter().chain(hooked).collect());
            assert_eq!(outputs[..2], expected, "{name}, {mistake:?}");
            for (output, whole) in outputs[2..].iter().zip(&whole) {
                assert_eq!(failed(output).to_string(), message, "{name}");
                assert!([6, 7].contains(&output.tokens.len()));
                assert_eq!(output.tokens, whole.tokens[..output.tokens.len()], "{name}, {mistake:?}");
            }
            check_pages(&mut engine);
        }
    }
}

/// Checks a hook that returns an error after a token that it has forbidden. Such a token is only in drafts that are
/// rejected, so the error has no effect.
pub fn a_hook_may_fail_after_a_draft_that_is_rejected<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    let weights = spec.weights();
    let even = |position: usize, prefix: &[u32], logits: &mut [f32]| -> Result<(), HookError> {
        if prefix.len() > 5 && prefix[5..].iter().any(|token| token % 2 == 1) {
            return Err(format!("an odd token before position {position}").into());
        }
        logits.iter_mut().skip(1).step_by(2).for_each(|logit| *logit = f32::NEG_INFINITY);
        Ok(())
    };
    let request = || {
        let [request, _] = requests(20);
        Request { logits_hook: Some(Box::new(even)), ..request }
    };
    let expected = alone(&device, &weights, [request()]);
    assert_eq!(expected[0].finish, Some(Finish::Length));
    for (name, policy) in modes() {
        let outputs = run(
            &mut engine(device(), &weights, policy),
            vec![request(), proposing(request(), &expected[0], spec.vocab)],
        );
        assert!(outputs.iter().all(|output| *output == expected[0]), "{name}");
    }
}

pub fn a_proposer_s_mistake_ends_its_request_alone<D: Device>(device: impl Fn() -> D) {
    let spec = spec();
    let weights = spec.weights();
    let expected = alone(&device, &weights, requests(12));
    for panics in [false, true] {
        let request = |known: &Output, request: Request| {
            let (prompt_len, known) = (request.prompt.len(), known.tokens.clone());
            let proposer = move |prefix: &[u32], proposal: &mut Proposal<'_>| {
                if prefix.len() > 8 {
                    assert!(!panics, "planted");
                    return Err(HookError::from("no proposal"));
                }
                for &token in known[prefix.len() - prompt_len..].iter().take(3) {
                    proposal.push(token)?;
                }
                Ok(())
            };
            Request { proposer: Some(Box::new(proposer)), ..request }
        };
        for (name, policy) in modes().into_iter().skip(1) {
            let mut engine = engine(device(), &weights, policy);
            let proposing = expected.iter().zip(requests(12)).map(|(known, plain)| request(known, plain));
            let outputs = run(&mut engine, requests(12).into_iter().chain(proposing).collect());
            assert_eq!(outputs[..2], expected, "{name}");
            for (output, whole) in outputs[2..].iter().zip(&expected) {
                let DecodeError::Hook { hook: "proposer", position, reason } = failed(output) else {
                    panic!("{output:?}")
                };
                assert!(*position > 8 && reason.contains(if panics { "planted" } else { "no proposal" }));
                assert_eq!(output.tokens, whole.tokens[..output.tokens.len()], "{name}");
            }
            check_pages(&mut engine);
        }
    }
}
