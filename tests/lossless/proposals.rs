//! Tests of proposals from outside the model: with and without a drafter, of any length, certain or drawn from
//! distributions, they leave the output as it is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    BatchView, Choice, DecodeError, Engine, EngineOptions, Finish, Flex, HookError, MAX_PROPOSAL, Mode,
    Policy, PromptLookup, Proposal, ProposalError, Proposer, Record, Request, StepRecord,
};
use flexdraft::device::Device;
use flexdraft::device::cpu::Cpu;
use flexdraft::layout::GroupSet;
use flexdraft::logits::LogitsFault;
use flexdraft::model::Model;
use flexdraft::sampling::SamplingParams;
use flexdraft_reference as plain;
use flexdraft_reference::propose::prompt_lookup;
use proptest::prelude::*;

use crate::support::models::{Shapes, Spec, either_drafter, spec};
use crate::support::noise::SplitMix;
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::reference;
use crate::support::runs::{Output, corrupted_continuation, cpu, engine, run, run_alone};

/// Returns an engine without a drafter.
fn without_drafter(spec: &Spec, policy: impl Policy + 'static) -> Engine<Cpu> {
    let model = Model::new(cpu(1), &spec.weights().0, None).unwrap();
    Engine::new(model, policy, EngineOptions { proposers: true, ..EngineOptions::default() }).unwrap()
}

fn request(temperature: f32, rule: Rule, prompt: &[u32]) -> Request {
    Request {
        sampling: SamplingParams { top_k: 9, top_p: 0.95, ..SamplingParams::at_temperature(temperature) },
        rule,
        seed: 5,
        ..Request::new(prompt.to_vec(), 24)
    }
}

/// Logits of a source that knows nothing of the target: a function of the text so far.
fn logits(text: &[u32], drawn: &[u32], vocab: usize) -> Vec<f32> {
    let seed = text.iter().chain(drawn).fold(7u64, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(21)
    });
    let mut random = SplitMix(seed);
    (0..vocab).map(|_| 3.0 * random.signed()).collect()
}

/// Returns a source that draws up to `longest` tokens, and pushes a token in between.
fn drawing(longest: usize, vocab: usize) -> Box<dyn Proposer> {
    Box::new(move |prefix: &[u32], proposal: &mut Proposal<'_>| {
        for slot in 0..longest - prefix.len() % 2 {
            match slot {
                1 => proposal.push(prefix[0])?,
                _ => drop(proposal.draw(&logits(prefix, proposal.tokens(), vocab))?),
            }
        }
        Ok(())
    })
}

/// The accepted lengths and proposal lengths of all steps of some outputs.
fn lengths(outputs: &[Output]) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let steps = outputs.iter().flat_map(|output| &output.records).filter_map(|record| match record {
        Record::Step(step) => Some((step.accepted, step.verify_len)),
        Record::Prefill(_) => None,
    });
    steps.unzip()
}

#[test]
fn every_accepted_length_occurs_without_a_drafter() {
    let spec = Spec::default();
    for (temperature, rule) in
        [(0.0, Rule::Match), (1.0, Rule::Match), (1.0, Rule::Rejection), (1.0, Rule::Block)]
    {
        for longest in [1, 5, MAX_PROPOSAL] {
            let request = || Request { max_new_tokens: 300, ..request(temperature, rule, &[3, 1, 4]) };
            let expected = run_alone(&spec, Mode::Autoregressive, request());
            let known = || corrupted_continuation(3, expected.tokens.clone(), spec.vocab, longest);
            let proposing = || Request { proposer: Some(known()), record: true, ..request() };
            let outputs = run(&mut without_drafter(&spec, Mode::Sequential), vec![proposing(), request()]);
            let (accepted, verified) = lengths(&outputs[..1]);
            assert!(verified.contains(&longest), "{verified:?}");
            if rule == Rule::Match {
                assert_eq!([&outputs[0].tokens, &outputs[1].tokens], [&expected.tokens; 2]);
                assert!(longest > 5 || accepted.len() == longest + 1, "{accepted:?}");
            }
            // Plain decoding asks no proposer.
            let outputs = run(&mut without_drafter(&spec, Mode::Autoregressive), vec![proposing()]);
            assert_eq!((&outputs[0].tokens, lengths(&outputs).1), (&expected.tokens, BTreeSet::from([0])));
        }
    }
}

