//! The CPU device's thread pool.

use rayon::prelude::*;

use crate::device::DeviceError;

/// A limit above the number of cores of any machine; a larger number of threads is a mistake.
const MAX_THREADS: usize = 1024;

/// Work below this many multiply-adds runs on the calling thread: waking other threads takes about as long
/// (10 µs).
const SMALL_WORK: usize = 1 << 17;

/// A thread pool of fixed size. The division of work among them never changes a result: each item is computed
/// by itself, whichever thread takes it.
#[derive(Debug)]
pub(super) struct Pool {
    threads: usize,
    /// The worker threads; `None` if the pool has a single thread, the caller's.
    workers: Option<rayon::ThreadPool>,
}

impl Pool {
    /// Starts `threads` threads, or one per core if `threads` is 0.
    pub(super) fn new(threads: usize) -> Result<Self, DeviceError> {
        let unavailable = |reason: String| DeviceError::Unavailable {
            requested: format!("cpu with {threads} threads"),
            reason,
        };
        if threads > MAX_THREADS {
            return Err(unavailable(format!("at most {MAX_THREADS} threads are supported")));
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)),
            n => n,
        };
        let workers = match threads {
            1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("flexdraft-cpu-{i}"))
                    .build()
                    .map_err(|error| unavailable(error.to_string()))?,
            ),
        };
        Ok(Self { threads, workers })
    }

    /// Returns the number of threads.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work` on one of the pool's threads. Items that `work` hands to [`for_each`](Self::for_each)
    /// then start without a handover from an outside thread, and the other threads, which look for work for a
    /// while before they sleep, are mostly awake.
    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.workers {
            Some(workers) => workers.install(work),
            None => work(),
        }
    }

    /// Calls `run` for each item. `work` estimates the multiply-adds of all items together; if it is large
    /// enough, all threads share the items.
    pub(super) fn for_each<T: Send>(&self, items: Vec<T>, work: usize, run: impl Fn(T) + Send + Sync) {
        match &self.workers {
            Some(workers) if items.len() > 1 && work >= SMALL_WORK => {
                workers.install(|| items.into_par_iter().with_max_len(1).for_each(run));
            }
            _ => items.into_iter().for_each(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_item_runs_once() {
        for threads in [0, 1, 3] {
            let pool = Pool::new(threads).unwrap();
            assert!(pool.threads() >= 1);
            for work in [0, usize::MAX] {
                let seen: Vec<_> = (0..50).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(seen.iter().collect(), work, |count: &AtomicUsize| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn small_work_stays_on_the_calling_thread() {
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        pool.for_each(vec![(); 8], 100, |()| assert_eq!(std::thread::current().id(), caller));
        pool.for_each(vec![(); 8], usize::MAX, |()| assert_ne!(std::thread::current().id(), caller));
    }

    #[test]
    fn work_may_run_on_the_threads_themselves() {
        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            let counted = AtomicUsize::new(0);
            let result = pool.run(|| {
                pool.for_each(vec![(); 8], usize::MAX, |()| {
                    counted.fetch_add(1, Ordering::Relaxed);
                });
                std::thread::current().name().map(str::to_owned)
            });
            assert_eq!(counted.into_inner(), 8);
            assert_eq!(result.is_some_and(|name| name.starts_with("flexdraft-cpu")), threads > 1);
        }
    }

    #[test]
    fn an_absurd_number_of_threads_is_an_error() {
        let error = Pool::new(1_000_000).err().unwrap();
        assert_eq!(
            error.to_string(),
            "device `cpu with 1000000 threads` is not available: at most 1024 threads are supported"
        );
    }
}
