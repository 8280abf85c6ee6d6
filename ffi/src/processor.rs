//! The kernels on a processor: a GPU, or the SIMT emulator.

use std::ffi::{c_char, c_void};
use std::fmt;

use flexdraft::kernels::{Kernels, ModelShape, supports};
use flexdraft::layout::AttentionShape;
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{Cuda, QueueId, RawCuda, RawStream, Runtime, Simt, SimtOptions};

use crate::buffer::Operands;
use crate::status::{FlexdraftError, Outcome, Refusal, borrow, guard, read, size, versioned, write};

/// The version of this interface. A library with the same version accepts callers that were compiled with this header.
pub const FLEXDRAFT_ABI_VERSION: u32 = 1;

/// Device number of the SIMT emulator, which runs the kernels on the CPU, over host memory.
pub const FLEXDRAFT_EMULATOR: i32 = -1;
/// Device number of the SIMT emulator with checks of every memory access against the operands' bounds, and for races.
/// Many times slower than FLEXDRAFT_EMULATOR.
pub const FLEXDRAFT_CHECKED_EMULATOR: i32 = -2;

/// The kernels, loaded on a processor.
pub struct FlexdraftKernels(Processor);

enum Processor {
    Emulator(Kernels<Simt>),
    Gpu(Kernels<RawCuda>, Streams),
}

/// Returns the runtime's stream for the address of a stream of the device's primary context.
type Streams = Box<dyn Fn(u64) -> RawStream + Send + Sync>;

impl fmt::Debug for FlexdraftKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processor = match self.0 {
            Processor::Emulator(_) => "emulator",
            Processor::Gpu(..) => "gpu",
        };
        f.debug_tuple("FlexdraftKernels").field(&processor).finish()
    }
}

/// The kernels on one runtime, and a stream.
pub(crate) struct On<'a, R: Runtime> {
    pub kernels: &'a Kernels<R>,
    pub stream: &'a R::Stream,
}

impl<R: Runtime> On<'_, R> {
    /// Returns the queue of launches.
    pub fn queue(&self) -> QueueId {
        self.kernels.runtime().queue(self.stream)
    }

    /// Returns the way to view operands of launches on the stream.
    pub fn operands(&self) -> Operands {
        Operands(self.queue())
    }
}

/// An operation that is the same on every runtime. The safety conditions of the exported function that makes it hold.
pub(crate) trait Call {
    /// The result of the operation on the host.
    type Output;
    /// Runs the operation on a stream.
    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<Self::Output>;
}

impl FlexdraftKernels {
    /// Loads the kernels.
    pub(crate) fn open(device: i32) -> Outcome<Self> {
        let emulator = |checking| {
            let simt = Simt::new(SimtOptions { checking, ..SimtOptions::default() });
            FlexdraftKernels(Processor::Emulator(Kernels::new(simt)))
        };
        match device {
            FLEXDRAFT_EMULATOR => Ok(emulator(Checking::Off)),
            FLEXDRAFT_CHECKED_EMULATOR => Ok(emulator(Checking::Accesses)),
            _ => {
                let expected = "a CUDA device from 0 on, -1 for the emulator, or -2 for the checked emulator";
                let ordinal =
                    usize::try_from(device).map_err(|_| Refusal::value("device", device, expected))?;
                let context = Cuda::context(ordinal)?;
                let kernels = Kernels::new(RawCuda::new(&context)?);
                // SAFETY: callers of the interface guarantee that streams belong to the primary context and are alive.
                let stream = move |address| unsafe { RawStream::new(&context, address) };
                Ok(FlexdraftKernels(Processor::Gpu(kernels, Box::new(stream))))
            }
        }
    }

    /// Runs an operation on `stream`; the emulator has one stream, whatever `stream` is.
    pub(crate) fn run<C: Call>(&self, stream: *mut c_void, call: &C) -> Outcome<C::Output> {
        match &self.0 {
            Processor::Emulator(kernels) => {
                let stream = kernels.runtime().stream();
                call.run(&On { kernels, stream: &stream })
            }
            Processor::Gpu(kernels, streams) => {
                let stream = streams(stream as u64);
                call.run(&On { kernels, stream: &stream })
            }
        }
    }
}

