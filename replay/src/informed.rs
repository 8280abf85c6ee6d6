//! The informed bound: it knows the machine's expected durations and the probability that each draft token is accepted, but
//! no match length.
//!
//! A policy that had learned everything that can be learned would know as much. The bound is not exact: it plans one step at
//! a time, and the search over the plans of a step is incomplete.

use flexdraft::decode::{BatchView, Choice};
use flexdraft::layout::GroupSet;

use crate::hindsight::Hindsight;
use crate::load::Kind;
use crate::machine::{Machine, Rows, Totals};
use crate::oracle::{base_rows, row_price};
use crate::seat::Seat;

/// The chances below which a plan has no mask group for an accepted length.
const LEAST_CHANCES: [f32; 6] = [0.0, 0.003, 0.01, 0.03, 0.1, 0.25];

/// The chance below which verifying a draft token is not considered.
const LEAST_TOKEN: f32 = 0.004;

/// The number of sums of verify lengths that are compared for a way of drafting.
const COMPARED: usize = 96;

/// Chooses with knowledge of the machine and of all acceptance probabilities, at a price of `rate` tokens per second.
///
/// It verifies the draft tokens that are most likely to be accepted, and drafts where drafts are worth most: in the
/// verification pass with groups for all accepted lengths of at least some chance, or in a separate pass. Of all numbers of
/// tokens and drafts that it compares, it chooses the numbers with the most expected tokens, less the price of the expected time.
#[derive(Clone, Copy, Debug)]
pub struct Informed<'a> {
    /// Tokens per second: the price of time.
    pub rate: f64,
    /// The acceptance probabilities of the recording.
    pub hindsight: &'a Hindsight,
}

/// A draft token that may be verified.
struct Token {
    /// The chance that the token and all earlier tokens of its draft are accepted.
    chance: f32,
    sequence: usize,
    /// The verify length that includes the token and no later token.
    length: usize,
}

/// The way in which a plan drafts.
#[derive(Clone, Copy, Debug)]
enum Way {
    Apart,
    /// In the verification pass, with groups for all accepted lengths of at least this chance.
    InPass(f32),
}

/// The best plan so far.
struct Best {
    worth: f64,
    tokens: usize,
    drafts: usize,
    way: Way,
}

/// A step and what the choice depends on.
struct Situation<'a> {
    machine: &'a Machine,
    rate: f64,
    rows: Vec<Rows>,
    /// The chances that the first j + 1 tokens of each sequence's pending draft are all accepted.
    survival: Vec<&'a [f32]>,
    /// The tokens that may be verified, by descending chance.
    tokens: Vec<Token>,
    /// The expected numbers of accepted tokens if the first tokens are verified, from no token on.
    gained: Vec<f64>,
    /// The sequences whose drafts are worth something, by descending value.
    order: Vec<usize>,
    /// The values of the drafts of the first sequences, from no sequence on.
    values: Vec<f64>,
    /// Number of sequences at the beginning of the order that must draft.
    must: usize,
    base: Totals,
}

impl Informed<'_> {
    pub(crate) fn choose(
        &self,
        seats: &[&Seat<'_>],
        batch: &BatchView<'_>,
        machine: &Machine,
        read_before: usize,
    ) -> Vec<Choice> {
        let views = batch.sequences;
        let fixed = |index: usize| match seats[index].kind {
            Kind::MustDraft if views[index].reads == 0 => views[index].verify_len,
            _ => 0,
        };
        let rows = base_rows(seats, views, read_before, fixed);
        let price = row_price(self.rate, machine, &rows);
        let survival: Vec<&[f32]> = seats
            .iter()
            .map(
                |seat| {
                    if seat.draft().is_some() { self.hindsight.survival(seat.place, seat.at) } else { &[] }
                },
            )
            .collect();
        let mut tokens = Vec::new();
        for (sequence, (seat, chances)) in seats.iter().zip(&survival).enumerate() {
            if seat.kind != Kind::MustDraft {
                let wanted = chances.iter().take(seat.wanted.saturating_sub(1));
                let likely = wanted.take_while(|&&chance| chance >= LEAST_TOKEN);
                tokens.extend((1..).zip(likely).map(|(length, &chance)| Token { chance, sequence, length }));
            }
        }
        tokens.sort_by(|a, b| b.chance.total_cmp(&a.chance));
        let value = |(index, seat): (usize, &&Seat<'_>)| {
            let most = seat.wanted.saturating_sub(2) as f64;
            match seat.kind {
                Kind::MayNotDraft => (index, f64::NEG_INFINITY),
                Kind::MustDraft => (index, f64::INFINITY),
                Kind::Free => (index, self.hindsight.value(seat.place, price).min(most)),
            }
        };
        let mut order: Vec<(usize, f64)> = seats.iter().enumerate().map(value).collect();
        order.retain(|&(_, value)| value > 0.0);
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let must = order.iter().take_while(|&&(_, value)| value.is_infinite()).count();
        let situation = Situation {
            machine,
            rate: self.rate,
            base: Totals::of(&rows),
            rows,
            survival,
            gained: sums(tokens.iter().map(|token| f64::from(token.chance))),
            values: sums(order.iter().map(|&(_, value)| if value.is_finite() { value } else { 0.0 })),
            tokens,
            order: order.into_iter().map(|(index, _)| index).collect(),
            must,
        };
        situation.choices(&situation.best(), views.len())
    }
}

