//! The SIMT emulator: runs the CUDA kernel sources, compiled as C++, on the CPU. Each CUDA thread is a fiber.
//!
//! The emulator tests the kernels on machines without a GPU, and is too slow for any other purpose. Device memory is
//! host memory, and operands are slices. A launch runs to its end at once, on the calling thread.

mod ffi;
mod order;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::order::LaunchOrder;
use super::{Element, Launch, Limits, QueueId, Region, Runtime, RuntimeError, View, ViewMut};

/// The checks that the SIMT emulator makes while a kernel runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checking {
    /// Only the checks that the emulator itself needs: unreached barriers and missing shared memory.
    #[default]
    Off,
    /// Checks of every memory access: operand bounds, alignment, races, and asynchronous copies that were not waited
    /// for. Many times slower.
    Accesses,
}

/// The time at which an asynchronous copy (`cp.async`) happens. A correct kernel cannot tell the difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Copies {
    /// An asynchronous copy happens as soon as it is issued.
    #[default]
    Eager,
    /// An asynchronous copy happens only when the kernel waits for it.
    Late,
}

/// Options of an emulator ([`Simt`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SimtOptions {
    /// The checks that the emulator makes while a kernel runs.
    pub checking: Checking,
    /// The time at which asynchronous copies happen.
    pub copies: Copies,
    /// The order in which the threads of a CTA run: 0 for index order, otherwise the seed of a random order. Odd seeds
    /// run the CTAs backwards.
    pub schedule: u64,
}

/// The limits that a kernel was compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLimits {
    /// The size of the parameter struct, in bytes.
    pub params_bytes: usize,
    /// The largest number of threads of a CTA.
    pub threads: u32,
}

/// Returns the name and the limits of a kernel; `None` if there is no such kernel.
pub fn kernel_limits(name: &str) -> Option<(&'static str, KernelLimits)> {
    let (mut params_bytes, mut threads) = (0, 0);
    // SAFETY: a name with its length, and memory for both results.
    let found = unsafe {
        ffi::flexdraft_simt_kernel(name.as_ptr(), name.len() as u64, &raw mut params_bytes, &raw mut threads)
    };
    if found.is_null() {
        return None;
    }
    // SAFETY: the emulator returns the name in its table, which is a string literal.
    let name = unsafe { CStr::from_ptr(found) }.to_str().ok()?;
    Some((name, KernelLimits { params_bytes: params_bytes as usize, threads }))
}

/// A runtime that runs kernels on the CPU, by emulating the threads of a GPU.
#[derive(Debug)]
pub struct Simt {
    options: SimtOptions,
    limits: Limits,
    context: u64,
    traffic: Mutex<Vec<Traffic>>,
    calls: Mutex<Calls>,
    recording: Mutex<Option<Recording>>,
    /// The history of launches, if their order is checked.
    order: Option<Mutex<LaunchOrder>>,
    /// The kernel whose waits for earlier launches do nothing.
    unwaited: Option<String>,
}

/// Recorded launches with their parameters: the counterpart of a captured CUDA graph. Like a graph, a
/// recording holds the addresses of the operands, not their contents.
#[derive(Debug, Default)]
pub struct Recording {
    launches: Vec<Recorded>,
}

#[derive(Debug)]
struct Recorded {
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    /// The launch's parameter struct, including its padding.
    params: Box<[MaybeUninit<u64>]>,
    params_bytes: usize,
    regions: Vec<Region>,
}

impl Recording {
    /// Returns the number of recorded launches.
    pub fn len(&self) -> usize {
        self.launches.len()
    }

    /// Returns whether no launch was recorded.
    pub fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }
}

impl Recorded {
    /// # Safety
    ///
    /// `launch.params` points to `launch.params_bytes` bytes.
    unsafe fn new(launch: &Launch<'_>) -> Self {
        let mut params = vec![MaybeUninit::uninit(); launch.params_bytes.div_ceil(size_of::<u64>())];
        // SAFETY: the buffer has room for the bytes; bytes that are not initialised stay uninitialised.
        unsafe {
            let from = launch.params.cast::<MaybeUninit<u8>>();
            std::ptr::copy_nonoverlapping(from, params.as_mut_ptr().cast(), launch.params_bytes);
        }
        Recorded {
            kernel: launch.kernel,
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            params: params.into_boxed_slice(),
            params_bytes: launch.params_bytes,
            regions: launch.regions.to_vec(),
        }
    }
}

