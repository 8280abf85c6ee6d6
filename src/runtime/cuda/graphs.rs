//! Launches that repeat from step to step, run as CUDA graphs.
//!
//! While a queue gathers, launches, copies within the device and library calls wait on the host. A list of them that
//! has been on the stream before becomes a graph, and from then on one call of the driver runs the whole list. A graph
//! runs exactly the work of its list: the same functions, with the same parameters, in the same order. A graph is
//! therefore never out of date, and which lists become graphs changes no result.
//!
//! Gathered work uses memory that its owner may free next, so [`CudaMemory`](super::CudaMemory) puts the work on the
//! stream before it frees the memory.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUfunction, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream, result};

use super::launching::{self, LaunchShape};
use crate::runtime::{Launch, RuntimeError};

/// Number of work items in the first list of a step. The device begins with it while the host gathers the rest.
const FIRST_LIST: usize = 128;

/// The maximum number of work items in a list.
const LONGEST_LIST: usize = 4096;

/// Shorter lists are not worth a graph.
const SHORTEST_GRAPH: usize = 4;

/// The maximum number of work items in all graphs together. A graph takes about a kilobyte of device memory for each.
const GRAPH_BUDGET: usize = 64 << 10;

/// Number of lists that are remembered until they occur again.
const REMEMBERED: usize = 256;

/// A call of a library that puts work on a stream.
pub(crate) trait StreamCall: Send {
    /// Puts the work on `stream`.
    fn run(&self, stream: &Arc<CudaStream>) -> Result<(), RuntimeError>;
}

/// A work item for a stream.
enum QueuedWork {
    Kernel(KernelCall),
    /// A copy within device memory: source, destination, bytes.
    Copy([u64; 3]),
    /// A library's call, with the numbers that it depends on.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))]
    // Only the runner's GPU device makes such calls.
    Call([u64; 8], Box<dyn StreamCall>),
}

impl PartialEq for QueuedWork {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Kernel(one), Self::Kernel(other)) => one == other,
            (Self::Copy(one), Self::Copy(other)) => one == other,
            // A call's numbers include the address of the object that makes the call, which both calls keep alive.
            (Self::Call(one, _), Self::Call(other, _)) => one == other,
            _ => false,
        }
    }
}

impl Hash for QueuedWork {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Kernel(call) => call.hash(state),
            Self::Copy(numbers) => numbers.hash(state),
            Self::Call(numbers, _) => numbers.hash(state),
        }
    }
}

/// A launch, with a copy of its parameters.
#[derive(PartialEq, Eq, Hash)]
struct KernelCall {
    kernel: &'static str,
    function: usize,
    shape: LaunchShape,
    params: Box<[u64]>,
}

/// A list of work that runs as a graph.
struct ListGraph {
    list: Vec<QueuedWork>,
    hash: u64,
    graph: CudaGraph,
    /// The time of the last use, counted in lists.
    used: u64,
}

#[derive(Default)]
struct State {
    gathering: bool,
    /// Whether launches are never gathered, by the caller's choice.
    off: bool,
    /// Whether the step has put a list on the stream.
    begun: bool,
    pending: Vec<QueuedWork>,
    graphs: Vec<ListGraph>,
    /// Hashes of lists that were on the stream once, the newest last.
    seen: Vec<u64>,
    /// Hashes of lists that cannot become graphs.
    refused: Vec<u64>,
    lists: u64,
    /// An error that no caller has got yet.
    failure: Option<RuntimeError>,
    closed: bool,
}

// SAFETY: the raw handles of graphs are used under the lock only.
unsafe impl Send for State {}

/// Work that is dropped after the lock is released, because it may own memory whose drop takes the lock.
type Dropped = Vec<QueuedWork>;

/// The launches of one stream, gathered into graphs.
pub(super) struct GraphQueue {
    stream: Arc<CudaStream>,
    state: Mutex<State>,
}