impl Situation<'_> {
    /// Returns the best plan that the search finds.
    fn best(&self) -> Best {
        let mut best = Best { worth: f64::NEG_INFINITY, tokens: 0, drafts: self.must, way: Way::Apart };
        // The number of drafts is chosen for the verified tokens of the best plan so far.
        for _ in 0..2 {
            let tokens = best.tokens;
            for drafts in self.must..=self.order.len() {
                self.compare(&mut best, self.apart(drafts, tokens), tokens, drafts, Way::Apart);
            }
            let drafts = best.drafts;
            for tokens in self.numbers() {
                self.compare(&mut best, self.apart(drafts, tokens), tokens, drafts, Way::Apart);
            }
        }
        let all = self.order.len();
        let mut numbers = vec![all, all.div_ceil(2).max(self.must)];
        numbers.dedup();
        for drafts in numbers.into_iter().filter(|&drafts| drafts > 0) {
            LEAST_CHANCES.iter().for_each(|&least| self.in_pass(&mut best, drafts, least));
        }
        best
    }

    /// Returns the numbers of verified tokens that are compared.
    fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        let all = self.tokens.len();
        (0..all).step_by(all.div_ceil(COMPARED).max(1)).chain(std::iter::once(all))
    }

    /// Replaces the best plan by another plan of this expected duration if the other plan is better.
    fn compare(&self, best: &mut Best, seconds: f64, tokens: usize, drafts: usize, way: Way) {
        let worth = self.gained[tokens] + self.values[drafts] - self.rate * seconds;
        if worth > best.worth {
            *best = Best { worth, tokens, drafts, way };
        }
    }

    /// Returns the duration of a step that verifies `tokens` tokens and drafts for `drafts` sequences in a separate pass.
    fn apart(&self, drafts: usize, tokens: usize) -> f64 {
        let mut totals = self.base;
        totals.candidates += tokens;
        totals.logits += tokens;
        for &index in &self.order[..drafts] {
            let rows = &self.rows[index];
            totals.draft_rows += rows.slots;
            totals.drawn += rows.slots.saturating_sub(1);
            totals.draft_cached += rows.cached;
        }
        self.machine.seconds_of(&totals)
    }

    /// Compares the plans in which the first `drafts` sequences draft in the verification pass, with groups for all accepted
    /// lengths of at least the chance `least`.
    fn in_pass(&self, best: &mut Best, drafts: usize, least: f32) {
        let way = Way::InPass(least);
        let mut parts = vec![None; self.rows.len()];
        let mut expected = Expected { totals: self.base, ..Expected::default() };
        for &index in &self.order[..drafts] {
            let rows = &self.rows[index];
            let part = Part::of(rows, self.groups(index, rows.logits.saturating_sub(1), least));
            expected.change(&part, 1.0);
            parts[index] = Some(part);
        }
        let mut compared = self.numbers().peekable();
        for count in 0..=self.tokens.len() {
            if count > 0 {
                let Token { sequence, length, .. } = self.tokens[count - 1];
                expected.totals.candidates += 1;
                expected.totals.logits += 1;
                if let Some(part) = &mut parts[sequence] {
                    expected.change(part, -1.0);
                    *part = Part::of(&self.rows[sequence], self.groups(sequence, length, least));
                    expected.change(part, 1.0);
                }
            }
            if compared.next_if_eq(&count).is_some() {
                self.compare(best, expected.seconds(self.machine), count, drafts, way);
            }
        }
    }

    /// Returns the accepted lengths of a sequence with at least the chance `least`, and the chance of all other lengths.
    fn groups(&self, index: usize, verified: usize, least: f32) -> (GroupSet, f64) {
        let survival = self.survival.get(index).copied().unwrap_or(&[]);
        let reached = |length: usize| match length {
            0 => 1.0,
            length => survival.get(length - 1).copied().unwrap_or(0.0),
        };
        let (mut groups, mut miss) = (GroupSet::NONE, 0.0);
        for length in 0..=verified {
            let further = if length == verified { 0.0 } else { reached(length + 1) };
            let chance = reached(length) - further;
            if chance >= least {
                groups = groups.with(length);
            } else {
                miss += f64::from(chance);
            }
        }
        (groups, miss)
    }

    /// Returns the choices of a plan for `sequences` sequences.
    fn choices(&self, plan: &Best, sequences: usize) -> Vec<Choice> {
        let none = Choice { verify_len: 0, groups: GroupSet::NONE, draft: false };
        let mut choices = vec![none; sequences];
        for (choice, rows) in choices.iter_mut().zip(&self.rows) {
            choice.verify_len = rows.logits.saturating_sub(1);
        }
        for token in &self.tokens[..plan.tokens] {
            choices[token.sequence].verify_len = token.length;
        }
        for &index in &self.order[..plan.drafts] {
            choices[index].draft = true;
            if let Way::InPass(least) = plan.way {
                choices[index].groups = self.groups(index, choices[index].verify_len, least).0;
            }
        }
        choices
    }
}