/// Counts of the requests that an emulator has served. On a GPU, each request would be a call to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// The number of memory allocations.
    pub allocations: u64,
    /// The number of copies from host memory to device memory.
    pub uploads: u64,
    /// The number of bytes that the uploads copied.
    pub uploaded_bytes: u64,
    /// The number of copies from device memory to host memory. Each one makes the host wait, so this counts
    /// synchronisations.
    pub downloads: u64,
    /// The number of copies from device memory to device memory.
    pub copies: u64,
    /// The number of bytes that the copies within device memory copied.
    pub copied_bytes: u64,
    /// The number of kernel launches.
    pub launches: u64,
}

/// Bytes of an operand that one launch read and wrote; counted with [`Checking::Accesses`].
///
/// Every thread's access counts separately: if all lanes of a warp read the same bytes, which a GPU fetches
/// once, the totals count them once per lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The operand's name.
    pub operand: &'static str,
    /// The number of distinct bytes that the launch read.
    pub read: u64,
    /// The number of distinct bytes that the launch wrote.
    pub written: u64,
    /// The number of bytes of all reads: more than `read` if bytes were read repeatedly.
    pub read_total: u64,
    /// The number of bytes of all writes.
    pub written_total: u64,
}

/// The stream of an emulator ([`Simt`]). Launches run at once, so a stream is nothing more than its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimtStream(QueueId);

