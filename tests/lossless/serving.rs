//! Tests an engine under random use: requests arrive, are cancelled, ended and given other limits, fail, and share a
//! small cache. Greedy and `match` requests get the tokens that they get alone without drafts, and no page is lost.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    DecodeError, Engine, EngineOptions, Finish, HookError, LogitsHook, Mode, Request, RequestId,
};
use flexdraft::device::cpu::Cpu;
use flexdraft::model::Model;
use flexdraft::model::weights::{DrafterWeights, TargetWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::Tensor;
use proptest::prelude::*;

use crate::support::models::Spec;
use crate::support::noise::SplitMix;
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::runs::{Output, cpu, run};

/// The parameters of a request, from which it can be made again.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    max_new_tokens: usize,
    temperature: f32,
    rule: Rule,
    seed: u64,
    priority: i32,
    /// The position at which the request's hook makes a mistake, and the kind of the mistake.
    mistake: Option<(usize, usize)>,
}

/// A logits hook that makes one mistake: at the position `.0`, of the kind `.1`.
struct Mistaken(usize, usize);

impl LogitsHook for Mistaken {
    fn edit(&mut self, position: usize, _: &[u32], logits: &mut [f32]) -> Result<(), HookError> {
        logits[3] = f32::NEG_INFINITY;
        match self.1 {
            _ if position != self.0 => {}
            0 => return Err("planted".into()),
            1 => logits.fill(f32::NEG_INFINITY),
            _ => logits[0] = f32::NAN,
        }
        Ok(())
    }
}

impl Ask {
    /// Returns a random request. Every eighth prompt has the token `bad`, whose embedding has a NaN.
    fn random(random: &mut SplitMix, bad: u32) -> Self {
        let mut below = |limit: u64| random.bits() % limit;
        let mut prompt: Vec<u32> = (0..=below(18)).map(|_| below(u64::from(bad)) as u32).collect();
        if below(8) == 0 {
            let place = below(prompt.len() as u64) as usize;
            prompt[place] = bad;
        }
        let mistake = (below(6) == 0).then(|| (prompt.len() + below(12) as usize, below(3) as usize));
        Self {
            max_new_tokens: below(25) as usize,
            temperature: [0.0, 1.0, 0.8][below(3) as usize],
            rule: [Rule::Match, Rule::Match, Rule::Match, Rule::Rejection, Rule::Block][below(5) as usize],
            seed: below(1000),
            priority: below(3) as i32 - 1,
            mistake,
            prompt,
        }
    }

    fn request(&self) -> Request {
        Request {
            sampling: SamplingParams::at_temperature(self.temperature),
            rule: self.rule,
            seed: self.seed,
            priority: self.priority,
            logits_hook: self.mistake.map(|(at, kind)| Box::new(Mistaken(at, kind)) as _),
            ..Request::new(self.prompt.clone(), self.max_new_tokens)
        }
    }

    /// Returns whether the request must get the same tokens in every mode and batch.
    fn is_certain(&self) -> bool {
        self.temperature == 0.0 || self.rule == Rule::Match
    }
}

/// A request on the engine under test.
struct Live {
    ask: Ask,
    id: RequestId,
    output: Output,
    /// Whether the caller changed the request after it was added.
    changed: bool,
    cancelled: bool,
}

struct Bench {
    target: TargetWeights,
    drafter: DrafterWeights,
}

impl Bench {
    /// Returns a model whose last token has a NaN in its embedding.
    fn new(spec: &Spec) -> Self {
        let (mut target, drafter) = spec.weights();
        let mut embed = target.embed.to_f32();
        embed[(spec.vocab - 1) * spec.hidden] = f32::NAN;
        target.embed = Tensor::from_f32(&[spec.vocab, spec.hidden], embed).unwrap();
        Self { target, drafter }
    }

    fn model(&self) -> Model<Cpu> {
        Model::new(cpu(1), &self.target, Some(&self.drafter)).unwrap()
    }

    fn alone(&self, ask: &Ask) -> Output {
        let mut engine = Engine::new(self.model(), Mode::Autoregressive, EngineOptions::default()).unwrap();
        run(&mut engine, vec![ask.request()]).remove(0)
    }
}

fn step(engine: &mut Engine<Cpu>, lives: &mut [Live]) {
    for report in engine.step().unwrap() {
        let live = lives.iter_mut().find(|live| live.id == report.id).unwrap();
        assert!(live.output.finish.is_none() && !live.cancelled);
        live.output.tokens.extend(report.tokens);
        live.output.finish = report.finish;
    }
}

proptest! {
    #![proptest_config(properties(6))]

    #[test]
    fn requests_get_what_they_get_alone(
        seed in any::<u64>(),
        pages in 11usize..24,
        max_batch in 1usize..6,
        prefill_rows in prop::sample::select(vec![3usize, 64]),
    ) {
        let spec = Spec::default();
        let bench = Bench::new(&spec);
        let bad = spec.vocab as u32 - 1;
        let random = &mut SplitMix(seed);
        let options = EngineOptions {
            max_batch,
            cache_tokens: 4 * pages,
            page_size: 4,
            prefill_rows,
            ..EngineOptions::default()
        };
        let policy = RandomEverything(RandomGroups(seed));
        let mut engine = Engine::new(bench.model(), policy, options).unwrap();
        let mut lives: Vec<Live> = Vec::new();
        while lives.len() < 30 {
            if random.bits().is_multiple_of(2) {
                let ask = Ask::random(random, bad);
                let id = engine.add(ask.request()).unwrap();
                let output = Output::default();
                lives.push(Live { ask, id, output, changed: false, cancelled: false });
            }
            if let Some(live) = lives.len().checked_sub(1 + random.bits() as usize % 4) {
                let live = &mut lives[live];
                match random.bits() % 16 {
                    0 => live.cancelled |= engine.cancel(live.id),
                    1 => live.changed |= engine.finish(live.id),
                    2 => {
                        let limit = random.bits() as usize % 25;
                        live.changed |= engine.set_max_new_tokens(live.id, limit).unwrap();
                    }
                    _ => {}
                }
            }
            step(&mut engine, &mut lives);
        }
        while !engine.is_idle() {
            step(&mut engine, &mut lives);
        }
        let stats = engine.stats();
        prop_assert_eq!((stats.running, stats.waiting, stats.pages_in_use), (0, 0, 0));
        for Live { ask, output, changed, cancelled, .. } in &lives {
            prop_assert_eq!(output.finish.is_none(), *cancelled);
            if !ask.is_certain() {
                let is_fault = matches!(output.finish, Some(Finish::Failed(DecodeError::Logits { .. })));
                prop_assert!(!ask.prompt.contains(&bad) || *changed || *cancelled || ask.max_new_tokens == 0 || is_fault);
                continue;
            }
            let expected = bench.alone(&Ask { max_new_tokens: ask.max_new_tokens.max(25), ..ask.clone() });
            if *changed || *cancelled {
                prop_assert!(expected.tokens.starts_with(&output.tokens));
            } else if output.finish == Some(Finish::Length) {
                prop_assert_eq!(output.tokens.len(), ask.max_new_tokens);
                prop_assert!(expected.tokens.starts_with(&output.tokens));
            } else {
                prop_assert_eq!(output, &expected);
            }
        }
    }
}
