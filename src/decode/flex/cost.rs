//! The cost model: predicts the duration of a step from its shape.
//!
//! The model is a sum of terms that reflect the hardware: a constant per step and per pass (weights are read once,
//! kernels are launched), a price per row that changes at fixed numbers of rows (a pass is bound by reading weights up
//! to some number of rows, and by arithmetic beyond it), and a price per cached position. Mask rows run only in the
//! tail layers, in addition to the candidate rows, so mask rows are free as long as reading the weights bounds the
//! tail.
//!
//! Prices are never negative, so a pass never gets cheaper with more rows, and the price of a row never falls.
//! Non-negative least squares fit the prices to the steps that run; old steps lose weight. One factor on all prices
//! follows changes of the machine's speed.

use super::super::policy::StepView;

/// Numbers of rows above which a row may cost more.
const KNOTS: [f64; 8] = [0.0, 8.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
const SEGMENTS: usize = KNOTS.len();

const STEP: usize = 0;
const SEQUENCE: usize = 1;
const ROWS: usize = 2;
const TAIL_ROWS: usize = ROWS + SEGMENTS;
const DRAFTING: usize = TAIL_ROWS + SEGMENTS;
const MASK_ROW: usize = DRAFTING + 1;
const READ_ROW: usize = DRAFTING + 2;
const CACHED: usize = DRAFTING + 3;
const GROUP_CACHED: usize = DRAFTING + 4;
const DRAFT_CACHED: usize = DRAFTING + 5;
/// Number of prices.
const PRICES: usize = DRAFTING + 6;

type Vector = [f64; PRICES];

/// Number of steps after which the weight of a step in the fit has fallen to 1/e, for the recent steps and for the
/// long-term memory. The long-term memory has a small share in the fit; it preserves measurements of steps that have
/// not run for a long time.
const MEMORY: f64 = 300.0;
const LONG_MEMORY: f64 = 20_000.0;
const LONG_SHARE: f64 = 0.3;
/// Number of rounds of coordinate descent after each of the first steps, and after each later step. Every fit starts
/// from the prices of the previous fit.
const FIRST_ROUNDS: usize = 40;
const ROUNDS: usize = 8;
const FIRST_STEPS: u64 = 64;
/// Number of steps between two fits, after the first steps.
const FIT_EVERY: u64 = 4;
/// Change of a price in a round, as a fraction of its [`spread`], below which the fit has converged.
const SETTLED: f64 = 1e-9;
/// Lower and upper limit of the estimated relative standard deviation of a step's duration.
const LEAST_NOISE: f64 = 0.03;
const MOST_NOISE: f64 = 0.3;
/// Number of standard deviations beyond which a duration is an outlier.
const OUTLIER: f64 = 3.5;
/// Relative error of an expected duration below which the expectation counts as reliable.
const WELL_KNOWN: f64 = 0.1;
/// Number of outliers on one side, among the last [`SUSPECTS`] steps, that count as a change of the machine's speed.
const CHANGE: usize = 4;
const SUSPECTS: usize = 6;

/// The shape of a step: the numbers on which its duration depends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepShape {
    /// Number of sequences.
    pub sequences: usize,
    /// Candidate rows of the verification pass, including rows of prompts.
    pub candidates: usize,
    /// The number of candidate rows that are tokens of prompts.
    pub reads: usize,
    /// Mask rows of the verification pass.
    pub mask_rows: usize,
    /// Cached positions of all sequences.
    pub cached: usize,
    /// Sum over all sequences of cached positions times mask groups.
    pub group_cached: usize,
    /// Mask rows of the drafting pass; 0 if the step has no drafting pass.
    pub draft_rows: usize,
    /// Cached positions of the sequences in the drafting pass.
    pub draft_cached: usize,
}

impl StepShape {
    /// Returns the shape of a step that ran.
    pub fn of(step: &StepView<'_>) -> Self {
        let mut shape = Self { sequences: step.sequences.len(), ..Self::default() };
        for sequence in step.sequences {
            shape.candidates += sequence.candidates;
            shape.reads += if sequence.mode.is_none() { sequence.candidates } else { 0 };
            shape.mask_rows += sequence.groups * sequence.block_size;
            shape.cached += sequence.cached;
            shape.group_cached += sequence.cached * sequence.groups;
            if sequence.drafted_apart {
                shape.draft_rows += sequence.block_size;
                shape.draft_cached += sequence.cached;
            }
        }
        shape
    }

    /// Returns the shape of the step without its rows of prompts. If all rows read prompts, no candidates are left.
    pub(super) fn without_reads(&self) -> Self {
        Self { candidates: self.candidates - self.reads, reads: 0, ..*self }
    }

