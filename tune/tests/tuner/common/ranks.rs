//! Ranks of a tuning run as threads of one process, and faults of a rank.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard};

use candle_core::{Error, Result, Tensor};
use flexdraft_tune::tune::Ranks;

/// The place where the ranks of a run, which are threads here, exchange sums. If a thread leaves, the threads
/// that wait for it are released with an error.
pub struct Meeting {
    count: usize,
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Default)]
struct Round {
    /// The number or tensor that each rank adds to the sum.
    parts: Vec<Option<Tensor>>,
    /// The sum over the ranks, until all ranks have taken it.
    sum: Option<Tensor>,
    taken: usize,
    /// True once a rank has left for good.
    left: bool,
}

impl Meeting {
    pub fn of(count: usize) -> Self {
        let round = Round { parts: vec![None; count], ..Round::default() };
        Self { count, round: Mutex::new(round), changed: Condvar::new() }
    }

    /// Waits while `condition` holds and no rank has left.
    fn wait(&self, condition: impl Fn(&Round) -> bool) -> Result<MutexGuard<'_, Round>> {
        let round = self.round.lock().unwrap();
        let round = self.changed.wait_while(round, |round| condition(round) && !round.left).unwrap();
        if condition(&round) { Err(Error::msg("another rank has left")) } else { Ok(round) }
    }

    fn sum(&self, rank: usize, tensor: &Tensor) -> Result<Tensor> {
        let part = tensor.copy()?;
        // Waits until all ranks have taken the previous sum.
        let mut round = self.wait(|round| round.sum.is_some())?;
        round.parts[rank] = Some(part);
        if round.parts.iter().all(Option::is_some) {
            // The parts are added in the order of the ranks, so that a run is reproducible.
            let mut parts = round.parts.iter_mut().filter_map(Option::take);
            let first = parts.next().unwrap();
            let sum = parts.try_fold(first, |sum, part| sum + part)?;
            round.sum = Some(sum);
            self.changed.notify_all();
        }
        drop(round);
        let mut round = self.wait(|round| round.sum.is_none())?;
        round.taken += 1;
        if round.taken < self.count {
            return Ok(round.sum.clone().unwrap());
        }
        round.taken = 0;
        self.changed.notify_all();
        Ok(round.sum.take().unwrap())
    }
}

/// A fault that a test plants in a rank, with the step at which it happens, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// The rank's part of the loss is not a number.
    Loss(usize),
    /// The rank's part of the first gradient is not a number.
    Gradient(usize),
    /// The rank stops taking part in sums.
    Lost(usize),
}

/// A rank of a tuning run that runs on a thread.
pub struct Thread<'a> {
    pub rank: usize,
    pub meeting: &'a Meeting,
    pub fault: Fault,
    /// Number of steps whose numbers were summed.
    steps: Cell<usize>,
}

impl<'a> Thread<'a> {
    pub fn new(rank: usize, meeting: &'a Meeting, fault: Fault) -> Self {
        Self { rank, meeting, fault, steps: Cell::new(0) }
    }
}

impl Drop for Thread<'_> {
    /// Tells the other ranks that this rank has left, after a normal end, an error or a panic alike.
    fn drop(&mut self) {
        let round = self.meeting.round.lock();
        round.unwrap_or_else(|poisoned| poisoned.into_inner()).left = true;
        self.meeting.changed.notify_all();
    }
}

impl Ranks for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.meeting.count
    }

    fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        // Each step begins with a sum of four numbers, its loss and three counts; no parameter of these runs has four
        // elements.
        let numbers = tensor.dims() == [4];
        let first_gradient = !numbers && self.steps.get() > 0;
        self.steps.set(self.steps.get() + usize::from(numbers));
        let wrong = match self.fault {
            Fault::None => false,
            Fault::Loss(step) => numbers && self.steps.get() == step,
            Fault::Gradient(step) => first_gradient && self.steps.get() == step,
            Fault::Lost(step) if self.steps.get() == step => return Err(Error::msg("this rank is lost")),
            Fault::Lost(_) => false,
        };
        let part = if wrong { tensor.affine(f64::NAN, 0.0)? } else { tensor.clone() };
        self.meeting.sum(self.rank, &part)
    }
}
