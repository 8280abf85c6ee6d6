//! Times the benchmark's steps for one batch size and one context length.

use std::time::{Duration, Instant};

use flexdraft::acceptance::Rule;
use flexdraft::decode::EngineOptions;
use flexdraft::device::{
    Device, DeviceError, DraftRows, DraftTables, DraftingPass, QkTransform, RowKind, SlotRows, StepTables,
    Verification, VerifyRows,
};
use flexdraft::layout::{GroupSet, Pass, Prediction, SequenceRows};
use flexdraft::model::Model;
use flexdraft::model::forward::Workspace;
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::Tensor;

use super::steps::{PassShape, Step};
use crate::error::Result;

static GREEDY: SamplingParams = SamplingParams::GREEDY;

const PAGE_SIZE: usize = 16;

/// Number of untimed steps that run before the timed steps.
const WARM_UP: usize = 2;

/// Number of rows of noise that one call writes to the KV cache, and the number of distinct rows among them.
const FILLED_ROWS: usize = 2048;
const DISTINCT_ROWS: usize = 32;

/// The number of repetitions of a timed step: at least `least`, then more until `time` has passed, and at most `most`.
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    pub least: usize,
    pub most: usize,
    pub time: Duration,
}

impl Repeats {
    pub const USUAL: Self = Self { least: 7, most: 25, time: Duration::from_millis(400) };
    pub const ONCE: Self = Self { least: 1, most: 1, time: Duration::ZERO };
    pub const QUICK: Self = Self { least: 3, most: 3, time: Duration::ZERO };
}

/// Medians of a step's times, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Time of the whole step, until its results have been read.
    pub step: f64,
    /// Time until the host has submitted the whole step; on a synchronous device this includes the work itself.
    pub submit: f64,
    /// Number of repetitions that the medians are taken over.
    pub steps: usize,
}

/// A benchmark case: a KV cache that holds the context of every sequence and has room for one more step.
pub struct Case<'a, D: Device> {
    model: &'a Model<D>,
    cache: D::Cache,
    pages: Vec<Vec<u32>>,
    context: usize,
}

impl<'a, D: Device> Case<'a, D> {
    /// Creates a case of `batch` sequences with `context` cached positions each, and room for `more` positions.
    pub fn new(model: &'a Model<D>, batch: usize, context: usize, more: usize) -> Result<Self> {
        let pages_each = context.saturating_add(more).saturating_add(1).div_ceil(PAGE_SIZE);
        let limit = batch.saturating_mul(pages_each);
        // The device is prepared as an engine prepares it: it then has measured its matrix products, and can choose the
        // faster ones.
        model.prepare(batch, EngineOptions::default().prefill_rows)?;
        let cache = model.new_cache(limit, PAGE_SIZE)?;
        let page = |index: usize| {
            let wide = DeviceError::OutOfRange { operation: "bench", what: "page id", index, limit };
            u32::try_from(index).map_err(|_| wide)
        };
        let pages = (0..batch)
            .map(|i| (i * pages_each..(i + 1) * pages_each).map(page).collect())
            .collect::<Result<Vec<Vec<u32>>, DeviceError>>()?;
        let mut case = Self { model, cache, pages, context };
        case.fill()?;
        Ok(case)
    }

    /// Writes noise to every position of the context. Zeros would distort the times: a CPU's operating system backs
    /// memory that was never written with a single page, which reads faster than real memory, and a GPU that
    /// multiplies zeros needs less power and runs faster.
    fn fill(&mut self) -> Result<()> {
        let Self { model, cache, pages, context } = self;
        let (device, config) = (model.device(), model.config());
        let cols = config.attention.qkv_cols();
        let rows = FILLED_ROWS.min(pages.len().saturating_mul(*context));
        let mut qkv = device.new_buffer(cols);
        device.resize(&mut qkv, rows)?;
        for (first, seed) in (0..rows.min(DISTINCT_ROWS)).zip(1..) {
            let too_much = || DeviceError::OutOfMemory { what: "noise", bytes: cols.saturating_mul(4) };
            let noise = Tensor::from_f32(&[cols], noise(seed, cols)).ok_or_else(too_much)?;
            let noise = device.new_vector(&noise)?;
            for row in (first..rows).step_by(DISTINCT_ROWS) {
                device.fill_rows(&noise, row..row + 1, &mut qkv)?;
            }
        }
        let transform = QkTransform {
            shape: config.attention,
            norms: None,
            eps: config.rms_norm_eps,
            rope: &config.rope,
        };
        for pages in pages.chunks(FILLED_ROWS) {
            let each = FILLED_ROWS / pages.len();
            for start in (0..*context).step_by(each.max(1)) {
                let candidates = each.min(*context - start);
                let sequence =
                    |pages| SequenceRows { pages, start, candidates, groups: Vec::new(), slots: 0 };
                let pass = Pass { sequences: pages.iter().map(|pages| sequence(pages)).collect() };
                device.run(|| {
                    let (mut pass, _) = device.begin(StepTables::new(&pass, &[]), cache)?;
                    (0..config.layers).try_for_each(|layer| {
                        device.norm_rope_append(
                            &transform,
                            &mut pass,
                            RowKind::Candidates,
                            &mut qkv,
                            layer,
                            cache,
                        )
                    })
                })?;
            }
        }
        Ok(())
    }

