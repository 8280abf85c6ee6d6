//! Chained Calibration: draws the tokens of a draft one after the other, each from logits that are corrected for the
//! token of the previous slot.

use std::ops::Range;

use super::buffer::CpuBuffer;
use super::linear::{CpuLinear, Output};
use super::pool::Pool;
use super::product::{Matrix, products};
use super::sampling::{self, Slots};
use super::simd::{Kernel, LANES, Simd, Vectors};
use super::{check, elementwise};
use crate::device::{Chain, ChainScores, DeviceError, DraftToken, Precision};

const OPERATION: &str = "draft";

/// Cost of choosing a slot's most likely ids, in multiply-adds per id of the vocabulary.
const CHOOSE_WORK: usize = 2;

/// Draws the tokens of `drafts` slot by slot: `bonuses[i]` comes before slot 1 of draft i. Each row of `logits` is
/// replaced by the row that its token is drawn from, which is −∞ outside the slot's most likely ids. Activations are
/// rounded to `precision`.
pub(super) fn draft(
    (pool, vectors): (&Pool, Vectors),
    precision: Precision,
    chain: &Chain<'_, CpuBuffer, CpuLinear>,
    logits: &mut CpuBuffer,
    drafts: &[Slots<'_>],
    bonuses: &[u32],
) -> Result<Vec<Vec<DraftToken>>, DeviceError> {
    sampling::check_slots(logits, drafts)?;
    check::shape(OPERATION, "bonus tokens", &[drafts.len()], &[bonuses.len()])?;
    let compute = (pool, vectors);
    let likeliest = Likeliest::choose(pool, chain.top_k, logits, drafts)?;
    let scored = Scored::new(compute, precision, chain, &likeliest)?;
    let mut tokens: Vec<Vec<DraftToken>> = drafts.iter().map(|_| Vec::new()).collect();
    let mut before: Vec<u32> = bonuses.to_vec();
    let most = drafts.iter().map(|draft| draft.rows.len()).max().unwrap_or(0);
    for slot in 1..=most {
        // The drafts that have this slot, and the index of the slot's row among all rows of all drafts.
        let (mut active, mut rows, mut first) = (Vec::new(), Vec::new(), 0);
        for (index, draft) in drafts.iter().enumerate() {
            if draft.rows.len() >= slot {
                active.push(index);
                rows.push(first + slot - 1);
            }
            first += draft.rows.len();
        }
        let last: Vec<u32> = active.iter().map(|&index| before[index]).collect();
        let factors = scored.factors(compute, precision, chain, &last, &rows)?;
        for ((&index, &row), factor) in active.iter().zip(&rows).zip(factors.rows_in(0..active.len())) {
            let draft = &drafts[index];
            let scores = vectors.run(Scores { factor, scored: scored.matrix(likeliest.range(row)) });
            let place = draft.rows.start + slot - 1;
            let values = logits.rows_in_mut(place..place + 1).next().unwrap_or_default();
            chain_row(values, likeliest.ids(row), &scores);
            let token = sampling::draw_slot(vectors, draft, slot, values);
            before[index] = token.token;
            tokens[index].push(token);
        }
    }
    Ok(tokens)
}

/// Replaces a row of calibrated logits by its chained logits: `logits + scores` for `ids`, −∞ for every other id.
fn chain_row(values: &mut [f32], ids: &[u32], scores: &[f32]) {
    let chained: Vec<f32> = ids.iter().zip(scores).map(|(&id, score)| values[id as usize] + score).collect();
    values.fill(f32::NEG_INFINITY);
    for (&id, value) in ids.iter().zip(chained) {
        values[id as usize] = value;
    }
}

/// The most likely ids of every slot, slot by slot and draft after draft.
struct Likeliest {
    ids: Vec<u32>,
    /// Number of ids per slot: the K of the [`Chain`], or the size of a smaller vocabulary.
    per_slot: usize,
}

impl Likeliest {
    fn choose(
        pool: &Pool,
        top_k: usize,
        logits: &CpuBuffer,
        drafts: &[Slots<'_>],
    ) -> Result<Self, DeviceError> {
        let per_slot = top_k.min(logits.cols());
        if per_slot == 0 {
            return Err(DeviceError::Contract {
                operation: OPERATION,
                operand: "number of ids that the chain scores",
                expected: "at least 1",
                found: top_k.to_string(),
            });
        }
        let rows: Vec<&[f32]> = drafts.iter().flat_map(|draft| logits.rows_in(draft.rows.clone())).collect();
        let mut ids = vec![0; rows.len() * per_slot];
        let work = rows.len().saturating_mul(logits.cols()).saturating_mul(CHOOSE_WORK);
        let items = ids.chunks_mut(per_slot).zip(rows).collect();
        pool.for_each(items, work, |(ids, row)| choose(row, ids));
        Ok(Self { ids, per_slot })
    }

    /// Returns the places of a slot's ids in the list of all ids; `row` counts the slots of all drafts.
    fn range(&self, row: usize) -> Range<usize> {
        row * self.per_slot..(row + 1) * self.per_slot
    }

    fn ids(&self, row: usize) -> &[u32] {
        &self.ids[self.range(row)]
    }
}

/// Fills `ids` with the ids of the largest values, in descending order; ties go to the lowest id, and NaN counts as −∞.
/// There are at least as many values as ids.
fn choose(values: &[f32], ids: &mut [u32]) {
    let value = |id: u32| if values[id as usize].is_nan() { f32::NEG_INFINITY } else { values[id as usize] };
    let mut found = 0;
    for id in 0..values.len() as u32 {
        // A new id comes after all ids with an equal value that were found before it, because they are lower.
        if found == ids.len() && value(id) <= value(ids[found - 1]) {
            continue;
        }
        let place = ids[..found].partition_point(|&other| value(other) >= value(id));
        found = (found + 1).min(ids.len());
        ids[place..found].rotate_right(1);
        ids[place] = id;
    }
}

/// The factors of the chain's scores that are known before the first token is drawn.
struct Scored {
    /// A row for each most likely id x: B · embed(x), or row x of the LM head.
    ids: CpuBuffer,
    /// The product of the score's matrix W1 with each slot's hidden row, if the scores depend on the hidden row.
    hidden: Option<CpuBuffer>,
}

impl Scored {
    fn new(
        compute: (&Pool, Vectors),
        precision: Precision,
        chain: &Chain<'_, CpuBuffer, CpuLinear>,
        likeliest: &Likeliest,
    ) -> Result<Self, DeviceError> {
        let count = likeliest.ids.len();
        match chain.scores {
            ChainScores::Pair { after, .. } => {
                let x = embedded(precision, chain.embed, &likeliest.ids)?;
                let mut ids = CpuBuffer::new(after.out_cols(), Precision::F32);
                ids.resize(count)?;
                after.apply(compute, &x, 0..count, Output::Store, (&mut ids, 0))?;
                Ok(Self { ids, hidden: None })
            }
            ChainScores::Hidden { rows, hidden_half, lm_head, .. } => {
                let slots = count / likeliest.per_slot;
                let mut hidden = CpuBuffer::new(hidden_half.out_cols(), precision);
                hidden.resize(slots)?;
                hidden_half.apply(compute, rows, 0..slots, Output::Store, (&mut hidden, 0))?;
                Ok(Self { ids: embedded(precision, lm_head, &likeliest.ids)?, hidden: Some(hidden) })
            }
        }
    }

    /// Returns the factors of the chain's scores that depend on the tokens `before`: a row for each of the slots
    /// `rows`.
    fn factors(
        &self,
        compute: (&Pool, Vectors),
        precision: Precision,
        chain: &Chain<'_, CpuBuffer, CpuLinear>,
        before: &[u32],
        rows: &[usize],
    ) -> Result<CpuBuffer, DeviceError> {
        let all = 0..before.len();
        let x = embedded(precision, chain.embed, before)?;
        let factors = match (&chain.scores, &self.hidden) {
            (ChainScores::Hidden { before_half, output, .. }, Some(hidden)) => {
                let mut own = CpuBuffer::new(before_half.out_cols(), precision);
                own.resize(before.len())?;
                before_half.apply(compute, &x, all.clone(), Output::Store, (&mut own, 0))?;
                let mut inner = CpuBuffer::new(hidden.cols(), precision);
                elementwise::gather(hidden, rows, &mut inner)?;
                let owner: Vec<usize> = all.clone().collect();
                elementwise::silu_add(compute, &own, &owner, &mut inner)?;
                let mut factors = CpuBuffer::new(output.out_cols(), Precision::F32);
                factors.resize(before.len())?;
                output.apply(compute, &inner, all, Output::Store, (&mut factors, 0))?;
                factors
            }
            (ChainScores::Pair { before: layer, .. }, _)
            | (ChainScores::Hidden { before_half: layer, .. }, None) => {
                let mut factors = CpuBuffer::new(layer.out_cols(), Precision::F32);
                factors.resize(before.len())?;
                layer.apply(compute, &x, all, Output::Store, (&mut factors, 0))?;
                factors
            }
        };
        check::cols(OPERATION, "rows of scored ids", &self.ids, factors.cols())?;
        Ok(factors)
    }

    fn matrix(&self, range: Range<usize>) -> Matrix<'_, f32> {
        self.ids.matrix(range)
    }
}

/// Returns the embeddings of `ids`, which are rows of `table`.
fn embedded(precision: Precision, table: &CpuLinear, ids: &[u32]) -> Result<CpuBuffer, DeviceError> {
    let mut x = CpuBuffer::new(table.in_cols(), precision);
    x.resize(ids.len())?;
    table.embed(ids, 0, &mut x)?;
    Ok(x)
}

/// Computes the dot product of one row with each row of a matrix.
struct Scores<'a> {
    factor: &'a [f32],
    scored: Matrix<'a, f32>,
}