    /// Returns the number of units of each price in the step.
    fn units(&self) -> Vector {
        let mut units = [0.0; PRICES];
        units[STEP] = 1.0;
        units[SEQUENCE] = self.sequences as f64;
        let (rows, all) = (self.candidates as f64, (self.candidates + self.mask_rows) as f64);
        let draft_rows = self.draft_rows as f64;
        for (index, &knot) in KNOTS.iter().enumerate() {
            let beyond = |rows: f64| (rows - knot).max(0.0);
            units[ROWS + index] = beyond(rows);
            units[TAIL_ROWS + index] = beyond(all) - beyond(rows) + beyond(draft_rows);
        }
        units[DRAFTING] = f64::from(u8::from(self.draft_rows > 0));
        units[MASK_ROW] = self.mask_rows as f64;
        units[READ_ROW] = self.reads as f64;
        units[CACHED] = self.cached as f64;
        units[GROUP_CACHED] = self.group_cached as f64;
        units[DRAFT_CACHED] = self.draft_cached as f64;
        units
    }
}

/// The normal equations of weighted least squares.
#[derive(Clone, Debug)]
struct Equations {
    matrix: Vec<Vector>,
    right: Vector,
}

impl Equations {
    fn new() -> Self {
        Self { matrix: vec![[0.0; PRICES]; PRICES], right: [0.0; PRICES] }
    }

    fn add(&mut self, units: &Vector, value: f64, weight: f64, memory: f64) {
        let kept = 1.0 - 1.0 / memory;
        for ((row, right), unit) in self.matrix.iter_mut().zip(&mut self.right).zip(units) {
            for (entry, other) in row.iter_mut().zip(units) {
                *entry = *entry * kept + weight * unit * other;
            }
            *right = *right * kept + weight * unit * value;
        }
    }
}

/// A model of a step's duration, fitted to the steps that ran.
#[derive(Clone, Debug)]
pub struct CostModel {
    /// Seconds per unit of each term, before the factor `speed`.
    prices: Vector,
    /// The prices before any measurement.
    prior: Vector,
    recent: Equations,
    long_term: Equations,
    /// Factor on all prices.
    speed: f64,
    /// Relative standard deviation of a step's duration around the model.
    noise: f64,
    /// The last outliers: the logarithm of the measured over the predicted duration, and the number of steps since
    /// then.
    suspects: Vec<(f64, usize)>,
    /// Number of steps that the model was fitted to.
    steps: u64,
}

impl Default for CostModel {
    /// Returns a model of an unknown machine. The first step sets the speed. The ratios between the prices start as on
    /// a machine that computes a few tens of rows in the time to read the weights, with errors as large as the prices.
    fn default() -> Self {
        let mut prices = [0.0; PRICES];
        prices[STEP] = 1.0;
        prices[SEQUENCE] = 2e-3;
        for index in 0..SEGMENTS {
            prices[ROWS + index] = 0.02 * spread(ROWS + index);
            prices[TAIL_ROWS + index] = 0.02 * spread(TAIL_ROWS + index);
        }
        prices[DRAFTING] = 0.3;
        prices[MASK_ROW] = 1e-4;
        prices[CACHED] = 1e-5;
        prices[GROUP_CACHED] = 2e-6;
        prices[DRAFT_CACHED] = 3e-6;
        Self {
            prices,
            prior: prices,
            recent: Equations::new(),
            long_term: Equations::new(),
            speed: 1.0,
            noise: 0.1,
            suspects: Vec::new(),
            steps: 0,
        }
    }
}

/// Returns the standard deviation of a price before any measurement. The standard deviation of a row's price is half of
/// the price of a step; of the increase at a number of rows, a correspondingly smaller fraction.
fn spread(index: usize) -> f64 {
    let row = |knot: f64| 0.5 / (1.0 + knot);
    match index {
        STEP => 0.5,
        SEQUENCE => 0.05,
        ROWS..TAIL_ROWS => row(KNOTS[index - ROWS]),
        TAIL_ROWS..DRAFTING => 0.5 * row(KNOTS[index - TAIL_ROWS]),
        DRAFTING => 0.5,
        MASK_ROW | READ_ROW => 0.02,
        CACHED => 1e-4,
        _ => 3e-5,
    }
}

impl CostModel {
    /// Returns the expected duration of a step in seconds.
    pub fn seconds(&self, shape: &StepShape) -> f64 {
        let units = shape.units();
        self.seconds_of(&units)
    }

    fn seconds_of(&self, units: &Vector) -> f64 {
        let sum: f64 = self.prices.iter().zip(units).map(|(price, unit)| price * unit).sum();
        let least = 0.2 * self.prices[STEP].abs();
        self.speed * sum.max(least)
    }