    /// Times a step that begins after `start` positions. The step is repeated without committing anything.
    pub fn time(&mut self, step: &Step, start: usize, repeats: Repeats) -> Result<Times> {
        let Self { model, cache, pages, .. } = self;
        let passes = passes(step, pages, start);
        let rows = StepRows::new(model, step, &passes);
        let empty = Pass::default();
        let (pass, drafting) =
            passes.split_first().map_or((&empty, None), |(pass, more)| (pass, more.first()));
        let sequences = rows.sequences(step, pass);
        // A device that knows its verdicts before it drafts (the CPU device) gets the one accepted length that occurs,
        // 0.
        let known = rows.drafts(step, &passes, GroupSet::all(0));
        let unknown = rows.drafts(step, &passes, GroupSet::NONE);
        let place = if rows.joined { SlotRows::Logits } else { SlotRows::Pass { first_logits: 0 } };
        let [known, unknown] = [&known, &unknown].map(|drafts| DraftTables { drafts, rows: place });
        let drafting = drafting.map(|pass| (DraftingPass { pass, verdicts: &rows.verdicts }, unknown));
        let tables = StepTables {
            pass,
            tokens: &rows.tokens,
            logits_rows: &rows.logits,
            sequences: &sequences,
            vocab: model.config().vocab_size,
            drafts: if drafting.is_some() { DraftTables::NONE } else { known },
            drafting,
        };
        let mut memory = Memory::new(model);
        let (mut steps, mut submits) = (Vec::new(), Vec::new());
        let began = Instant::now();
        // The first step allocates memory and picks algorithms, and may slow down the second step.
        for i in 0..repeats.most.saturating_add(WARM_UP) {
            if i >= repeats.least + WARM_UP && began.elapsed() >= repeats.time {
                break;
            }
            let start_of_step = Instant::now();
            let submitted = model.device().run(|| {
                let mut verification = memory.submit(model, tables, known, rows.joined, cache)?;
                let submitted = start_of_step.elapsed();
                verification.read()?;
                Ok::<_, DeviceError>(submitted)
            })?;
            if i >= WARM_UP {
                steps.push(start_of_step.elapsed().as_secs_f64());
                submits.push(submitted.as_secs_f64());
            }
        }
        Ok(Times { steps: steps.len(), step: median(steps), submit: median(submits) })
    }
}

/// The activations, logits and results of a timed step.
struct Memory<D: Device> {
    work: Workspace<D>,
    target_logits: D::Buffer,
    draft_logits: D::Buffer,
    results: D::Results,
}

impl<D: Device> Memory<D> {
    fn new(model: &Model<D>) -> Self {
        Self {
            work: model.new_workspace(),
            target_logits: model.new_logits(),
            draft_logits: model.new_logits(),
            results: model.device().new_results(),
        }
    }

    /// Submits a step to the device without waiting for its results, and returns its verification. A device that knows
    /// its verdicts before it drafts makes the drafts `known`.
    fn submit<'a>(
        &'a mut self,
        model: &'a Model<D>,
        tables: StepTables<'a, D::Buffer>,
        known: DraftTables<'_>,
        joined: bool,
        cache: &mut D::Cache,
    ) -> Result<D::Verification<'a>, DeviceError> {
        let Self { work, target_logits, draft_logits, results } = self;
        let of_step = model.forward(tables, cache, work)?;
        let target_logits = if joined { &mut *draft_logits } else { target_logits };
        model.logits(tables.logits_rows, work, target_logits)?;
        let mut verification = model.device().verify(of_step, target_logits, results)?;
        let mut drafts = tables.drafts;
        if let Some((pass, unknown)) = tables.drafting {
            model.draft_forward(pass, &mut verification, cache, work)?;
            drafts = if verification.verdicts_if_ready().is_some() { known } else { unknown };
        }
        if !drafts.drafts.is_empty() {
            model.draft(drafts, &mut verification, work, draft_logits)?;
        }
        Ok(verification)
    }
}

