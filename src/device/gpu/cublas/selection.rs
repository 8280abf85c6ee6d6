//! Selects the algorithms for the products of a shape: of all sets of algorithms that give a row equal bits,
//! the fastest set.

use super::buckets;
use super::row_invariance::{
    ProductTrial, RowBits, TrialOperands, agrees, few_products, products, row_bits, shifted_products,
};
use super::schedule::{Schedule, Timed};

/// Seconds after the start of a trial at which timing ends: candidates without times rank last. The checks do
/// not depend on the time.
const TIMING_SECONDS: f32 = 1.0;

/// The maximum number of rows of the product from which an algorithm's result bits in a bucket are first computed: the
/// product has the largest row count of the bucket, up to this number, which is enough to show every row of x.
const MOST_SEEN: usize = 257;

/// An algorithm in a bucket of row counts, with the results of its checks.
#[derive(Debug)]
struct Candidate {
    algorithm: usize,
    bucket: usize,
    seconds: Option<[f32; 2]>,
    /// The candidate's class: candidates of a class gave all rows the same result bits.
    class: usize,
    /// Whether all tried products of the bucket gave the rows the bits of the candidate's class.
    tried: bool,
    /// Whether some product of the bucket gave a row other bits than the candidate's class.
    refused: bool,
    /// Whether some product of the bucket's largest row count gave a row other bits than the candidate's
    /// class.
    padded_refused: bool,
}

/// A way to compute the products of all row counts: a candidate for each of several consecutive buckets of
/// row counts, starting with the first bucket; or a single candidate, and every product is padded to the
/// largest row count of the candidate's bucket.
#[derive(Clone, Debug, PartialEq)]
enum ProposedSchedule {
    Buckets(Vec<usize>),
    Padded(usize),
}

/// The cost of a proposal; smaller is better.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Whether products of some bucket are computed in parts.
    in_parts: bool,
    /// Number of buckets whose time is unknown.
    untimed: usize,
    /// The sum of the seconds of all buckets whose time is known.
    seconds: f32,
}

impl Cost {
    fn is_below(&self, other: &Cost) -> bool {
        let times = || self.seconds.total_cmp(&other.seconds);
        (self.in_parts, self.untimed).cmp(&(other.in_parts, other.untimed)).then_with(times).is_lt()
    }

    fn add(&mut self, seconds: Option<f32>) {
        match seconds {
            Some(seconds) => self.seconds += seconds,
            None => self.untimed += 1,
        }
    }
}

/// Returns the fastest way to compute the products of the first `buckets` buckets of row counts that gives a
/// row the same bits in every product. All buckets have equal weight. Large products are computed in parts,
/// or small ones padded, only if no set of algorithms with equal bits has one for every bucket. `kept` are
/// the algorithms of buckets that were selected before: they and their bits stay. `None` if there is no way.
pub(super) fn choose<T: ProductTrial>(
    trial: &mut T,
    buckets: usize,
    kept: &[Timed],
) -> Result<Option<Schedule>, T::Error> {
    let (mut entries, classes) = entries(trial, buckets, kept)?;
    while let Some(proposal) = cheapest(&entries, buckets, kept) {
        let refused = match &proposal {
            ProposedSchedule::Buckets(set) => verify_set(trial, &mut entries, set, &classes)?,
            ProposedSchedule::Padded(index) => {
                (!verify_padded(trial, entries.get(*index), &classes)?).then_some(*index)
            }
        };
        match (refused.and_then(|index| entries.get_mut(index)), &proposal) {
            (None, _) => return Ok(Some(schedule(&entries, &proposal))),
            (Some(entry), ProposedSchedule::Buckets(_)) => entry.refused = true,
            (Some(entry), ProposedSchedule::Padded(_)) => entry.padded_refused = true,
        }
    }
    Ok(None)
}

/// The measurements of an algorithm in a bucket of row counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Surveyed {
    pub(super) algorithm: usize,
    pub(super) bucket: usize,
    pub(super) seconds: Option<[f32; 2]>,
    /// The class of equal results: algorithms of a class gave all rows the same bits. `None` if some row had
    /// different bits in two products.
    pub(super) class: Option<usize>,
}

