//! Paired runs on the real CPU device: a policy and the mode `ar`, on the same requests, one run after the other.
//!
//! A machine that other programs use too changes its speed from minute to minute. The two runs of a pair follow each other
//! closely, in an order that alternates, and the result is the median of the pairs' ratios.

use std::error::Error;
use std::time::Instant;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{CostModel, Engine, EngineOptions, Flex, Mode, Policy, ProbeOptions, Request};
use flexdraft::device::cpu::Cpu;
use flexdraft::sampling::SamplingParams;

use crate::pair::{Pair, PairFiles};

/// Batch sizes, and the number of new tokens per request.
const BATCHES: [(usize, usize); 3] = [(1, 192), (8, 96), (32, 48)];

/// The settings of paired runs.
#[derive(Clone, Copy, Debug)]
pub struct PairedRuns<'a> {
    /// The pair and its prompts.
    pub files: PairFiles<'a>,
    /// Number of pairs of runs for each batch size and load.
    pub repetitions: usize,
    /// Whether requests are sampled at temperature 1 with the rule `match`, instead of greedy.
    pub sampled: bool,
}

/// The result of the pairs of runs of one batch size and load.
#[derive(Clone, Debug)]
pub struct PairedResult {
    /// Number of sequences.
    pub batch: usize,
    /// Whether requests end at different times and others come with their prompts.
    pub arrivals: bool,
    /// Median tokens per second of `ar`.
    pub ar: f64,
    /// Median tokens per second of the policy.
    pub auto: f64,
    /// The policy's tokens per second over those of `ar`, for each pair of runs, ascending.
    pub ratios: Vec<f64>,
    /// Median error of the durations of steps that the policy expected in its last run, as a fraction.
    pub median_error: f64,
}

/// Runs pairs of `auto` and `ar` and passes each result to `report`.
///
/// # Errors
///
/// Errors of the files and of the engine, and outputs that differ between the policies.
pub fn paired_runs(
    settings: &PairedRuns<'_>,
    mut report: impl FnMut(&PairedResult),
) -> Result<(), Box<dyn Error>> {
    let Pair { mut model, prompts, .. } = Pair::load(settings.files, 32)?;
    for (batch, tokens) in BATCHES {
        let options = EngineOptions { max_batch: batch, prefix_cache: false, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Mode::Autoregressive, options)?;
        let cost = engine.probe(&ProbeOptions::default())?.cost_model();
        for arrivals in [false, true] {
            let requests: Vec<Request> = requests(&prompts, batch, tokens, arrivals, settings.sampled);
            report(&pairs(&mut engine, &cost, &requests, settings.repetitions, batch, arrivals)?);
        }
        model = engine.into_model();
    }
    Ok(())
}

/// Returns the requests of a load. Without arrivals, all requests begin and end together. With arrivals there are three requests
/// per place of the batch, which end at different times, so that the prompts of others are read meanwhile.
fn requests(
    prompts: &[Vec<u32>],
    batch: usize,
    tokens: usize,
    arrivals: bool,
    sampled: bool,
) -> Vec<Request> {
    let count = if arrivals { 3 * batch } else { batch };
    let request = |index: usize| {
        let prompt = prompts[index % prompts.len().max(1)].clone();
        let new = if arrivals { tokens / 4 + index * 13 % tokens.max(1) / 2 } else { tokens };
        let sampling = SamplingParams::at_temperature(if sampled { 1.0 } else { 0.0 });
        Request { sampling, rule: Rule::Match, seed: index as u64, ..Request::new(prompt, new) }
    };
    (0..count).map(request).collect()
}

fn pairs(
    engine: &mut Engine<Cpu>,
    cost: &CostModel,
    requests: &[Request],
    repetitions: usize,
    batch: usize,
    arrivals: bool,
) -> Result<PairedResult, Box<dyn Error>> {
    let (mut ar, mut auto, mut ratios, mut median_error) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    for repetition in 0..repetitions {
        let mut rates = [0.0; 2];
        let mut outputs = [Vec::new(), Vec::new()];
        for turn in 0..2 {
            let which = (turn + repetition) % 2;
            let policy: Box<dyn Policy> =
                if which == 0 { Box::new(Mode::Autoregressive) } else { Box::new(Flex::new(cost.clone())) };
            engine.set_policy(policy)?;
            (rates[which], outputs[which]) = rate(engine, requests)?;
            if which == 1 {
                median_error = engine.stats().step_times.map_or(0.0, |times| times.median_error);
            }
        }
        if outputs[0] != outputs[1] {
            return Err("`auto` and `ar` gave different tokens".into());
        }
        ar.push(rates[0]);
        auto.push(rates[1]);
        ratios.push(rates[1] / rates[0]);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(PairedResult { batch, arrivals, ar: median(&mut ar), auto: median(&mut auto), ratios, median_error })
}

/// The tokens of each request.
type Outputs = Vec<Vec<u32>>;

/// Runs requests to their ends. Returns the tokens per second and all outputs.
fn rate(engine: &mut Engine<Cpu>, requests: &[Request]) -> Result<(f64, Outputs), Box<dyn Error>> {
    let mut ids = Vec::new();
    for request in requests {
        let Request { sampling, rule, seed, .. } = request;
        let again = Request::new(request.prompt.clone(), request.max_new_tokens);
        ids.push(engine.add(Request { sampling: *sampling, rule: *rule, seed: *seed, ..again })?);
    }
    let mut outputs: Outputs = vec![Vec::new(); ids.len()];
    let began = Instant::now();
    while !engine.is_idle() {
        for committed in engine.step()? {
            let index = ids.iter().position(|&id| id == committed.id).ok_or("an unknown request")?;
            outputs[index].extend(committed.tokens);
        }
    }
    let tokens: usize = outputs.iter().map(Vec::len).sum();
    Ok((tokens as f64 / began.elapsed().as_secs_f64(), outputs))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl PairedResult {
    /// Returns the header of a table of results.
    pub fn header() -> &'static str {
        "batch  load        ar tokens/s  auto tokens/s  ratio  (least to most)   error of expected times"
    }

    /// Returns the median of the pairs' ratios.
    pub fn ratio(&self) -> f64 {
        self.ratios.get(self.ratios.len() / 2).copied().unwrap_or(0.0)
    }

    /// Returns a line of the table.
    pub fn text(&self) -> String {
        let Self { batch, arrivals, ar, auto, ratios, median_error } = self;
        let load = if *arrivals { "arrivals" } else { "quiet" };
        let [least, most] = [ratios.first(), ratios.last()].map(|ratio| ratio.copied().unwrap_or(0.0));
        format!(
            "{batch:>5}  {load:<9} {ar:>13.0} {auto:>14.0} {:>6.3}  ({least:.3} to {most:.3}) {:>13.0}%",
            self.ratio(),
            median_error * 100.0,
        )
    }
}