/// The rows of a timed step.
struct StepRows {
    tokens: Vec<u32>,
    /// The rows of the verifying pass whose logits are computed before the verification.
    logits: Vec<usize>,
    /// Whether `logits` include the slots of all mask groups, because one product of the LM head computes the logits of
    /// candidates and slots.
    joined: bool,
    /// The draft tokens that each sequence verifies.
    drafted: Vec<u32>,
    /// For each sequence of a drafting pass, the index of the verdict that its mask group follows.
    verdicts: Vec<usize>,
    /// Whether a slot of a mask group predicts the token at its own or at the next position.
    prediction: Prediction,
}

impl StepRows {
    fn new<D: Device>(model: &Model<D>, step: &Step, passes: &[Pass<'_>]) -> Self {
        let prediction = model.prediction();
        let (Some(pass), Some(shape)) = (passes.first(), step.passes.first()) else {
            let (tokens, logits, drafted, verdicts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            return Self { tokens, logits, joined: false, drafted, verdicts, prediction };
        };
        let batch = pass.sequences.len();
        let last = shape.candidates - step.logits..shape.candidates;
        let mut logits: Vec<usize> =
            (0..batch).flat_map(|i| last.clone().map(move |row| i * shape.candidates + row)).collect();
        let slots = batch * shape.groups.len() * step.drafts;
        let joined = model.joins_head_products(logits.len(), slots, batch * step.drafts);
        if joined {
            let groups = (0..batch).flat_map(|i| shape.groups.iter().map(move |&k| (i, k)));
            let groups = groups.filter_map(|(i, k)| pass.group_rows(i, k));
            logits.extend(groups.flat_map(|group| group.skip(1)));
        }
        // No vocabulary has the draft tokens' id, so the accepted length is 0.
        let drafted = vec![u32::MAX; step.verified];
        let tokens = vec![1; batch * shape.candidates];
        Self { tokens, logits, joined, drafted, verdicts: (0..batch).collect(), prediction }
    }

    /// Returns the device's input for verifying the drafts of each sequence in `pass`.
    fn sequences<B>(&self, step: &Step, pass: &Pass<'_>) -> Vec<VerifyRows<'_, B>> {
        let request = |(i, rows): (usize, &SequenceRows<'_>)| VerifyRows {
            first_row: i * step.logits,
            draft: &self.drafted,
            draft_logits: None,
            edits: None,
            sampling: &GREEDY,
            rule: Rule::Match,
            seed: 0,
            start: rows.start,
        };
        pass.sequences.iter().enumerate().map(request).collect()
    }

    /// Returns the rows and settings from which each sequence of a step is drafted: the mask group of the longest
    /// accepted length, as if it were the group for the lengths in `groups`.
    fn drafts(&self, step: &Step, passes: &[Pass<'_>], groups: GroupSet) -> Vec<DraftRows<'static>> {
        let Some(pass) = passes.last().filter(|_| step.drafts > 0) else { return Vec::new() };
        let of_each = step.passes.last().map_or(0, |shape| shape.groups.len());
        let candidates = pass.sequences.len() * step.logits;
        let request = |sequence| {
            let in_pass = pass.group_rows(sequence, step.verified)?.start;
            // Each sequence has one mask group per accepted length, in ascending order; the drafts come from the last
            // group, which belongs to the full length.
            let in_logits = candidates + ((sequence + 1) * of_each - 1) * step.drafts;
            Some(DraftRows {
                sequence,
                groups,
                first_row: if self.joined { in_logits } else { in_pass },
                slots: step.drafts + 1,
                prediction: self.prediction,
                processors: None,
                sampling: &GREEDY,
                rule: Rule::Match,
                seed: 0,
            })
        };
        (0..pass.sequences.len()).filter_map(request).collect()
    }
}

/// Returns the passes of a step over all sequences, which have `start` cached positions each.
fn passes<'a>(step: &Step, pages: &'a [Vec<u32>], start: usize) -> Vec<Pass<'a>> {
    let rows = |pages: &'a [u32], shape: &PassShape| SequenceRows {
        pages,
        start,
        candidates: shape.candidates,
        groups: shape.groups.clone(),
        slots: shape.slots,
    };
    let pass = |shape| Pass { sequences: pages.iter().map(|pages| rows(pages, shape)).collect() };
    step.passes.iter().map(pass).collect()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
}

/// Returns `len` pseudo-random numbers from −2 to 2, from a xorshift generator.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 22) as f32 - 2.0
    };
    std::iter::repeat_with(next).take(len).collect()
}