proptest! {
    #![proptest_config(properties(24))]

    /// Greedy and `match` requests have the tokens of plain decoding with any source, in every mode.
    #[test]
    fn proposals_change_no_token(
        spec in either_drafter(spec(Shapes::SMALL)),
        prompt in prop::collection::vec(any::<u32>(), 1..30),
        longest in 2usize..20,
        seed in any::<u64>(),
    ) {
        let prompt: Vec<u32> = prompt.iter().map(|id| id % spec.vocab as u32).collect();
        let asks = [(0.0, Rule::Block), (1.0, Rule::Match)];
        let plain = |(temperature, rule)| run_alone(&spec, Mode::Autoregressive, request(temperature, rule, &prompt));
        let expected = asks.map(plain);
        let requests = || {
            let mut requests = Vec::new();
            for ((temperature, rule), expected) in asks.into_iter().zip(&expected) {
                let sources: [Box<dyn Proposer>; 4] = [
                    Box::new(PromptLookup { shortest: 1, ..PromptLookup::default() }),
                    drawing(longest, spec.vocab),
                    corrupted_continuation(prompt.len(), expected.tokens.clone(), spec.vocab, longest),
                    Box::new(|_: &[u32], proposal: &mut Proposal<'_>| -> Result<(), HookError> {
                        proposal.keep_draft();
                        Ok(())
                    }),
                ];
                for source in sources {
                    let request = request(temperature, rule, &prompt);
                    requests.push(Request { proposer: Some(source), ..request });
                }
            }
            requests
        };
        let check = |mut engine: Engine<Cpu>| {
            for (index, output) in run(&mut engine, requests()).iter().enumerate() {
                prop_assert_eq!(&output.tokens, &expected[index / 4].tokens, "request {}", index);
            }
            Ok(())
        };
        for mode in spec.drafting_modes() {
            check(engine(&spec, mode))?;
        }
        check(engine(&spec, RandomEverything(RandomGroups(seed))))?;
        check(without_drafter(&spec, Mode::Sequential))?;
        check(without_drafter(&spec, Flex::default()))?;
        check(without_drafter(&spec, RandomEverything(RandomGroups(seed))))?;
    }

    #[test]
    fn the_lookup_is_the_references(
        text in prop::collection::vec(0u32..4, 0..60),
        longest in 0usize..6,
        shortest in 0usize..5,
        tokens in 0usize..9,
    ) {
        let found: Vec<u32> = PromptLookup { longest, shortest, tokens }.find(&text).take(tokens).collect();
        prop_assert_eq!(found, prompt_lookup(&text, longest, shortest, tokens));
    }
}

/// Each step with proposals equals a step of the reference's loop in f64: tokens, accepted lengths and bonus tokens, for
/// certain and for drawn proposals under every rule. The seeds are fixed, and none of their draws is a near-tie.
#[test]
fn the_loop_is_the_references() {
    let mut accepted = [0; 2];
    for seed in 0..40u64 {
        let spec = Spec { seed, gain: [0.5, 1.0, 3.0][seed as usize % 3], vocab: 11, ..Spec::default() };
        let target = reference::target(&spec.weights().0);
        let (rule, plain_rule) = [
            (Rule::Rejection, plain::accept::Rule::Rejection),
            (Rule::Block, plain::accept::Rule::Block),
            (Rule::Match, plain::accept::Rule::Match),
        ][seed as usize % 3];
        let temperature = [1.0, 0.0, 0.8][seed as usize / 3 % 3];
        let prompt: Vec<u32> = (0..12).map(|i| i * i % 7).collect();
        let warping = plain::warp::Warping {
            top_k: 9,
            top_p: f64::from(0.95f32),
            ..plain::warp::Warping::temperature(f64::from(temperature))
        };
        let plain_request = plain::decode::Request {
            prompt: prompt.clone(),
            max_new_tokens: 24,
            stop_tokens: vec![],
            processors: plain::process::Processors::OFF,
            processors_on_drafts: false,
            warping,
            rule: plain_rule,
            seed,
            block_size: 1,
            threshold: 0.0,
            strategy: plain::schedule::Strategy::CumulativeProduct,
        };
        for certain in [true, false] {
            let expected = plain::decode::decode_proposals(&target, &plain_request, |tokens| match certain {
                true => plain::propose::Proposal::certain(prompt_lookup(tokens, 2, 1, 5), spec.vocab),
                false => {
                    let next = |drawn: &[u32]| {
                        let row = logits(tokens, drawn, spec.vocab).into_iter().map(f64::from).collect();
                        (drawn.len() < 4).then_some(row)
                    };
                    plain::propose::Proposal::drawn((plain_rule, &warping, seed), tokens.len() - 1, next)
                }
            });
            let vocab = spec.vocab;
            let source: Box<dyn Proposer> = match certain {
                true => Box::new(PromptLookup { longest: 2, shortest: 1, tokens: 5 }),
                false => {
                    Box::new(move |prefix: &[u32], proposal: &mut Proposal<'_>| -> Result<(), HookError> {
                        for _ in 0..4 {
                            proposal.draw(&logits(prefix, proposal.tokens(), vocab))?;
                        }
                        Ok(())
                    })
                }
            };
            let request =
                Request { proposer: Some(source), record: true, seed, ..request(temperature, rule, &prompt) };
            let output = run(&mut without_drafter(&spec, Mode::Sequential), vec![request]).remove(0);
            assert_eq!(output.tokens, expected.output, "seed {seed}");
            let mut steps = expected.steps.iter();
            for record in &output.records {
                let Record::Step(step) = record else { continue };
                let expected = steps.next().unwrap();
                assert_eq!(step.candidates, expected.candidates, "seed {seed}");
                assert_eq!(
                    (step.accepted, step.next.bonus),
                    (expected.accepted, expected.bonus),
                    "seed {seed}"
                );
                assert_eq!(step.next.draft, expected.draft.tokens, "seed {seed}");
                accepted[usize::from(certain)] += step.accepted;
            }
            assert!(steps.next().is_none());
        }
    }
    assert!(accepted.iter().all(|&accepted| accepted > 40), "too little was accepted: {accepted:?}");
}