/// Returns the surveyed algorithms as candidates, and the result bits of each class.
fn entries<T: ProductTrial>(
    trial: &mut T,
    buckets: usize,
    kept: &[Timed],
) -> Result<(Vec<Candidate>, Vec<RowBits>), T::Error> {
    let (surveyed, classes) = survey(trial, buckets, kept)?;
    let entry = |surveyed: Surveyed| {
        let Surveyed { algorithm, bucket, seconds, class } = surveyed;
        let class = class?;
        Some(Candidate {
            algorithm,
            bucket,
            seconds,
            class,
            tried: false,
            refused: false,
            padded_refused: false,
        })
    };
    Ok((surveyed.into_iter().filter_map(entry).collect(), classes))
}

/// Returns all algorithms in all buckets in which they can be used, timed and classified, and the result bits
/// of each class.
pub(super) fn survey<T: ProductTrial>(
    trial: &mut T,
    buckets: usize,
    kept: &[Timed],
) -> Result<(Vec<Surveyed>, Vec<RowBits>), T::Error> {
    let mut timed = Vec::new();
    // The most promising algorithms come first, so that they are timed in all buckets before the time is up.
    for algorithm in 0..trial.algorithms() {
        for bucket in 0..buckets {
            match kept.get(bucket) {
                Some(kept) if kept.algorithm == algorithm => timed.push((algorithm, bucket, kept.seconds)),
                Some(_) => {}
                None if trial.elapsed() < TIMING_SECONDS => {
                    let [first, last] = buckets::timed_rows(bucket);
                    let Some(at_first) = trial.seconds(algorithm, first)? else { continue };
                    let at_last =
                        if last == first { Some(at_first) } else { trial.seconds(algorithm, last)? };
                    let Some(at_last) = at_last else { continue };
                    timed.push((algorithm, bucket, Some([at_first, at_last])));
                }
                None => timed.push((algorithm, bucket, None)),
            }
        }
    }
    let (mut surveyed, mut classes) = (Vec::new(), Vec::new());
    for (algorithm, bucket, seconds) in timed {
        let rows = (*buckets::rows_of(bucket).end()).min(MOST_SEEN);
        let bits = row_bits(trial, TrialOperands::Cancelling, algorithm, rows)?;
        let class = bits.map(|bits| {
            classes.iter().position(|class| *class == bits).unwrap_or_else(|| {
                classes.push(bits);
                classes.len() - 1
            })
        });
        surveyed.push(Surveyed { algorithm, bucket, seconds, class });
    }
    Ok((surveyed, classes))
}

/// Returns the cheapest proposal that has not been refused.
fn cheapest(entries: &[Candidate], buckets: usize, kept: &[Timed]) -> Option<ProposedSchedule> {
    let classes = entries.iter().map(|entry| entry.class + 1).max().unwrap_or(0);
    let sets = (0..classes).filter_map(|class| {
        let set = fastest_of_class(entries, class, buckets);
        (!set.is_empty() && set.len() >= kept.len()).then_some(ProposedSchedule::Buckets(set))
    });
    let padded = entries.iter().enumerate().filter(|(_, entry)| {
        // The bits of the class were computed at the bucket's largest row count.
        let may_pad = entry.bucket > 0 && *buckets::rows_of(entry.bucket).end() < MOST_SEEN;
        kept.is_empty() && may_pad && !entry.padded_refused
    });
    let padded = padded.map(|(index, _)| ProposedSchedule::Padded(index));
    let mut best: Option<(Cost, ProposedSchedule)> = None;
    for proposal in sets.chain(padded) {
        let cost = cost(entries, &proposal, buckets);
        if best.as_ref().is_none_or(|(least, _)| cost.is_below(least)) {
            best = Some((cost, proposal));
        }
    }
    best.map(|(_, proposal)| proposal)
}

/// Returns the fastest candidate of a class for each bucket, starting with the first bucket, up to the first
/// bucket without a candidate.
fn fastest_of_class(entries: &[Candidate], class: usize, buckets: usize) -> Vec<usize> {
    let fastest = |bucket| {
        let usable = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.class == class && entry.bucket == bucket && !entry.refused);
        let seconds = |entry: &Candidate| entry.seconds.map_or(f32::INFINITY, mean);
        usable.min_by(|(_, a), (_, b)| seconds(a).total_cmp(&seconds(b))).map(|(index, _)| index)
    };
    (0..buckets).map_while(fastest).collect()
}

fn mean([first, last]: [f32; 2]) -> f32 {
    (first + last) / 2.0
}

