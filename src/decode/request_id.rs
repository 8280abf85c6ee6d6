//! Ids of requests.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies a request among the requests of all engines of the process. Prints as `engine.number`, both counted
/// from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    engine: u64,
    number: u64,
}

impl RequestId {
    /// Returns the request's number among the requests of its engine, counted from 0.
    pub(super) fn number(self) -> u64 {
        self.number
    }
}

/// The source of ids for the requests of one engine.
#[derive(Debug)]
pub(super) struct RequestIds {
    next: RequestId,
}

impl RequestIds {
    /// Returns the source of ids for a new engine.
    pub(super) fn of_new_engine() -> Self {
        static ENGINES: AtomicU64 = AtomicU64::new(0);
        Self { next: RequestId { engine: ENGINES.fetch_add(1, Ordering::Relaxed), number: 0 } }
    }

    /// Returns the id for the next request.
    pub(super) fn take(&mut self) -> RequestId {
        let id = self.next;
        self.next.number += 1;
        id
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.engine, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_between_engines() {
        let (mut one, mut other) = (RequestIds::of_new_engine(), RequestIds::of_new_engine());
        let ids = [one.take(), one.take(), other.take()];
        assert!(ids[0] < ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
        let [first, second] = [ids[0], ids[1]].map(|id| id.to_string());
        assert_eq!((first.split_once('.').unwrap().1, second.split_once('.').unwrap().1), ("0", "1"));
    }
}