/// Text that repeats itself is proposed from itself, and most of it is accepted.
#[test]
fn a_repetition_takes_few_steps() {
    let spec = Spec { gain: 40.0, ..Spec::default() };
    let request = || Request { record: true, ..Request::new(vec![1, 2, 3], 200) };
    let plain = run_alone(&spec, Mode::Autoregressive, request());
    let lookup = Request { proposer: Some(Box::new(PromptLookup::default())), ..request() };
    let output = run(&mut without_drafter(&spec, Mode::Sequential), vec![lookup]).remove(0);
    assert_eq!(output.tokens, plain.tokens);
    // Greedy decoding of a small model ends in a loop.
    assert!(3 * output.records.len() < plain.records.len(), "{} steps", output.records.len());
}

#[test]
fn proposals_that_do_not_fit_end_their_request() {
    let spec = Spec::default();
    type Mistake = fn(&mut Proposal<'_>) -> Result<(), ProposalError>;
    let mistakes: [(Mistake, ProposalError, &str); 5] = [
        (
            |proposal| proposal.push(29),
            ProposalError::OutOfVocabulary { token: 29, vocab_size: 29 },
            "proposed token 29 is out of vocabulary (29 ids)",
        ),
        (
            |proposal| (0..).try_for_each(|_| proposal.push(1)),
            ProposalError::Full,
            "a proposal has at most 63 tokens",
        ),
        (
            |proposal| proposal.draw(&[0.0; 28]).map(drop),
            ProposalError::LogitsLength { expected: 29, found: 28 },
            "a row of logits has 29 values, found 28",
        ),
        (
            |proposal| proposal.draw(&[f32::NAN; 29]).map(drop),
            ProposalError::Logits(LogitsFault::Nan),
            "the logits of the proposal have a NaN",
        ),
        (
            |proposal| proposal.draw(&[f32::NEG_INFINITY; 29]).map(drop),
            ProposalError::Logits(LogitsFault::Forbidden),
            "the logits of the proposal have no finite value",
        ),
    ];
    for (mistake, expected, reason) in mistakes {
        let proposer = move |_: &[u32], proposal: &mut Proposal<'_>| -> Result<(), HookError> {
            let error = mistake(proposal).unwrap_err();
            assert_eq!(error, expected);
            Err(error.into())
        };
        let sound = || request(1.0, Rule::Match, &[4, 4]);
        let faulty = Request { proposer: Some(Box::new(proposer)), ..sound() };
        let outputs = run(&mut without_drafter(&spec, Mode::Sequential), vec![faulty, sound()]);
        let Some(Finish::Failed(DecodeError::Hook { hook: "proposer", position: 3, reason: found })) =
            &outputs[0].finish
        else {
            panic!("{:?}", outputs[0]);
        };
        assert!(found.starts_with(reason), "{found}");
        assert_eq!((outputs[0].tokens.len(), outputs[1].tokens.len()), (1, 24));
    }
}

