//! The slots of blocks as a chain sees them: their most likely ids with calibrated logits, and their hidden rows.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::drafter::{Drafter, SlotFactors};
use crate::loss::{Factor, logits_in_chunks};
use crate::shortlist::Shortlist;

/// Number of most likely ids per slot that a chain learns from, at most. Drafting uses fewer; the others teach the
/// chain to tell an id from more alternatives.
pub const TRAINED_IDS: usize = 32;

/// The most likely ids of rows of logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likeliest {
    /// Number of ids per row.
    pub per_row: usize,
    /// The ids, row by row; the ids of a row are in descending order of their logits, ties with the lowest id first.
    pub ids: Vec<u32>,
    /// The logit of each id.
    pub logits: Vec<f32>,
}

impl Likeliest {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len() / self.per_row.max(1)
    }

    /// Returns the ids and the logits of a row, at most `count` of them.
    pub fn row(&self, row: usize, count: usize) -> (&[u32], &[f32]) {
        let (first, len) = (row * self.per_row, count.min(self.per_row));
        let part = first.min(self.ids.len())..(first + len).min(self.ids.len());
        (&self.ids[part.clone()], &self.logits[part])
    }

    /// Returns the given rows with at most `count` ids per row.
    pub fn select(&self, rows: impl Iterator<Item = usize>, count: usize) -> Self {
        let mut part = Self { per_row: count.min(self.per_row), ..Self::default() };
        for row in rows {
            let (ids, logits) = self.row(row, count);
            part.ids.extend(ids);
            part.logits.extend(logits);
        }
        part
    }

    /// Adds rows with the same number of ids per row.
    pub fn extend(&mut self, more: &Self) {
        self.per_row = more.per_row;
        self.ids.extend(&more.ids);
        self.logits.extend(&more.logits);
    }
}

/// Returns the `count` most likely ids of each row of logits, the sum of the factors' products; NaN counts as −∞.
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn likeliest(factors: &[Factor<'_>], shortlist: &Shortlist, count: usize) -> Result<Likeliest> {
    let mut all = Likeliest { per_row: count.min(shortlist.len()), ..Likeliest::default() };
    logits_in_chunks(factors, |logits| {
        let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let chosen: Vec<_> = rows.par_iter().map(|row| choose(row, all.per_row)).collect();
        for (places, row) in chosen.into_iter().zip(&rows) {
            all.logits.extend(places.iter().map(|&place| row[place as usize]));
            all.ids.extend(places.into_iter().map(|place| shortlist.id(place)));
        }
        Ok(())
    })?;
    Ok(all)
}

/// Returns the indices of the `count` largest values in descending order; ties go to the lowest index.
fn choose(values: &[f32], count: usize) -> Vec<u32> {
    let value = |index: u32| {
        let value = values[index as usize];
        if value.is_nan() { f32::NEG_INFINITY } else { value }
    };
    let mut chosen: Vec<u32> = Vec::with_capacity(count + 1);
    for index in 0..values.len() as u32 {
        if chosen.len() == count && chosen.last().is_none_or(|&last| value(index) <= value(last)) {
            continue;
        }
        let place = chosen.partition_point(|&other| value(other) >= value(index));
        chosen.insert(place, index);
        chosen.truncate(count);
    }
    chosen
}

/// The slots after slot 0 of several blocks, block after block.
#[derive(Clone, Debug)]
pub struct ChainSlots {
    /// The bonus token of each block.
    pub bonuses: Vec<u32>,
    /// Number of slots after slot 0 of a block, S − 1.
    pub slots: usize,
    /// The most likely ids of each slot, with their calibrated logits.
    pub likeliest: Likeliest,
    /// The final-normed hidden row of each slot, `[blocks · (S − 1), hidden]`, if the chain needs it.
    pub hidden: Option<Tensor>,
}

impl ChainSlots {
    /// Returns the `count` most likely ids of each slot that a drafter computed with [`Drafter::forward`], for blocks
    /// with the given bonus tokens. The hidden rows are kept if `keeps_hidden`.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn new(
        drafter: &Drafter,
        forward: &SlotFactors,
        bonuses: &[u32],
        shortlist: &Shortlist,
        count: usize,
        keeps_hidden: bool,
    ) -> Result<Self> {
        let (head, calibration) = drafter.factors(forward);
        let factors: Vec<_> = std::iter::once(head).chain(calibration).collect();
        Ok(Self {
            bonuses: bonuses.to_vec(),
            slots: drafter.block_size() - 1,
            likeliest: likeliest(&factors, shortlist, count)?,
            hidden: keeps_hidden.then(|| forward.hidden.detach()),
        })
    }

    /// Returns the slots of all parts, in order; `None` if there are no parts.
    ///
    /// # Errors
    /// Candle's errors: parts of different drafters, out of memory.
    pub fn join(parts: Vec<Self>) -> Result<Option<Self>> {
        let hidden: Vec<&Tensor> = parts.iter().filter_map(|part| part.hidden.as_ref()).collect();
        let hidden = if hidden.is_empty() { None } else { Some(Tensor::cat(&hidden, 0)?) };
        let joined = parts.into_iter().reduce(|mut all, part| {
            all.bonuses.extend(part.bonuses);
            all.likeliest.extend(&part.likeliest);
            all
        });
        Ok(joined.map(|joined| Self { hidden, ..joined }))
    }

    /// Returns the number of 4-byte elements that the slots take in memory.
    pub fn elements(&self) -> usize {
        2 * self.likeliest.ids.len() + self.hidden.as_ref().map_or(0, Tensor::elem_count)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The chosen ids are the ids of the reference crate's definition.
        #[test]
        fn the_chosen_ids_are_the_first_of_a_stable_sort(
            values in prop::collection::vec(
                prop_oneof![
                    6 => (-4i8..5).prop_map(f32::from),
                    1 => prop::sample::select(vec![f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0]),
                ],
                1..60,
            ),
            count in 1usize..40,
        ) {
            let value = |id: u32| match values[id as usize] {
                value if value.is_nan() => f32::NEG_INFINITY,
                value => value + 0.0,
            };
            let mut sorted: Vec<u32> = (0..values.len() as u32).collect();
            sorted.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
            sorted.truncate(count);
            prop_assert_eq!(choose(&values, count), sorted);
        }
    }

    #[test]
    fn listed_ids_keep_their_own_numbers() {
        let x = Tensor::new(&[[1f32], [-1.0]], &Device::Cpu).unwrap();
        let w = Tensor::new(&[[0.5f32], [2.0], [1.0]], &Device::Cpu).unwrap();
        let found = likeliest(&[Factor::new(&x, &w)], &Shortlist::of(vec![4, 7, 9]), 2).unwrap();
        assert_eq!((found.rows(), &found.ids[..]), (2, &[7, 9, 4, 9][..]));
        assert_eq!(found.logits, [2.0, 1.0, -0.5, -1.0]);
        assert_eq!(found.row(1, 1), (&[4][..], &[-0.5][..]));
        assert_eq!(found.select([1].into_iter(), 9).ids, [4, 9]);
    }
}
