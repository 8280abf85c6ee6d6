//! Tests an engine under random use for a long time: requests arrive, share prefixes, are cancelled, ended and given other
//! limits, fail, and share a small cache. Greedy and `match` requests get the tokens that they get alone without drafts,
//! no page is lost, and memory does not grow.
//!
//! `FLEXDRAFT_SERVING_REQUESTS` sets the number of requests; `tests/serving.sh` runs many and writes the result.

mod allocations;
mod ask;
#[path = "../support/mod.rs"]
mod support;

use flexdraft::decode::{
    DecodeError, DraftCounts, Engine, EngineOptions, EngineStats, Finish, Mode, PrefixCounts, Request,
    RequestId,
};
use flexdraft::device::cpu::Cpu;
use flexdraft::model::Model;
use flexdraft::model::weights::{ChainKind, DrafterWeights, TargetWeights};
use flexdraft::tensor::Tensor;

use self::allocations::live_bytes;
use self::ask::Ask;
use self::support::models::{ChainSpec, Spec};
use self::support::noise::SplitMix;
use self::support::policies::{RandomEverything, RandomGroups};
use self::support::runs::{Output, cpu, run};

/// Number of requests after which the engine is left idle, so that its pages and its memory can be counted.
const ROUND: usize = 100;

/// The largest growth of the memory of an idle engine from the first half of the rounds to the last, in bytes: after many
/// rounds, and after few, when the largest steps have not occurred yet and buffers still grow to their needs.
const GROWTH: [usize; 2] = [8 << 10, 256 << 10];

/// Number of rounds per engine that counts as many.
const MANY_ROUNDS: usize = 20;

/// A request on the engine under test.
struct Live {
    ask: Ask,
    id: RequestId,
    output: Output,
    /// Whether the caller changed the request after it was added.
    changed: bool,
    cancelled: bool,
}

/// A model whose last token has a NaN in its embedding.
struct Bench {
    target: TargetWeights,
    drafter: DrafterWeights,
    spec: Spec,
}

impl Bench {
    fn new(spec: Spec) -> Self {
        let (mut target, drafter) = spec.weights();
        let mut embed = target.embed.to_f32();
        embed[(spec.vocab - 1) * spec.hidden] = f32::NAN;
        target.embed = Tensor::from_f32(&[spec.vocab, spec.hidden], embed).unwrap();
        Self { target, drafter, spec }
    }

    fn engine(&self, seed: u64, options: EngineOptions) -> Engine<Cpu> {
        let model = Model::new(cpu(1), &self.target, Some(&self.drafter)).unwrap();
        Engine::new(model, RandomEverything(RandomGroups(seed)), options).unwrap()
    }

    /// Returns the tokens of a request that runs alone, without drafts, without a prefix cache and without the caller's
    /// changes, up to the most tokens that a caller may ask for.
    fn alone(&self, plain: &mut Engine<Cpu>, ask: &Ask) -> Output {
        let most = ask.max_new_tokens.max(ask::MOST_NEW_TOKENS);
        let mut longest = ask.clone();
        longest.max_new_tokens = most;
        run(plain, vec![longest.request(self.spec.vocab, false)]).remove(0)
    }

    fn plain(&self) -> Engine<Cpu> {
        let model = Model::new(cpu(1), &self.target, None).unwrap();
        let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
        Engine::new(model, Mode::Autoregressive, options).unwrap()
    }
}

fn step(engine: &mut Engine<Cpu>, lives: &mut [Live]) {
    for report in engine.step().unwrap() {
        let live = lives.iter_mut().find(|live| live.id == report.id).unwrap();
        assert!(live.output.finish.is_none() && !live.cancelled, "a request is reported after its end");
        let asked = live.ask.logprobs.is_some();
        assert_eq!(report.logprobs.len(), if asked { report.tokens.len() } else { 0 });
        live.output.tokens.extend(report.tokens);
        live.output.finish = report.finish;
    }
}

/// Checks what a request got against what it gets alone.
fn check(Live { ask, output, changed, cancelled, .. }: &Live, expected: &Output) {
    let Output { tokens, finish, .. } = output;
    assert_eq!(finish.is_none(), *cancelled, "{ask:?}");
    if !ask.is_certain() {
        let ends =
            matches!(finish, None | Some(Finish::Length | Finish::Stop | Finish::Ended | Finish::Deadline));
        let fails =
            |error: &DecodeError| matches!(error, DecodeError::Logits { .. } | DecodeError::Hook { .. });
        assert!(ends || matches!(finish, Some(Finish::Failed(error)) if fails(error)), "{ask:?}: {finish:?}");
        return;
    }
    // A proposer that fails ends its request, and plain decoding asks no proposer.
    let by_proposer = matches!(finish, Some(Finish::Failed(DecodeError::Hook { hook: "proposer", .. })));
    let is_cut = *changed || *cancelled || by_proposer || finish == &Some(Finish::Length);
    assert!(!by_proposer || ask.proposer_fails(), "{ask:?}: {finish:?}");
    if is_cut || finish == &Some(Finish::Deadline) {
        assert!(expected.tokens.starts_with(tokens), "{ask:?}: {tokens:?}, alone {:?}", expected.tokens);
        assert!(finish != &Some(Finish::Length) || *changed || tokens.len() == ask.max_new_tokens, "{ask:?}");
        assert!(finish != &Some(Finish::Deadline) || ask.is_late, "{ask:?}");
    } else {
        assert_eq!((tokens, finish), (&expected.tokens, &expected.finish), "{ask:?}");
    }
}

/// Sums over all engines.
#[derive(Default)]
struct Totals {
    requests: usize,
    steps: usize,
    compared: usize,
    cancelled: usize,
    failed: usize,
    preempted: u64,
    prefixes: PrefixCounts,
    accepted: f64,
    verifications: u64,
}