/// Only an engine that is told so drafts without a drafter, and mask groups need one in any case.
#[test]
fn an_engine_without_drafter_must_be_asked() {
    let spec = Spec::default();
    let engine = |mode: Mode, proposers| {
        let model = Model::new(cpu(1), &spec.weights().0, None).unwrap();
        Engine::new(model, mode, EngineOptions { proposers, ..EngineOptions::default() }).map(drop)
    };
    assert_eq!(engine(Mode::Sequential, false), Err(DecodeError::NoDrafter { mode: "sequential" }));
    assert_eq!(engine(Mode::Sequential, true), Ok(()));
    assert_eq!(engine(Mode::Parallel, true), Err(DecodeError::NoDrafter { mode: "parallel" }));
    let mut engine = without_drafter(&spec, Mode::Autoregressive);
    assert_eq!(engine.set_policy(Mode::Parallel), Err(DecodeError::NoDrafter { mode: "parallel" }));
    assert_eq!(engine.set_policy(Flex::default()), Ok(()));
    assert!(engine.model().device().is_row_invariant());
}

/// A policy that verifies whole drafts, and stores the confidences of all drafts.
struct Listener(Arc<Mutex<Vec<Vec<f32>>>>);

impl Policy for Listener {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let seen = batch.sequences.iter().filter(|view| !view.confidence.is_empty());
        self.0.lock().unwrap().extend(seen.map(|view| view.confidence.to_vec()));
        batch.sequences.iter().map(|view| Choice::drafting(view, GroupSet::NONE)).collect()
    }

    fn name(&self) -> &'static str {
        "listener"
    }
}

/// A source whose only token is always wrong. It knows the output of a request with a prompt of three tokens.
struct Wrong(Vec<u32>);

impl Proposer for Wrong {
    fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
        self.0.get(prefix.len() - 3).map_or(Ok(()), |token| Ok(proposal.push((token + 1) % 7)?))
    }

    fn source(&self) -> &'static str {
        "wrong"
    }
}

/// The confidence in certain tokens is learned from earlier verifications, for each source and place, from one request to
/// the next. Records keep what the source said.
#[test]
fn certain_tokens_have_the_confidence_that_their_source_earned() {
    let spec = Spec::default();
    let expected = run_alone(&spec, Mode::Autoregressive, Request::new(vec![3, 1, 4], 150)).tokens;
    // The second token is always wrong.
    let known = expected.clone();
    let misses_one = move |prefix: &[u32], proposal: &mut Proposal<'_>| -> Result<(), HookError> {
        for (place, token) in known.iter().skip(prefix.len() - 3).take(3).enumerate() {
            proposal.push(if place == 1 { (token + 1) % 7 } else { *token })?;
        }
        Ok(())
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut engine = without_drafter(&spec, Listener(seen.clone()));
    let request = |proposer: Box<dyn Proposer>, count| Request {
        proposer: Some(proposer),
        record: true,
        ..Request::new(vec![3, 1, 4], count)
    };
    let first = run(&mut engine, vec![request(Box::new(misses_one.clone()), 150)]).remove(0);
    assert_eq!(first.tokens, expected);
    let confidences = std::mem::take(&mut *seen.lock().unwrap());
    let prior = confidences[0][0];
    assert!(confidences[0].iter().all(|&confidence| confidence == prior) && (0.4..0.8).contains(&prior));
    let last = &confidences[confidences.len() - 4];
    assert!(last[0] > 0.9 && last[1] < 0.1 && last[2] == prior, "{last:?}");
    for record in &first.records {
        let (Record::Step(StepRecord { next, .. }) | Record::Prefill(next)) = record;
        assert!(next.confidence.iter().all(|&confidence| confidence == 1.0));
    }
    run(&mut engine, vec![request(Box::new(Wrong(expected.clone())), 8)]);
    let of_another = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(of_another[0][0], prior);
    assert!(of_another[of_another.len() - 1][0] < prior, "{of_another:?}");
    run(&mut engine, vec![request(Box::new(misses_one), 8)]);
    assert!(seen.lock().unwrap()[0][0] > 0.9);
}