impl Simt {
    /// Makes an emulator with the limits of a small GPU: 4 multiprocessors, so that persistent grids are short, and the
    /// shared memory of compute capability 9.0.
    pub fn new(options: SimtOptions) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let limits = Limits {
            multiprocessors: 4,
            shared_bytes_per_cta: 227 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
        };
        Self::with_limits(options, limits, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn with_limits(options: SimtOptions, limits: Limits, context: u64) -> Self {
        let (traffic, calls, recording) = Default::default();
        Simt { options, limits, context, traffic, calls, recording, order: None, unwaited: None }
    }

    /// Returns the same emulator, on which a launch may begin before earlier launches have ended, as with programmatic
    /// dependent launch on a GPU. The emulator still runs one launch after the other. With [`Checking::Accesses`], a
    /// launch fails if it accesses memory that an earlier launch may not have finished with: before it waited for
    /// earlier launches, or because a launch between the two did not wait. Allocations and copies are full barriers.
    #[must_use]
    pub fn with_dependent_launches(mut self) -> Self {
        let checked = self.options.checking == Checking::Accesses;
        self.order = checked.then(LaunchOrder::new).flatten().map(Mutex::new);
        self
    }

    /// Returns the same emulator with a planted mistake: the waits of `kernel` for earlier launches do nothing, as if its
    /// source had none. A test of [dependent launches](Self::with_dependent_launches) must find the mistake.
    #[must_use]
    pub fn without_waits_of(mut self, kernel: &str) -> Self {
        self.unwaited = Some(kernel.to_owned());
        self
    }

    /// Notes that all earlier launches have ended, as after a wait of the host, for the check of
    /// [dependent launches](Self::with_dependent_launches).
    pub fn full_barrier(&self) {
        if let Some(mut order) = self.order() {
            order.barrier();
        }
    }

    /// Notes a launch of another library, which began with a full barrier and uses these regions, for the check of
    /// [dependent launches](Self::with_dependent_launches).
    pub fn foreign_launch(&self, regions: &[Region]) {
        if let Some(mut order) = self.order() {
            order.launch(&regions.iter().map(ffi::CheckedRegion::new).collect::<Vec<_>>());
        }
    }

    fn order(&self) -> Option<MutexGuard<'_, LaunchOrder>> {
        self.order.as_ref().map(|order| order.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a launch that begins when all earlier launches have ended.
    ///
    /// # Safety
    ///
    /// The contract of [`Runtime::launch`].
    ///
    /// # Errors
    ///
    /// The errors of [`Runtime::launch`].
    pub unsafe fn launch_after_all(&self, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        self.full_barrier();
        // SAFETY: the caller guarantees this.
        unsafe { self.launch(&self.stream(), launch) }
    }

    /// Returns the same emulator with other limits.
    #[must_use]
    pub fn limited(self, limits: Limits) -> Self {
        let Self { order, unwaited, .. } = self;
        Simt { order, unwaited, ..Self::with_limits(self.options, limits, self.context) }
    }

    /// Returns the stream of this emulator.
    pub fn stream(&self) -> SimtStream {
        SimtStream(QueueId { context: self.context, stream: 0 })
    }

    /// Returns the bytes that launches have read and written since the last call of this method: one entry per operand,
    /// in launch order.
    pub fn take_traffic(&self) -> Vec<Traffic> {
        std::mem::take(&mut *self.traffic())
    }

    fn traffic(&self) -> MutexGuard<'_, Vec<Traffic>> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counts of requests since the last call of this method.
    pub fn take_calls(&self) -> Calls {
        std::mem::take(&mut *self.calls())
    }

    /// Starts recording launches until [`take_recording`](Simt::take_recording). Recorded launches also run.
    pub fn record(&self) {
        *self.recording() = Some(Recording::default());
    }

    /// Returns the launches that were recorded since [`record`](Simt::record).
    pub fn take_recording(&self) -> Recording {
        self.recording().take().unwrap_or_default()
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Repeats the recorded launches on the current contents of their operands.
    ///
    /// # Safety
    ///
    /// The operands of the recorded launches are still at the same addresses, and nothing else uses them
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// The [`RuntimeError`] of the launch that failed.
    pub unsafe fn replay(&self, recording: &Recording) -> Result<(), RuntimeError> {
        recording.launches.iter().try_for_each(|recorded| {
            let launch = Launch {
                kernel: recorded.kernel,
                grid: recorded.grid,
                threads: recorded.threads,
                shared_bytes: recorded.shared_bytes,
                params: recorded.params.as_ptr().cast(),
                params_bytes: recorded.params_bytes,
                regions: &recorded.regions,
            };
            // SAFETY: the struct was made for this kernel; the caller guarantees this about its
            // operands.
            unsafe { self.launch(&self.stream(), &launch) }
        })
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimtStream {
    /// Views a slice as an operand that a kernel reads. The view borrows the slice,
    ///
    /// ```
    /// # let simt = flexdraft::runtime::Simt::new(Default::default());
    /// let memory = vec![1.0f32; 8];
    /// let stream = simt.stream();
    /// let view = stream.view(&memory);
    /// assert_eq!(view.len(), 8);
    /// drop(view);
    /// drop(memory);
    /// ```
    ///
    /// which can neither be freed meanwhile
    ///
    /// ```compile_fail,E0505
    /// # let simt = flexdraft::runtime::Simt::new(Default::default());
    /// let memory = vec![1.0f32; 8];
    /// let stream = simt.stream();
    /// let view = stream.view(&memory);
    /// drop(memory);
    /// view.len();
    /// ```
    ///
    /// nor written by another kernel:
    ///
    /// ```compile_fail,E0502
    /// # let simt = flexdraft::runtime::Simt::new(Default::default());
    /// let mut memory = vec![1.0f32; 8];
    /// let stream = simt.stream();
    /// let (read, written) = (stream.view(&memory), stream.view_mut(&mut memory));
    /// read.len() + written.len();
    /// ```
    pub fn view<'a, T: Element>(&self, memory: &'a [T]) -> View<'a, T> {
        // SAFETY: the view borrows the slice, and a launch has ended before it returns.
        unsafe { View::from_raw(memory.as_ptr() as u64, memory.len(), self.0) }
    }

    /// Views a slice as an operand that a kernel writes. Only one such view of a slice can exist:
    ///
    /// ```compile_fail,E0499
    /// # let simt = flexdraft::runtime::Simt::new(Default::default());
    /// let mut memory = vec![1.0f32; 8];
    /// let stream = simt.stream();
    /// let (one, other) = (stream.view_mut(&mut memory), stream.view_mut(&mut memory));
    /// one.len() + other.len();
    /// ```
    ///
    /// ```
    /// # let simt = flexdraft::runtime::Simt::new(Default::default());
    /// let mut memory = vec![1.0f32; 8];
    /// assert_eq!(simt.stream().view_mut(&mut memory).len(), 8);
    /// ```
    pub fn view_mut<'a, T: Element>(&self, memory: &'a mut [T]) -> ViewMut<'a, T> {
        // SAFETY: the view borrows the slice mutably, and a launch has ended before it returns.
        unsafe { ViewMut::from_raw(memory.as_mut_ptr() as u64, memory.len(), self.0) }
    }
}

impl Runtime for Simt {
    type Stream = SimtStream;
    type Memory<T: Element> = Vec<T>;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn queue(&self, stream: &SimtStream) -> QueueId {
        stream.0
    }

