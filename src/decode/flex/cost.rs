//! The cost model: the duration of a step from what the step runs.
//!
//! The model is a sum of parts shaped like a machine: a constant per step and per pass (weights are read once, kernels are
//! launched), a price per row that changes between powers of two (a pass is bound by reading weights up to some number of
//! rows, and by arithmetic beyond), and a price per cached position. Mask rows run in the tail layers only, on top of the
//! candidate rows, so that they are free as long as the weights bound the tail.
//!
//! Prices are never negative, so that a pass never gets cheaper with more rows, and the price of a row never falls. Least squares fit the
//! prices to the steps that run; old steps lose weight. One factor on all prices follows changes of the whole machine's
//! speed.

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

/// Number of steps after which a step counts for 1/e in the fit, and the same number for the memory of all steps, which has
/// a small share in the fit: it knows the steps that have not been taken for long.
const MEMORY: f64 = 300.0;
const LONG_MEMORY: f64 = 20_000.0;
const LONG_SHARE: f64 = 0.3;
/// Number of rounds of coordinate descent after each of the first steps, and after each later step. Every fit begins at
/// the prices of the fit before.
const FIRST_ROUNDS: usize = 40;
const ROUNDS: usize = 8;
const FIRST_STEPS: u64 = 64;
/// Number of steps between two fits, after the first steps.
const FIT_EVERY: u64 = 4;
/// Change of a price in a round, as a fraction of its [`spread`], below which further rounds change nothing.
const SETTLED: f64 = 1e-9;
/// Smallest and largest relative standard deviation of a step's duration that the model believes in.
const LEAST_NOISE: f64 = 0.03;
const MOST_NOISE: f64 = 0.3;
/// Number of standard deviations from which a duration is an outlier.
const OUTLIER: f64 = 3.5;
/// Relative error of an expected duration up to which the duration is well known.
const WELL_KNOWN: f64 = 0.1;
/// Number of outliers on one side, among the last [`SUSPECTS`] steps, that are a change of the machine's speed.
const CHANGE: usize = 4;
const SUSPECTS: usize = 6;

/// What a step runs, in the numbers that its duration depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepShape {
    /// Number of sequences.
    pub sequences: usize,
    /// Prospect rows of the pass that verifies, rows of prompts included.
    pub candidates: usize,
    /// How many of the candidate rows read prompts.
    pub reads: usize,
    /// Mask rows of the pass that verifies.
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

    /// Returns the step with one row in the place of the prompts' rows.
    pub(super) fn without_reads(&self) -> Self {
        Self { candidates: (self.candidates - self.reads).max(1), reads: 0, ..*self }
    }

    /// Returns, for each price, how many of its units the step has.
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
    /// Seconds of one unit of each part, before `speed`.
    prices: Vector,
    /// What the prices were before anything was measured.
    prior: Vector,
    lately: Equations,
    ever: Equations,
    /// Factor on all prices.
    speed: f64,
    /// Relative standard deviation of a step's duration around the model.
    noise: f64,
    /// Logarithms of seen over predicted durations of the last outliers, and how many steps ago they were.
    suspects: Vec<(f64, usize)>,
    /// Number of steps that the model has seen.
    steps: u64,
}

impl Default for CostModel {
    /// Returns a model of an unknown machine. Its first step sets the speed; the relations between the prices begin as on
    /// a machine that computes some tens of rows in the time to read the weights, with errors as large as the prices.
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
            lately: Equations::new(),
            ever: Equations::new(),
            speed: 1.0,
            noise: 0.1,
            suspects: Vec::new(),
            steps: 0,
        }
    }
}

/// Returns how far a price may be from its prior: the standard deviation before anything was measured. A row costs no more
/// than the step without rows; above a number of rows, no more than that share of the step.
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
        self.of_units(&units)
    }

    fn of_units(&self, units: &Vector) -> f64 {
        let sum: f64 = self.prices.iter().zip(units).map(|(price, unit)| price * unit).sum();
        let least = 0.2 * self.prices[STEP].abs();
        self.speed * sum.max(least)
    }

    /// Returns the symmetric matrix of the fitted equations, with the prior.
    fn matrix(&self) -> [Vector; PRICES] {
        let mut matrix = [[0.0; PRICES]; PRICES];
        for (row, entries) in matrix.iter_mut().enumerate() {
            let measured = self.lately.matrix[row].iter().zip(&self.ever.matrix[row]);
            for (entry, (lately, ever)) in entries.iter_mut().zip(measured) {
                *entry = lately + LONG_SHARE * ever;
            }
            entries[row] += spread(row).powi(-2);
        }
        matrix
    }

    /// Returns the standard deviation of the error of the difference between two steps' expected durations, in seconds.
    pub fn error_between(&self, one: &StepShape, other: &StepShape) -> f64 {
        let (one, other) = (one.units(), other.units());
        let mut rest: Vector = std::array::from_fn(|index| one[index] - other[index]);
        // The quadratic form of the inverse matrix, by Cholesky's factors: |L⁻¹u|². Only the upper triangle of what is
        // left of the matrix is kept.
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

    /// Fits the model to a step that ran. A duration that is no positive number is ignored.
    pub fn observe(&mut self, shape: &StepShape, seconds: f64) {
        if !(seconds > 0.0 && seconds.is_finite()) || shape.candidates == 0 {
            return;
        }
        let units = shape.units();
        if self.steps == 0 {
            self.speed = seconds / (self.of_units(&units) / self.speed);
        }
        self.steps += 1;
        let expected = self.of_units(&units);
        let ratio = (seconds / expected).ln();
        self.suspects.retain_mut(|(_, age)| {
            *age += 1;
            *age <= SUSPECTS
        });
        let known = || self.error_between(shape, &StepShape::default()) / expected < WELL_KNOWN;
        // What is hardly known yet cannot be an outlier.
        if ratio.abs() > OUTLIER * self.noise && known() {
            self.suspects.push((ratio, 0));
            self.change_speed();
            return;
        }
        self.noise = (self.noise + 0.02 * (1.25 * ratio.abs() - self.noise)).clamp(LEAST_NOISE, MOST_NOISE);
        // Slow changes of the whole machine.
        self.speed *= (0.02 * ratio.clamp(-0.3, 0.3)).exp();
        let value = seconds / self.speed;
        let weight = (self.noise * value).powi(-2);
        self.lately.add(&units, value, weight, MEMORY);
        self.ever.add(&units, value, weight, LONG_MEMORY);
        if self.steps <= FIRST_STEPS || self.steps.is_multiple_of(FIT_EVERY) {
            self.fit();
        }
    }

    /// Fits the prices: least squares without negative prices, by coordinate descent from the last prices.
    fn fit(&mut self) {
        let matrix = self.matrix();
        let mut residual: Vector = std::array::from_fn(|row| {
            let measured = self.lately.right[row] + LONG_SHARE * self.ever.right[row];
            let wanted = measured + self.prior[row] * spread(row).powi(-2);
            let reached: f64 = matrix[row].iter().zip(&self.prices).map(|(entry, price)| entry * price).sum();
            wanted - reached
        });
        let rounds = if self.steps <= FIRST_STEPS { FIRST_ROUNDS } else { ROUNDS };
        for _ in 0..rounds {
            let mut largest: f64 = 0.0;
            for (index, entries) in matrix.iter().enumerate() {
                let free = self.prices[index] + residual[index] / entries[index];
                // Only the correction for rows of prompts may be negative: they need no logits.
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