impl std::fmt::Debug for GraphQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GraphQueue").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl GraphQueue {
    /// Makes a queue for `stream`, which does not gather yet.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Self {
        Self { stream: stream.clone(), state: Mutex::default() }
    }

    /// Returns whether this is the queue of `stream`.
    pub(super) fn is_of(&self, stream: &Arc<CudaStream>) -> bool {
        Arc::ptr_eq(&self.stream, stream)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State, &mut Dropped) -> T) -> T {
        let mut dropped = Dropped::new();
        let result = work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), &mut dropped);
        drop(dropped);
        result
    }

    /// Chooses whether later calls of [`gather`](Self::gather) gather.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(super) fn turn(&self, on: bool) {
        self.with(|state, _| state.off = !on);
    }

    /// Returns whether launches may be gathered.
    pub(super) fn is_on(&self) -> bool {
        self.with(|state, _| !state.off)
    }

    /// Begins to gather.
    pub(super) fn gather(&self) -> Result<(), RuntimeError> {
        self.finish()?;
        self.with(|state, _| (state.gathering, state.begun) = (!state.closed && !state.off, false));
        Ok(())
    }

    /// Puts all gathered work on the stream, and stops gathering. Returns an error of gathered work.
    pub(super) fn finish(&self) -> Result<(), RuntimeError> {
        self.with(|state, dropped| {
            state.gathering = false;
            let submitted = self.submit(state, dropped);
            state.failure.take().map_or(submitted, Err)
        })
    }

    /// Like [`finish`](Self::finish), for a caller who cannot report an error: the next caller gets it.
    pub(super) fn finish_later(&self) {
        self.with(|state, dropped| {
            state.gathering = false;
            if let Err(error) = self.submit(state, dropped) {
                state.failure.get_or_insert(error);
            }
        });
    }

    /// Puts all gathered work on the stream, and destroys the graphs. Nothing is gathered afterwards.
    pub(super) fn close(&self) {
        self.finish_later();
        self.with(|state, dropped| {
            state.closed = true;
            dropped.extend(state.graphs.drain(..).flat_map(|graph| graph.list));
        });
    }

    /// Gathers a launch of `function`. Returns whether it did; if not, the caller launches.
    ///
    /// # Safety
    ///
    /// The parameter struct has no padding, and the contract of [`Runtime::launch`](crate::runtime::Runtime::launch)
    /// holds, except that memory is freed only after [`finish_later`](Self::finish_later).
    pub(super) unsafe fn launch(
        &self,
        function: CUfunction,
        shape: LaunchShape,
        launch: &Launch<'_>,
    ) -> Result<bool, RuntimeError> {
        self.push(|| {
            let words = launch.params_bytes / size_of::<u64>();
            if words * size_of::<u64>() != launch.params_bytes {
                return None;
            }
            let mut params = vec![0u64; words].into_boxed_slice();
            // SAFETY: the struct has this size and, without padding, only initialised bytes.
            unsafe {
                let from = launch.params.cast::<u8>();
                std::ptr::copy_nonoverlapping(from, params.as_mut_ptr().cast(), launch.params_bytes);
            }
            Some(QueuedWork::Kernel(KernelCall {
                kernel: launch.kernel,
                function: function as usize,
                shape,
                params,
            }))
        })
    }

    /// Gathers a copy of `bytes` bytes within device memory. Returns whether it did.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<bool, RuntimeError> {
        self.push(|| Some(QueuedWork::Copy([from, to, bytes as u64])))
    }

    /// Gathers a library's call, which `numbers` determine. Returns the call if it is not gathered.
    #[cfg_attr(not(feature = "runner"), allow(dead_code))] // Only the runner's GPU device uses it.
    pub(super) fn call(
        &self,
        numbers: [u64; 8],
        call: impl StreamCall + 'static,
    ) -> Result<bool, RuntimeError> {
        self.push(|| Some(QueuedWork::Call(numbers, Box::new(call))))
    }

    fn push(&self, work: impl FnOnce() -> Option<QueuedWork>) -> Result<bool, RuntimeError> {
        self.with(|state, dropped| {
            if let Some(error) = state.failure.take() {
                return Err(error);
            }
            if !state.gathering {
                return Ok(false);
            }
            let Some(work) = work() else {
                state.gathering = false;
                return self.submit(state, dropped).map(|()| false);
            };
            state.pending.push(work);
            let limit = if state.begun { LONGEST_LIST } else { FIRST_LIST };
            if state.pending.len() >= limit {
                state.begun = true;
                self.submit(state, dropped)?;
            }
            Ok(true)
        })
    }

    /// Puts the gathered list on the stream: as a graph if there is one for it.
    fn submit(&self, state: &mut State, dropped: &mut Dropped) -> Result<(), RuntimeError> {
        if state.pending.is_empty() {
            return Ok(());
        }
        let list = std::mem::take(&mut state.pending);
        state.lists += 1;
        let mut hasher = DefaultHasher::new();
        list.hash(&mut hasher);
        let hash = hasher.finish();
        let known = state.graphs.iter_mut().find(|known| known.hash == hash && known.list == list);
        if let Some(known) = known {
            known.used = state.lists;
            let launched = known.graph.launch();
            dropped.extend(list);
            return Ok(launched?);
        }
        let again = state.seen.contains(&hash) && !state.refused.contains(&hash);
        if again
            && list.len() >= SHORTEST_GRAPH
            && let Some(graph) = self.captured(&list)
        {
            let launched = graph.launch();
            state.graphs.push(ListGraph { list, hash, graph, used: state.lists });
            evict(state, dropped);
            return Ok(launched?);
        }
        if again {
            remember(&mut state.refused, hash);
        } else {
            remember(&mut state.seen, hash);
        }
        let done = self.run(&list);
        dropped.extend(list);
        done
    }

    /// Puts a list on the stream, item by item.
    fn run(&self, list: &[QueuedWork]) -> Result<(), RuntimeError> {
        list.iter().try_for_each(|work| run(work, self.stream.context(), &self.stream))
    }

    /// Returns a graph of a list, or `None` if the driver or a library refuses to capture it.
    fn captured(&self, list: &[QueuedWork]) -> Option<CudaGraph> {
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
        let done = self.run(list);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        done.ok()?;
        graph.ok()?
    }
}