impl Kernel for Scores<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { factor, scored } = self;
        let mut scores = vec![0.0; scored.rows];
        let x: &[&[f32]] = &[factor];
        products::<S, f32, f32, LANES>(simd, x, scored, &mut |_, n, sums| {
            scores[n..n + sums.len()].copy_from_slice(sums);
        });
        scores
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The chosen ids are the first ids of a stable sort in descending order.
        #[test]
        fn chosen_ids_are_the_first_of_a_stable_sort(
            values in prop::collection::vec(
                prop_oneof![
                    6 => (-4i8..5).prop_map(f32::from),
                    2 => -4f32..4.0,
                    1 => prop::sample::select(vec![f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0]),
                ],
                1..80,
            ),
            count in 1usize..40,
        ) {
            let value = |id: u32| {
                let value = values[id as usize];
                // Adding 0 turns −0 into 0, so that `total_cmp` treats them as equal.
                if value.is_nan() { f32::NEG_INFINITY } else { value + 0.0 }
            };
            let mut sorted: Vec<u32> = (0..values.len() as u32).collect();
            sorted.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
            let mut ids = vec![0; count.min(values.len())];
            choose(&values, &mut ids);
            prop_assert_eq!(&ids[..], &sorted[..ids.len()]);
        }
    }

    #[test]
    fn ids_outside_the_chain_are_never_drawn() {
        let mut values = [1.0, 2.0, 3.0, f32::NAN];
        chain_row(&mut values, &[2, 0], &[-1.0, 0.5]);
        assert_eq!(values, [1.5, f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY]);
    }
}
