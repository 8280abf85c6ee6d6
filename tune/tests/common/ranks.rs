//! Ranks that are threads, and what can go wrong with one of them.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard};

use candle_core::{Error, Result, Tensor};
use flexdraft_tune::tune::Ranks;

/// Where threads take their sums. One that leaves releases those that wait for it, with an error.
pub struct Meeting {
    count: usize,
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Default)]
struct Round {
    /// What each rank has brought.
    parts: Vec<Option<Tensor>>,
    /// Their sum, until all have taken it.
    sum: Option<Tensor>,
    taken: usize,
    /// Whether a rank will not come again.
    left: bool,
}

impl Meeting {
    pub fn of(count: usize) -> Self {
        let round = Round { parts: vec![None; count], ..Round::default() };
        Self { count, round: Mutex::new(round), changed: Condvar::new() }
    }

    /// Waits while `condition` holds and nobody has left.
    fn wait(&self, condition: impl Fn(&Round) -> bool) -> Result<MutexGuard<'_, Round>> {
        let round = self.round.lock().unwrap();
        let round = self.changed.wait_while(round, |round| condition(round) && !round.left).unwrap();
        if condition(&round) { Err(Error::msg("another rank has left")) } else { Ok(round) }
    }

    fn sum(&self, rank: usize, tensor: &Tensor) -> Result<Tensor> {
        let part = tensor.copy()?;
        // Until the others have taken the sum before.
        let mut round = self.wait(|round| round.sum.is_some())?;
        round.parts[rank] = Some(part);
        if round.parts.iter().all(Option::is_some) {
            // In the ranks' order, so that a run can be repeated.
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

/// What goes wrong on a rank, at a step from 1 on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Its part of the loss is not a number.
    Loss(usize),
    /// Its part of the first gradient is not a number.
    Gradient(usize),
    /// It takes no more sums.
    Lost(usize),
}

/// A rank on a thread.
pub struct Thread<'a> {
    pub rank: usize,
    pub meeting: &'a Meeting,
    pub fault: Fault,
    /// Steps whose numbers were summed.
    steps: Cell<usize>,
}

impl<'a> Thread<'a> {
    pub fn new(rank: usize, meeting: &'a Meeting, fault: Fault) -> Self {
        Self { rank, meeting, fault, steps: Cell::new(0) }
    }
}

impl Drop for Thread<'_> {
    /// However the thread's run ended: by an error, or by a panic.
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
        // A step begins with the sum of its loss and three counts; no parameter of these runs has four elements.
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
