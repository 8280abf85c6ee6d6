//! The oracle: it knows the machine and every match length, so its result is about an upper bound for every policy.

use flexdraft::decode::{BatchView, Choice, SequenceView};
use flexdraft::layout::GroupSet;

use crate::load::Kind;
use crate::machine::{Machine, Rows};
use crate::seat::Seat;

/// Chooses with knowledge of the machine and of all match lengths, at a price of `rate` tokens per second.
///
/// It verifies only the draft tokens that match, and builds only the mask group that will be used. For each number of
/// drafts it drafts where the next match is longest, in the verification pass or in a separate pass, and chooses the
/// number with the most tokens minus the price of the step's time.
#[derive(Clone, Copy, Debug)]
pub struct Oracle {
    /// Tokens per second: the price of time.
    pub rate: f64,
}

impl Oracle {
    pub(crate) fn choose(
        &self,
        seats: &[&Seat<'_>],
        batch: &BatchView<'_>,
        machine: &Machine,
        read_before: usize,
    ) -> Vec<Choice> {
        let views = batch.sequences;
        let verified = |index: usize| {
            let seat = seats[index];
            match seat.kind {
                Kind::MustDraft => views[index].verify_len,
                _ => seat.draft().map_or(0, |draft| draft.matches),
            }
        };
        let rows = base_rows(seats, views, read_before, verified);
        let accepted = |index: usize| {
            let matches = seats[index].draft().map_or(0, |draft| draft.matches);
            matches.min(verified(index))
        };
        let row_price = row_price(self.rate, machine, &rows);
        let gain = |index: usize| {
            let seat = seats[index];
            if seat.kind == Kind::MayNotDraft {
                return f64::NEG_INFINITY;
            }
            if seat.kind == Kind::MustDraft {
                return f64::INFINITY;
            }
            let next = if views[index].reads > 0 { seat.at } else { seat.at + accepted(index) + 1 };
            let matches = seat.transcript.get(next).map_or(0, |draft| draft.matches) as f64;
            matches * (1.0 - row_price)
        };
        let mut order: Vec<usize> = (0..seats.len()).filter(|&index| gain(index) > 0.0).collect();
        order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)));
        let must = order.iter().filter(|&&index| gain(index).is_infinite()).count();
        let mut best = (f64::NEG_INFINITY, 0, false);
        for apart in [false, true] {
            let mut drafting = rows.clone();
            let mut gains = 0.0;
            for count in 0..=order.len() {
                if count > 0 {
                    let index = order[count - 1];
                    if apart {
                        drafting[index].apart = true
                    } else {
                        drafting[index].groups = 1
                    }
                    gains += Some(gain(index)).filter(|gain| gain.is_finite()).unwrap_or(0.0);
                }
                let value = gains - self.rate * machine.seconds(&drafting);
                if count >= must && value > best.0 {
                    best = (value, count, apart);
                }
            }
        }
        let (_, count, apart) = best;
        let mut choices: Vec<Choice> = (0..views.len())
            .map(|_| Choice { verify_len: 0, groups: GroupSet::NONE, draft: false })
            .collect();
        for (index, choice) in choices.iter_mut().enumerate().take(seats.len()) {
            choice.verify_len = verified(index);
        }
        for &index in &order[..count] {
            choices[index].draft = true;
            if !apart {
                choices[index].groups = GroupSet::NONE.with(accepted(index));
            }
        }
        choices
    }
}

/// Returns the rows of a step without drafts, which verifies `verified` tokens of each sequence and reads all prompts.
pub(crate) fn base_rows(
    seats: &[&Seat<'_>],
    views: &[SequenceView<'_>],
    read_before: usize,
    verified: impl Fn(usize) -> usize,
) -> Vec<Rows> {
    let of_seat = |(index, seat): (usize, &&Seat<'_>)| {
        let (reads, logits) = (views[index].reads, verified(index) + 1);
        let candidates = if reads > 0 { reads } else { logits };
        Rows { candidates, logits, slots: views[index].block_size, cached: seat.cached, ..Rows::default() }
    };
    let of_other = |view: &SequenceView<'_>| Rows {
        candidates: view.reads,
        slots: view.block_size,
        cached: read_before,
        ..Rows::default()
    };
    let others = views[seats.len()..].iter().map(of_other);
    seats.iter().enumerate().map(of_seat).chain(others).collect()
}

/// Returns the price of a row in tokens, at a price of time of `rate` tokens per second: the mean price of two more rows per
/// sequence.
pub(crate) fn row_price(rate: f64, machine: &Machine, rows: &[Rows]) -> f64 {
    let more: Vec<Rows> = rows
        .iter()
        .map(|row| Rows { candidates: row.candidates + 2, logits: row.logits + 2, ..*row })
        .collect();
    rate * (machine.seconds(&more) - machine.seconds(rows)) / (2 * rows.len().max(1)) as f64
}