/// Puts one work item on `stream`.
fn run(work: &QueuedWork, context: &CudaContext, stream: &Arc<CudaStream>) -> Result<(), RuntimeError> {
    match work {
        QueuedWork::Kernel(call) => {
            let failed = |error: cudarc::driver::DriverError| RuntimeError::Launch {
                kernel: call.kernel,
                error: error.into(),
            };
            context.bind_to_thread().map_err(failed)?;
            let (function, params) = (call.function as CUfunction, call.params.as_ptr().cast_mut().cast());
            // SAFETY: `launch`'s caller guarantees that the struct belongs to the kernel and that its pointers stay valid.
            // The function's module is loaded until the queue is closed.
            unsafe { launching::launch(function, stream.cu_stream(), call.shape, params) }.map_err(failed)
        }
        &QueuedWork::Copy([from, to, bytes]) => {
            context.bind_to_thread()?;
            // SAFETY: both ranges were checked when the copy was gathered, and their memory is freed only after
            // `finish_later`.
            let copied = unsafe { result::memcpy_dtod_async(to, from, bytes as usize, stream.cu_stream()) };
            Ok(copied?)
        }
        QueuedWork::Call(_, call) => call.run(stream),
    }
}

/// Adds a hash, and forgets the oldest beyond the limit.
fn remember(hashes: &mut Vec<u64>, hash: u64) {
    if hashes.len() >= REMEMBERED {
        hashes.remove(0);
    }
    hashes.push(hash);
}

/// Destroys the least recently used graphs, until the others are within the budget.
fn evict(state: &mut State, dropped: &mut Dropped) {
    let total = |graphs: &[ListGraph]| graphs.iter().map(|graph| graph.list.len()).sum::<usize>();
    while state.graphs.len() > 1 && total(&state.graphs) > GRAPH_BUDGET {
        let oldest = state.graphs.iter().enumerate().min_by_key(|(_, graph)| graph.used);
        let Some((oldest, _)) = oldest else { return };
        dropped.extend(state.graphs.swap_remove(oldest).list);
    }
}
