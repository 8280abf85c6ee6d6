//! Tests that another engine can capture the kernels in a graph of its own, on a stream of its own, and replay the graph
//! for other steps: everything that changes is in device memory, rows beyond the step are padding, and tables and
//! workspaces are large enough for the largest step.

mod decisions;
mod layer;

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode};
use flexdraft::kernels::Kernels;
use flexdraft::runtime::{Cuda, RawCuda, RawStream};

use crate::bench::Bench;

/// A stream that the driver made, as another engine's stream is, with the kernels on it.
struct Foreign {
    bench: Bench<RawCuda>,
    raw: CUstream,
}

/// A graph of the launches that were captured on a foreign stream.
struct Captured<'a> {
    executable: CUgraphExec,
    graph: CUgraph,
    on: &'a Foreign,
}

/// Runs `test` with the kernels on a foreign stream.
fn on_a_foreign_stream(test: impl FnOnce(&Foreign)) {
    let context = Cuda::context(0).unwrap();
    let kernels = Kernels::new(RawCuda::new(&context).unwrap());
    let raw = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    // SAFETY: the stream is of this context, and destroyed after the test.
    let stream = unsafe { RawStream::new(&context, raw as u64) };
    let foreign = Foreign { bench: Bench { kernels, stream }, raw };
    test(&foreign);
    drop(foreign);
    // SAFETY: nothing uses the stream any more.
    unsafe { result::stream::destroy(raw) }.unwrap();
}

impl Foreign {
    /// Captures launches in a graph.
    ///
    /// # Safety
    ///
    /// The operands of the launches stay where they are until the graph's last launch has run.
    unsafe fn captured(&self, launches: impl FnOnce()) -> Captured<'_> {
        // SAFETY: the stream is alive, and the graph is destroyed with the result.
        unsafe {
            result::stream::begin_capture(self.raw, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)
                .unwrap();
            launches();
            let graph = result::stream::end_capture(self.raw).unwrap();
            let executable = result::graph::instantiate(graph, CUgraphInstantiate_flags(0)).unwrap();
            Captured { executable, graph, on: self }
        }
    }
}

impl Captured<'_> {
    fn launch(&self) {
        // SAFETY: graph and stream are alive, and the operands too, as the caller of `captured` guarantees.
        unsafe { result::graph::launch(self.executable, self.on.raw) }.unwrap();
    }
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        // SAFETY: the handles are destroyed once.
        unsafe {
            result::graph::exec_destroy(self.executable).unwrap();
            result::graph::destroy(self.graph).unwrap();
        }
    }
}