/// Runs a launch of the C interface: reads the caller's struct and runs it as an operation.
///
/// # Safety
///
/// The conditions of [`read`], [`borrow`] and [`guard`] for the pointers, and the conditions of the operation.
pub(crate) unsafe fn launch<C: Call<Output = ()> + crate::status::Versioned>(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const C,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, || borrow("kernels", kernels)?.run(stream, &read(args)?)) }
}

/// Returns FLEXDRAFT_ABI_VERSION of the library. A caller compares it with the constant of its header.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_abi_version() -> u32 {
    FLEXDRAFT_ABI_VERSION
}

/// Returns the version of the library as text, such as "0.1.0". The text lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn flexdraft_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Loads the kernels on a processor and writes the object to `kernels`.
///
/// `device` is the number of a CUDA device, from 0 on, whose primary context is used; or FLEXDRAFT_EMULATOR; or
/// FLEXDRAFT_CHECKED_EMULATOR.
///
/// Errors: FLEXDRAFT_NO_DEVICE without a driver, such a device, or code for GPUs in the library; FLEXDRAFT_VALUE for
/// another negative number; FLEXDRAFT_RUNTIME if the driver cannot load the kernels.
///
/// # Safety
///
/// `kernels` is null or writable; `error` is null or valid for the size that it states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_open(
    device: i32,
    kernels: *mut *mut FlexdraftKernels,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        if kernels.is_null() {
            return Err(Refusal::null("kernels", "memory for the result"));
        }
        let opened = Box::into_raw(Box::new(FlexdraftKernels::open(device)?));
        // SAFETY: the caller upholds the contract of this function.
        unsafe { write("kernels", kernels, opened) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Unloads the kernels. Null is allowed.
///
/// # Safety
///
/// `kernels` is null, or came from `flexdraft_open` and is not used again. Its launches have run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_close(kernels: *mut FlexdraftKernels) {
    let body = || {
        if !kernels.is_null() {
            // SAFETY: the caller upholds the contract of this function.
            drop(unsafe { Box::from_raw(kernels) });
        }
        Ok(())
    };
    // SAFETY: null is no memory for an error.
    unsafe { guard(std::ptr::null_mut(), body) };
}

/// The numbers and the size of the attention heads of a model.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlexdraftHeads {
    /// Number of query heads: 1 to 16 for each KV head.
    pub q_heads: u64,
    /// Number of KV heads.
    pub kv_heads: u64,
    /// Elements per head: 64 or 128.
    pub head_dim: u64,
}

impl FlexdraftHeads {
    pub(crate) fn shape(self) -> Outcome<AttentionShape> {
        Ok(AttentionShape {
            q_heads: size("q_heads", self.q_heads)?,
            kv_heads: size("kv_heads", self.kv_heads)?,
            head_dim: size("head_dim", self.head_dim)?,
        })
    }
}

/// The shapes of a model and its drafter, for `flexdraft_supports`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftModelShape {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Numbers and size of the attention heads.
    pub heads: FlexdraftHeads,
    /// Number of token ids in the vocabulary.
    pub vocab: u64,
    /// Elements in a row of the residual stream.
    pub hidden: u64,
    /// Elements in a row of the MLP's activation.
    pub intermediate: u64,
    /// Rank of the drafter's calibrator; 0 without a calibrator.
    pub rank: u64,
    /// Rank of the drafter's chain, if its scores depend on hidden rows (the kind `hidden`); 0 for another chain, and without
    /// a chain.
    pub hidden_chain_rank: u64,
}

versioned!(FlexdraftModelShape before hidden_chain_rank);

/// Checks that the kernels support the shapes of a model.
///
/// Errors: FLEXDRAFT_UNSUPPORTED; the text names the first quantity that is beyond its limit, and the limit.
///
/// # Safety
///
/// `shape` and `error` are null or valid for the size that they state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_supports(
    shape: *const FlexdraftModelShape,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        let shape = unsafe { read(shape)? };
        let some = |name, rank| Ok::<_, Refusal>(Some(size(name, rank)?).filter(|&rank| rank > 0));
        Ok(supports(&ModelShape {
            attention: shape.heads.shape()?,
            vocab: size("vocab", shape.vocab)?,
            hidden: size("hidden", shape.hidden)?,
            intermediate: size("intermediate", shape.intermediate)?,
            rank: some("rank", shape.rank)?,
            hidden_chain_rank: some("hidden_chain_rank", shape.hidden_chain_rank)?,
        })?)
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}
