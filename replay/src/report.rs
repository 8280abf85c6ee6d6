//! The report of a replay: compares a policy with the fixed modes and the bounds.

use flexdraft::decode::{Mode, Policy};

use crate::hindsight::Hindsight;
use crate::informed::Informed;
use crate::load::Load;
use crate::machine::{Machine, Products};
use crate::oracle::Oracle;
use crate::recording::Recording;
use crate::simulate::{Driver, Outcome, replay};

/// The number of times that a bound's price of time is taken from its own result.
const ROUNDS: usize = 3;

/// One line of a report: the tokens per second of the modes, the oracle and a policy.
#[derive(Clone, Debug)]
pub struct Line {
    /// The recording's pair.
    pub drafts: String,
    /// τ of the recording, if every draft is verified whole.
    pub tau: f64,
    /// The machine's name.
    pub machine: String,
    /// The load's name.
    pub load: &'static str,
    /// Number of sequences.
    pub batch: usize,
    /// Tokens per second of the oracle.
    pub oracle: f64,
    /// Tokens per second of the informed bound.
    pub informed: f64,
    /// Tokens per second without drafts, requests that must draft included.
    pub ar: f64,
    /// Tokens per second of sequential drafting.
    pub sequential: f64,
    /// Tokens per second of parallel drafting.
    pub parallel: f64,
    /// Tokens per second of the policy.
    pub policy: f64,
    /// The policy's tokens per second over the best fixed mode's. The mode without drafts counts as it is if requests that
    /// must draft get their drafts, as with every other mode.
    pub of_best_mode: f64,
    /// The oracle's tokens per second over the best fixed mode's.
    pub oracle_of_best_mode: f64,
    /// The fraction of the gap between the best fixed mode and the oracle that the policy closes.
    pub gap_closed: f64,
    /// The informed bound's tokens per second over the best fixed mode's.
    pub informed_of_best_mode: f64,
    /// The fraction of the gap between the best fixed mode and the informed bound that the policy closes.
    pub informed_gap_closed: f64,
    /// The policy's mean verify length and mask groups per verification, and the fraction of steps with a drafting pass.
    pub mean_verify_len: f64,
    /// Mean number of mask groups.
    pub mean_groups: f64,
    /// Fraction of the steps that had a drafting pass.
    pub steps_with_drafting_pass: f64,
}

/// Replays one load with the fixed modes, the bounds and a policy that `policy` makes.
pub fn line(
    recording: &Recording,
    machine: &Machine,
    load: &Load,
    seed: u64,
    policy: &dyn Fn() -> Box<dyn Policy>,
) -> Line {
    let run = |policy: &mut dyn Policy| replay(&mut Driver::Policy(policy), recording, machine, load, seed);
    let modes = [Mode::Autoregressive, Mode::Sequential, Mode::Parallel];
    let [ar, sequential, parallel] = modes.map(|mut mode| run(&mut mode).rate());
    let mut without = Mode::Autoregressive;
    let obliged = replay(&mut Driver::Obliged(&mut without), recording, machine, load, seed).rate();
    let best = obliged.max(sequential).max(parallel);
    // The bounds price time in noiseless seconds of the first half, which are shorter than the counted seconds.
    let noise = noise(recording, machine, load, seed);
    let reached = |driver: &mut Driver<'_>| replay(driver, recording, machine, load, seed).rate();
    let bound = |at_price: &dyn Fn(f64) -> f64| {
        (0..ROUNDS).fold(best, |rate: f64, _| rate.max(at_price(rate * noise)))
    };
    let oracle = bound(&|rate| reached(&mut Driver::Oracle(Oracle { rate })));
    let hindsight = Hindsight::of(recording);
    let informed = bound(&|rate| reached(&mut Driver::Informed(Informed { rate, hindsight: &hindsight })));
    let found: Outcome = run(&mut *policy());
    let verifications = found.verifications.max(1) as f64;
    Line {
        drafts: recording.pair.clone(),
        tau: round(recording.acceptance_length()),
        machine: machine.name.clone(),
        load: load.name,
        batch: load.batch,
        oracle: round(oracle),
        informed: round(informed),
        ar: round(ar),
        sequential: round(sequential),
        parallel: round(parallel),
        policy: round(found.rate()),
        of_best_mode: round(found.rate() / best),
        oracle_of_best_mode: round(oracle / best),
        gap_closed: round((found.rate() - best) / (oracle - best)),
        informed_of_best_mode: round(informed / best),
        informed_gap_closed: round((found.rate() - best) / (informed - best)),
        mean_verify_len: round(found.verified as f64 / verifications),
        mean_groups: round(found.groups as f64 / verifications),
        steps_with_drafting_pass: round(found.apart as f64 / found.steps.max(1) as f64),
    }
}

/// Returns the mean factor of noise, outliers and drift on the counted steps of a load.
fn noise(recording: &Recording, machine: &Machine, load: &Load, seed: u64) -> f64 {
    let constant = Machine {
        step_us: 1e6,
        pass_us: 0.0,
        sequence_us: 0.0,
        head_layers: 0,
        tail_layers: 0,
        layer_us: 0.0,
        lm_head: Products::Curve(vec![(0.0, 0.0), (1.0, 0.0)]),
        draft_row_us: 0.0,
        position_ns: 0.0,
        ..machine.clone()
    };
    let found = replay(&mut Driver::Policy(&mut Mode::Autoregressive), recording, &constant, load, seed);
    found.seconds / found.steps.max(1) as f64
}

fn round(value: f64) -> f64 {
    if value.is_finite() { (value * 1e4).round() / 1e4 } else { 0.0 }
}

/// Returns the header of a table of lines.
pub fn header() -> &'static str {
    "drafts           machine           load                          batch     oracle   informed         ar sequential   \
     parallel     policy  of best  oracle  closed  informed  closed     v  groups  apart"
}

/// Returns a line of a table.
pub fn text(line: &Line) -> String {
    format!(
        "{:<16} {:<17} {:<29} {:>5} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>10.0}   {:>6.3}  {:>6.3}  {:>6.2}  {:>8.3}  {:>6.2}  {:>4.1}  {:>6.2}  {:>5.2}",
        line.drafts,
        line.machine,
        line.load,
        line.batch,
        line.oracle,
        line.informed,
        line.ar,
        line.sequential,
        line.parallel,
        line.policy,
        line.of_best_mode,
        line.oracle_of_best_mode,
        line.gap_closed,
        line.informed_of_best_mode,
        line.informed_gap_closed,
        line.mean_verify_len,
        line.mean_groups,
        line.steps_with_drafting_pass,
    )
}