impl Totals {
    fn add(&mut self, stats: &EngineStats) {
        let counts: &DraftCounts = &stats.drafts;
        self.preempted += stats.preempted;
        self.prefixes.tokens_read += stats.prefixes.tokens_read;
        self.prefixes.tokens_reused += stats.prefixes.tokens_reused;
        self.prefixes.pages_evicted += stats.prefixes.pages_evicted;
        let verifications = counts.verifications();
        self.accepted += counts.acceptance_length().unwrap_or(0.0) * verifications as f64;
        self.verifications += verifications;
    }
}

/// Serves `requests` requests on one engine, and returns the largest memory of the idle engine in the first half of the
/// rounds and after the last round.
fn serve(spec: Spec, seed: u64, requests: usize, totals: &mut Totals) -> (usize, usize) {
    let random = &mut SplitMix(seed);
    let pages = 14 + (random.bits() % 10) as usize;
    let options = EngineOptions {
        max_batch: 1 + (random.bits() % 6) as usize,
        cache_tokens: 4 * pages,
        page_size: 4,
        prefill_rows: [3, 16, 64][(random.bits() % 3) as usize],
        proposers: true,
        ..EngineOptions::default()
    };
    let bench = Bench::new(spec);
    let mut plain = bench.plain();
    let mut engine = bench.engine(seed, options);
    let bad = bench.spec.vocab as u32 - 1;
    let (rounds, mut memory) = (requests.div_ceil(ROUND), Vec::new());
    for _ in 0..rounds {
        let mut lives: Vec<Live> = Vec::with_capacity(ROUND);
        while lives.len() < ROUND || !engine.is_idle() {
            if lives.len() < ROUND && random.bits().is_multiple_of(2) {
                let ask = Ask::random(random, bad);
                let id = engine.add(ask.request(bench.spec.vocab, true)).unwrap();
                lives.push(Live { ask, id, output: Output::default(), changed: false, cancelled: false });
            }
            if let Some(live) = lives.len().checked_sub(1 + random.bits() as usize % 4) {
                let live = &mut lives[live];
                match random.bits() % 16 {
                    0 => live.cancelled |= engine.cancel(live.id),
                    1 => live.changed |= engine.finish(live.id),
                    2 => {
                        let limit = random.bits() as usize % ask::MOST_NEW_TOKENS;
                        live.changed |= engine.set_max_new_tokens(live.id, limit).unwrap();
                    }
                    _ => {}
                }
            }
            step(&mut engine, &mut lives);
            totals.steps += 1;
            let stats = engine.stats();
            assert!(stats.pages_in_use + stats.pages_cached <= pages);
        }
        for live in &lives {
            let expected = bench.alone(&mut plain, &live.ask);
            check(live, &expected);
            totals.compared += usize::from(live.ask.is_certain());
            totals.cancelled += usize::from(live.cancelled);
            totals.failed += usize::from(matches!(live.output.finish, Some(Finish::Failed(_))));
        }
        totals.requests += lives.len();
        drop(lives);
        // A request that needs every page runs, so no page was lost.
        let whole = Request::new(vec![2; 4 * pages], 1);
        let output = run(&mut engine, vec![whole]).remove(0);
        assert_eq!((output.tokens.len(), output.finish), (1, Some(Finish::Length)));
        assert_eq!(engine.stats().pages_in_use, 0);
        memory.push(live_bytes());
    }
    totals.add(&engine.stats());
    let first = memory[..rounds.div_ceil(2)].iter().copied().max().unwrap_or(0);
    (first, memory.last().copied().unwrap_or(0))
}

#[test]
fn requests_get_what_they_get_alone() {
    let requests = std::env::var("FLEXDRAFT_SERVING_REQUESTS").ok();
    let requests: usize = requests.map_or(1200, |requests| requests.parse().unwrap());
    let chain = Some(ChainSpec { kind: ChainKind::Pair, rank: 3, top_k: 5 });
    let specs = [
        Spec::default(),
        Spec { gain: 12.0, ..Spec::default() }.with_orthrus(),
        Spec { chain, block_size: 4, gain: 12.0, ..Spec::default() },
        Spec { layers: 1, tail: 1, kv_heads: 1, block_size: 8, gain: 20.0, ..Spec::default() },
    ];
    let mut totals = Totals::default();
    let mut growth = Vec::new();
    for (seed, spec) in (1..).zip(specs) {
        let (first, last) = serve(spec, seed, requests / 4, &mut totals);
        growth.push(last as i64 - first as i64);
        let allowed = GROWTH[usize::from(requests / 4 < MANY_ROUNDS * ROUND)];
        assert!(last <= first + allowed, "engine {seed}: {first} bytes, at last {last}");
    }
    let Totals { requests, steps, compared, cancelled, failed, preempted, prefixes, .. } = totals;
    let PrefixCounts { tokens_read, tokens_reused, pages_evicted } = prefixes;
    println!("{requests} requests were served in {steps} steps.");
    println!("{compared} of them, greedy and `match`, were compared with plain decoding alone.");
    println!(
        "{cancelled} were cancelled, {failed} ended with an error of their own, {preempted} suspensions."
    );
    println!(
        "{tokens_read} tokens were read and {tokens_reused} reused; {pages_evicted} pages were taken from prefixes."
    );
    println!("The acceptance length was {:.2}.", totals.accepted / totals.verifications as f64);
    println!(
        "An idle engine's memory grew by {growth:?} bytes from the first half of the requests to the last."
    );
    assert!(tokens_reused > 0 && failed > 0 && cancelled > 0 && preempted > 0);
}