fn cost(entries: &[Candidate], proposal: &ProposedSchedule, buckets: usize) -> Cost {
    let mut cost = Cost { in_parts: true, untimed: 0, seconds: 0.0 };
    // A bucket without an algorithm of its own counts as one product of the bucket's largest timed row count,
    // computed in parts.
    let in_parts = |cost: &mut Cost, bucket: usize, entry: &Candidate, rows: usize| {
        let [_, last] = buckets::timed_rows(bucket);
        cost.add(entry.seconds.map(|[_, seconds]| seconds * last.div_ceil(rows) as f32));
    };
    match proposal {
        ProposedSchedule::Buckets(set) => {
            cost.in_parts = set.len() < buckets;
            let of_set = |index: &usize| entries.get(*index);
            set.iter().filter_map(of_set).for_each(|entry| cost.add(entry.seconds.map(mean)));
            if let Some(last) = set.last().and_then(of_set) {
                let rows = *buckets::rows_of(last.bucket).end();
                (set.len()..buckets).for_each(|bucket| in_parts(&mut cost, bucket, last, rows));
            }
        }
        ProposedSchedule::Padded(index) => {
            if let Some(entry) = entries.get(*index) {
                let rows = *buckets::rows_of(entry.bucket).end();
                (0..buckets).for_each(|bucket| in_parts(&mut cost, bucket, entry, rows));
            }
        }
    }
    cost
}

fn schedule(entries: &[Candidate], proposal: &ProposedSchedule) -> Schedule {
    match proposal {
        ProposedSchedule::Buckets(set) => {
            let entries = set.iter().filter_map(|&index| entries.get(index));
            let timed = |entry: &Candidate| Timed { algorithm: entry.algorithm, seconds: entry.seconds };
            Schedule::Buckets(entries.map(timed).collect())
        }
        ProposedSchedule::Padded(index) => match entries.get(*index) {
            Some(entry) => Schedule::Padded {
                algorithm: entry.algorithm,
                rows: *buckets::rows_of(entry.bucket).end(),
                seconds: entry.seconds.map(|[_, last]| last),
            },
            None => Schedule::Buckets(Vec::new()),
        },
    }
}

/// Checks every algorithm of a set: alone on all products of its bucket, and against the first algorithm on
/// noise and on the model's weights. Returns the candidate that gave some row other bits, if there is one.
fn verify_set<T: ProductTrial>(
    trial: &mut T,
    entries: &mut [Candidate],
    set: &[usize],
    classes: &[RowBits],
) -> Result<Option<usize>, T::Error> {
    for &index in set {
        let Some(entry) = entries.get_mut(index) else { return Ok(Some(index)) };
        if entry.tried {
            continue;
        }
        let (algorithm, tried) = (entry.algorithm, products(entry.bucket));
        let Some(expected) = classes.get(entry.class) else { return Ok(Some(index)) };
        if !agrees(trial, TrialOperands::Cancelling, algorithm, &tried, expected)? {
            return Ok(Some(index));
        }
        entry.tried = true;
    }
    let Some(&first) = set.first() else { return Ok(None) };
    for operands in [TrialOperands::Noise, TrialOperands::Model] {
        // The set's first candidate is for the first bucket, whose products have a single row.
        let alone = entries.get(first).map_or(0, |entry| entry.algorithm);
        let Some(expected) = row_bits(trial, operands, alone, 1)? else { return Ok(Some(first)) };
        let most = trial.most_rows(operands);
        for &index in set {
            let Some(entry) = entries.get(index) else { return Ok(Some(index)) };
            let tried = few_products(entry.bucket, most);
            if !agrees(trial, operands, entry.algorithm, &tried, &expected)? {
                return Ok(Some(index));
            }
        }
    }
    Ok(None)
}

/// Returns whether an algorithm gives a row the same bits in every place of a product with the bucket's
/// largest row count.
fn verify_padded<T: ProductTrial>(
    trial: &mut T,
    entry: Option<&Candidate>,
    classes: &[RowBits],
) -> Result<bool, T::Error> {
    let Some(entry) = entry else { return Ok(false) };
    let rows = *buckets::rows_of(entry.bucket).end();
    let Some(expected) = classes.get(entry.class) else { return Ok(false) };
    if !agrees(trial, TrialOperands::Cancelling, entry.algorithm, &shifted_products(rows), expected)? {
        return Ok(false);
    }
    for operands in [TrialOperands::Noise, TrialOperands::Model] {
        if rows > trial.most_rows(operands) {
            return Ok(false);
        }
        let Some(expected) = row_bits(trial, operands, entry.algorithm, rows)? else { return Ok(false) };
        let tried = [1, 5, 34].map(|first| first..first + rows);
        if !agrees(trial, operands, entry.algorithm, &tried, &expected)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