    /// Returns the symmetric matrix of the fitted equations, with the prior.
    fn matrix(&self) -> [Vector; PRICES] {
        let mut matrix = [[0.0; PRICES]; PRICES];
        for (row, entries) in matrix.iter_mut().enumerate() {
            let measured = self.recent.matrix[row].iter().zip(&self.long_term.matrix[row]);
            for (entry, (recent, long_term)) in entries.iter_mut().zip(measured) {
                *entry = recent + LONG_SHARE * long_term;
            }
            entries[row] += spread(row).powi(-2);
        }
        matrix
    }

    /// Returns the standard deviation of the error of the difference between two steps' expected durations, in seconds.
    pub fn error_between(&self, one: &StepShape, other: &StepShape) -> f64 {
        let (one, other) = (one.units(), other.units());
        let mut rest: Vector = std::array::from_fn(|index| one[index] - other[index]);
        // Computes the quadratic form of the inverse matrix by Cholesky decomposition, as |L⁻¹u|². Only the upper
        // triangle of the remaining matrix is kept.
        let mut left = self.matrix();
        let mut sum = 0.0;
        for step in 0..PRICES {
            let pivot = left[step][step].max(1e-12).sqrt();
            let factor = left[step].map(|entry| entry / pivot);
            let share = rest[step] / pivot;
            sum += share * share;
            for row in step + 1..PRICES {
                rest[row] -= factor[row] * share;
                for (entry, other) in left[row][row..].iter_mut().zip(&factor[row..]) {
                    *entry -= factor[row] * other;
                }
            }
        }
        self.speed * sum.sqrt()
    }

    /// Returns the number of steps that the model was fitted to.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Fits the model to a step that ran. A duration that is not a positive finite number is ignored.
    pub fn observe(&mut self, shape: &StepShape, seconds: f64) {
        if !(seconds > 0.0 && seconds.is_finite()) || shape.candidates == 0 {
            return;
        }
        let units = shape.units();
        if self.steps == 0 {
            self.speed = seconds / (self.seconds_of(&units) / self.speed);
        }
        self.steps += 1;
        let expected = self.seconds_of(&units);
        let ratio = (seconds / expected).ln();
        self.suspects.retain_mut(|(_, age)| {
            *age += 1;
            *age <= SUSPECTS
        });
        let known = || self.error_between(shape, &StepShape::default()) / expected < WELL_KNOWN;
        // A step whose expected duration is not yet reliable cannot be an outlier.
        if ratio.abs() > OUTLIER * self.noise && known() {
            self.suspects.push((ratio, 0));
            self.change_speed();
            return;
        }
        self.noise = (self.noise + 0.02 * (1.25 * ratio.abs() - self.noise)).clamp(LEAST_NOISE, MOST_NOISE);
        // Follows slow changes of the machine's speed.
        self.speed *= (0.02 * ratio.clamp(-0.3, 0.3)).exp();
        let value = seconds / self.speed;
        let weight = (self.noise * value).powi(-2);
        self.recent.add(&units, value, weight, MEMORY);
        self.long_term.add(&units, value, weight, LONG_MEMORY);
        if self.steps <= FIRST_STEPS || self.steps.is_multiple_of(FIT_EVERY) {
            self.fit();
        }
    }

    /// Fits the prices: least squares without negative prices, by coordinate descent from the last prices.
    fn fit(&mut self) {
        let matrix = self.matrix();
        let mut residual: Vector = std::array::from_fn(|row| {
            let measured = self.recent.right[row] + LONG_SHARE * self.long_term.right[row];
            let wanted = measured + self.prior[row] * spread(row).powi(-2);
            let reached: f64 = matrix[row].iter().zip(&self.prices).map(|(entry, price)| entry * price).sum();
            wanted - reached
        });
        let rounds = if self.steps <= FIRST_STEPS { FIRST_ROUNDS } else { ROUNDS };
        for _ in 0..rounds {
            let mut largest: f64 = 0.0;
            for (index, entries) in matrix.iter().enumerate() {
                let free = self.prices[index] + residual[index] / entries[index];
                // Only the correction for rows of prompts may be negative, because these rows need no logits.
                let price = if index == READ_ROW { free } else { free.max(0.0) };
                let change = price - self.prices[index];
                if change == 0.0 {
                    continue;
                }
                self.prices[index] = price;
                for (rest, entry) in residual.iter_mut().zip(entries) {
                    *rest -= entry * change;
                }
                largest = largest.max(change.abs() / spread(index));
            }
            if largest < SETTLED {
                break;
            }
        }
    }

    /// Changes the speed if most of the last steps were outliers on one side.
    fn change_speed(&mut self) {
        let mut ratios: Vec<f64> = self.suspects.iter().map(|&(ratio, _)| ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let slower = ratios.iter().filter(|&&ratio| ratio > 0.0).count();
        if slower >= CHANGE || ratios.len() - slower >= CHANGE {
            self.speed *= ratios[ratios.len() / 2].exp();
            self.suspects.clear();
        }
    }
}