/// Returns the sums of the first numbers, from no number on.
fn sums(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sum = 0.0;
    let further = numbers.map(|number| {
        sum += number;
        sum
    });
    std::iter::once(0.0).chain(further).collect()
}

/// The part of a sequence in the rows of a step that drafts in its verification pass.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// The sums over the sequence's rows if no drafting pass is needed.
    totals: Totals,
    /// The logarithm of the chance that the sequence needs no drafting pass.
    log_hit: f64,
    /// The expected rows, drawn tokens and cached positions of the drafting pass.
    rows: f64,
    drawn: f64,
    cached: f64,
}

impl Part {
    /// Returns the part of a sequence with these rows and groups, and with the chance `miss` of a drafting pass.
    fn of(rows: &Rows, (groups, miss): (GroupSet, f64)) -> Self {
        let mut totals = Totals::default();
        totals.add(&Rows { groups: groups.iter().count(), ..*rows });
        Self {
            totals,
            log_hit: (1.0 - miss).max(1e-9).ln(),
            rows: miss * rows.slots as f64,
            drawn: miss * rows.slots.saturating_sub(1) as f64,
            cached: miss * rows.cached as f64,
        }
    }
}

/// The expected rows of a step that drafts in its verification pass.
#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    totals: Totals,
    /// The logarithm of the chance that no drafting pass is needed.
    log_hit: f64,
    /// The expected rows, drawn tokens and cached positions of the drafting pass.
    rows: f64,
    drawn: f64,
    cached: f64,
}

impl Expected {
    /// Adds the part of a sequence, or takes the part away if `sign` is −1.
    fn change(&mut self, part: &Part, sign: f64) {
        let (totals, own) = (&mut self.totals, &part.totals);
        for (sum, rows) in [
            (&mut totals.mask_rows, own.mask_rows),
            (&mut totals.all_slots, own.all_slots),
            (&mut totals.in_pass, own.in_pass),
            (&mut totals.group_cached, own.group_cached),
        ] {
            *sum = if sign > 0.0 { *sum + rows } else { *sum - rows };
        }
        self.log_hit += sign * part.log_hit;
        self.rows += sign * part.rows;
        self.drawn += sign * part.drawn;
        self.cached += sign * part.cached;
    }

    /// Returns the expected duration in seconds.
    fn seconds(&self, machine: &Machine) -> f64 {
        let missed = 1.0 - self.log_hit.min(0.0).exp();
        let without = machine.seconds_of(&self.totals);
        if missed < 1e-6 {
            return without;
        }
        let rounded = |sum: f64| (sum / missed).max(1.0).round() as usize;
        let drawn = rounded(self.drawn);
        let with = Totals {
            in_pass: self.totals.in_pass.saturating_sub(drawn),
            draft_rows: rounded(self.rows),
            drawn,
            draft_cached: rounded(self.cached),
            ..self.totals
        };
        (1.0 - missed) * without + missed * machine.seconds_of(&with)
    }
}
