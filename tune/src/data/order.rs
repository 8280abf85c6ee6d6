//! The order in which attempts at a prompt are judged, so that the accepted prompts do not depend on timing.
//!
//! Attempts finish in any order but are judged in the order in which they started: of two equal prompts, the earlier
//! attempt wins, and only the first `count` prompts are kept. The accepted prompts therefore do not depend on timing.

use std::collections::{BTreeMap, HashSet, VecDeque};

/// Accepts or rejects attempts at a prompt, in the order in which the attempts started.
#[derive(Debug, Default)]
pub(super) struct Order {
    started: u64,
    judged: u64,
    /// Attempts that ended while an attempt that started earlier is still running.
    early: BTreeMap<u64, Option<Vec<u32>>>,
    seen: HashSet<Vec<u32>>,
    ready: VecDeque<(u64, Vec<u32>)>,
    rejected_in_a_row: usize,
}

impl Order {
    /// Returns the number of the next attempt at a prompt, if `count` prompts need another attempt.
    pub(super) fn start(&mut self, count: usize) -> Option<u64> {
        let pending = usize::try_from(self.started - self.judged).unwrap_or(usize::MAX);
        if self.accepted().saturating_add(pending) >= count {
            return None;
        }
        self.started += 1;
        Some(self.started - 1)
    }

    /// Records that an attempt has ended, with or without a prompt.
    pub(super) fn end(&mut self, attempt: u64, prompt: Option<Vec<u32>>) {
        self.early.insert(attempt, prompt);
        while let Some(prompt) = self.early.remove(&self.judged) {
            match prompt {
                Some(prompt) if self.seen.insert(prompt.clone()) => {
                    self.ready.push_back((self.judged, prompt));
                    self.rejected_in_a_row = 0;
                }
                _ => self.rejected_in_a_row += 1,
            }
            self.judged += 1;
        }
    }

    /// Returns the next accepted prompt and the number of its attempt.
    pub(super) fn next(&mut self) -> Option<(u64, Vec<u32>)> {
        self.ready.pop_front()
    }

    /// Returns the number of prompts accepted so far.
    pub(super) fn accepted(&self) -> usize {
        self.seen.len()
    }

    /// Returns the number of attempts judged so far.
    pub(super) fn judged(&self) -> usize {
        self.judged as usize
    }

    /// Returns the number of attempts since the last new prompt.
    pub(super) fn rejected_in_a_row(&self) -> usize {
        self.rejected_in_a_row
    }
}

/// Results of attempts that end in any order, handed out in the order in which the attempts started.
#[derive(Debug)]
pub(super) struct InOrder<T> {
    /// The attempts whose results have not been handed out, with the results that are there.
    waiting: BTreeMap<u64, Option<T>>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new() }
    }
}

impl<T> InOrder<T> {
    /// Records that an attempt has started, after all attempts with a smaller number.
    pub(super) fn start(&mut self, attempt: u64) {
        self.waiting.insert(attempt, None);
    }

    /// Records the result of an attempt.
    pub(super) fn end(&mut self, attempt: u64, result: T) {
        self.waiting.insert(attempt, Some(result));
    }

    /// Returns the next result and the number of its attempt, unless an attempt that started earlier is still running.
    pub(super) fn next(&mut self) -> Option<(u64, T)> {
        let first = self.waiting.first_entry()?;
        first.get().as_ref()?;
        let (attempt, result) = first.remove_entry();
        Some((attempt, result?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_wait_for_earlier_attempts() {
        let mut results = InOrder::default();
        [2, 5, 6].into_iter().for_each(|attempt| results.start(attempt));
        results.end(5, "b");
        assert_eq!(results.next(), None);
        results.end(2, "a");
        assert_eq!((results.next(), results.next(), results.next()), (Some((2, "a")), Some((5, "b")), None));
        results.end(6, "c");
        assert_eq!((results.next(), results.next()), (Some((6, "c")), None));
    }

    #[test]
    fn the_order_in_which_attempts_end_does_not_matter() {
        let prompts = [Some(vec![1]), None, Some(vec![2]), Some(vec![1]), Some(vec![3])];
        let run = |ends: [u64; 5]| {
            let mut order = Order::default();
            for attempt in 0..5 {
                assert_eq!(order.start(5), Some(attempt));
            }
            assert_eq!(order.start(5), None);
            for attempt in ends {
                order.end(attempt, prompts[attempt as usize].clone());
            }
            assert_eq!((order.judged(), order.accepted()), (5, 3));
            std::iter::from_fn(|| order.next()).collect::<Vec<_>>()
        };
        let expected = [(0, vec![1]), (2, vec![2]), (4, vec![3])];
        assert_eq!(run([0, 1, 2, 3, 4]), expected);
        assert_eq!(run([4, 3, 2, 1, 0]), expected);
        assert_eq!(run([3, 0, 4, 2, 1]), expected);
    }

    #[test]
    fn rejected_attempts_are_replaced() {
        let mut order = Order::default();
        assert_eq!(order.start(1), Some(0));
        assert_eq!(order.start(1), None);
        order.end(0, None);
        assert_eq!(order.rejected_in_a_row(), 1);
        assert_eq!(order.start(1), Some(1));
        order.end(1, Some(vec![1]));
        assert_eq!(order.rejected_in_a_row(), 0);
        assert_eq!(order.start(1), None);
        assert_eq!(order.start(2), Some(2));
    }
}