    fn allocate<T: Element>(&self, _: &SimtStream, len: usize) -> Result<Vec<T>, RuntimeError> {
        self.full_barrier();
        self.calls().allocations += 1;
        let mut memory = Vec::new();
        let reserved = memory.try_reserve_exact(len);
        let (elements, element_bytes) = (len, size_of::<T>());
        reserved.map_err(|_| RuntimeError::OutOfMemory { elements, element_bytes })?;
        memory.resize(len, T::zeroed());
        Ok(memory)
    }

    fn upload<T: Element>(
        &self,
        _: &SimtStream,
        from: &[T],
        to: &mut Vec<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.full_barrier();
        let mut calls = self.calls();
        calls.uploads += 1;
        calls.uploaded_bytes += size_of_val(from) as u64;
        drop(calls);
        let (wanted, found) = (from.len(), to.len());
        let range = first..first.saturating_add(wanted);
        to.get_mut(range).ok_or(RuntimeError::CopyLength { wanted, found })?.copy_from_slice(from);
        Ok(())
    }

    fn download<T: Element>(
        &self,
        _: &SimtStream,
        from: &Vec<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError> {
        self.full_barrier();
        self.calls().downloads += 1;
        let (wanted, found) = (to.len(), from.len());
        let range = first..first.saturating_add(wanted);
        to.copy_from_slice(from.get(range).ok_or(RuntimeError::CopyLength { wanted, found })?);
        Ok(())
    }

    fn copy<T: Element>(
        &self,
        _: &SimtStream,
        from: &Vec<T>,
        range: Range<usize>,
        to: &mut Vec<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.full_barrier();
        let mut calls = self.calls();
        calls.copies += 1;
        calls.copied_bytes += (range.len() * size_of::<T>()) as u64;
        let short = |wanted, found| RuntimeError::CopyLength { wanted, found };
        let from = from.get(range.clone()).ok_or(short(range.end, from.len()))?;
        let (wanted, found) = (first.saturating_add(from.len()), to.len());
        to.get_mut(first..wanted).ok_or(short(wanted, found))?.copy_from_slice(from);
        Ok(())
    }

    fn view<'a, T: Element>(&self, stream: &'a SimtStream, memory: &'a Vec<T>) -> View<'a, T> {
        stream.view(memory)
    }

    fn view_mut<'a, T: Element>(&self, stream: &'a SimtStream, memory: &'a mut Vec<T>) -> ViewMut<'a, T> {
        stream.view_mut(memory)
    }

    unsafe fn launch(&self, _: &SimtStream, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        self.calls().launches += 1;
        if let Some(recording) = &mut *self.recording() {
            // SAFETY: the caller guarantees this about `params`.
            recording.launches.push(unsafe { Recorded::new(launch) });
        }
        let checked = self.options.checking == Checking::Accesses;
        let mut regions: Vec<ffi::CheckedRegion> =
            launch.regions.iter().map(ffi::CheckedRegion::new).collect();
        let mut order = self.order();
        let mut request = ffi::EmulatedLaunch {
            kernel: launch.kernel.as_ptr(),
            kernel_bytes: launch.kernel.len() as u64,
            params: launch.params,
            regions: regions.as_mut_ptr(),
            region_count: regions.len() as u64,
            seed: self.options.schedule,
            history: order.as_mut().map_or(std::ptr::null_mut(), |order| order.as_ptr()),
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            checked: u32::from(checked),
            late_copies: u32::from(self.options.copies == Copies::Late),
            dependent: u32::from(order.is_some()),
            unwaited: u32::from(self.unwaited.as_deref() == Some(launch.kernel)),
            unused: 0,
        };
        let mut message = [0u8; 1024];
        // SAFETY: names and regions live until the call returns; the caller upholds the contract about `params`.
        let code = unsafe {
            ffi::flexdraft_simt_launch(&raw mut request, message.as_mut_ptr(), message.len() as u64)
        };
        drop(order);
        match code {
            0 => {}
            2 => return Err(RuntimeError::NoKernel(launch.kernel)),
            _ => {
                let len = message.iter().position(|&byte| byte == 0).unwrap_or(message.len());
                let message = String::from_utf8_lossy(&message[..len]).into_owned();
                return Err(RuntimeError::Failed { kernel: launch.kernel, message });
            }
        }
        if checked {
            self.traffic().extend(launch.regions.iter().zip(&regions).map(|(region, counted)| Traffic {
                kernel: launch.kernel,
                operand: region.name,
                read: counted.read,
                written: counted.written,
                read_total: counted.read_total,
                written_total: counted.written_total,
            }));
        }
        Ok(())
    }
}
