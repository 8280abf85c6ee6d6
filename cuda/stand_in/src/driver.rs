//! The state of the imitated driver, and the steps that every call has in common.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, PoisonError, TryLockError};

use cudarc::cublaslt::sys::cublasStatus_t as Status;
use cudarc::driver::sys::CUresult;
use flexdraft::device::DeviceError;
use flexdraft::device::gpu::CpuProducts;
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{Simt, SimtOptions};

use crate::cublas::Cublas;
use crate::faults;
use crate::memory::Memory;
use crate::modules::{Function, Module};
use crate::objects::{Capture, Event, LEGACY, Stream};
use crate::policy::Policy;
use crate::refusal::{self, Outcome, Refusal, refused};
use crate::work::Work;

/// The handle of the device's only context.
pub const CONTEXT: u64 = 0xc0de_0000;

/// Exit status of a process that leaked something or did what CUDA leaves undefined.
const FOUND: i32 = 86;

/// The state of the imitated driver: its context, and every object that calls have made.
pub struct Driver {
    pub policy: Policy,
    pub initialized: bool,
    /// The number of users that have retained the context.
    pub retained: u64,
    memory: Option<Memory>,
    pub streams: BTreeMap<u64, Stream>,
    pub events: HashMap<u64, Event>,
    pub recordings: u64,
    pub captures: HashMap<u64, Capture>,
    pub graphs: HashMap<u64, Arc<[Work]>>,
    pub executables: HashMap<u64, Arc<[Work]>>,
    pub modules: HashMap<u64, Module>,
    pub functions: HashMap<u64, Function>,
    pub cublas: Cublas,
    pub simt: Simt,
    /// The stream whose work ran last.
    pub newest_stream: u64,
    products: Option<Arc<CpuProducts>>,
    /// The modelled time of the device, in microseconds.
    pub clock: f64,
    /// An error of work that ran earlier, which every later call returns.
    pub sticky: Option<Refusal>,
    handles: u64,
    calls: BTreeMap<&'static str, u64>,
    violations: u64,
    /// The kernels that ran.
    pub launched: BTreeSet<&'static str>,
    unreadable: Option<String>,
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new()));

thread_local! {
    /// The handle of the context that is bound to the thread, or 0.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

impl Driver {
    fn new() -> Self {
        let (policy, unreadable) = match Policy::from_environment() {
            Ok(policy) => (policy, None),
            Err(problem) => (Policy::default(), Some(problem)),
        };
        let checking = if policy.checked { Checking::Accesses } else { Checking::Off };
        let mut simt =
            Simt::new(SimtOptions { checking, ..SimtOptions::default() }).with_dependent_launches();
        if let Some(kernel) = &policy.unwaited {
            simt = simt.without_waits_of(kernel);
        }
        Driver {
            initialized: false,
            retained: 0,
            memory: None,
            streams: BTreeMap::from([(LEGACY, Stream { blocking: true, ..Stream::default() })]),
            events: HashMap::new(),
            recordings: 0,
            captures: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            cublas: Cublas::default(),
            simt,
            newest_stream: LEGACY,
            products: None,
            clock: 0.0,
            sticky: None,
            handles: 0x1000,
            calls: BTreeMap::new(),
            violations: 0,
            launched: BTreeSet::new(),
            unreadable,
            policy,
        }
    }

    /// Returns a handle that was never used.
    pub fn next_handle(&mut self) -> u64 {
        self.handles += 0x10;
        self.handles
    }

    pub fn memory(&self) -> Outcome<&Memory> {
        match &self.memory {
            Some(memory) => Ok(memory),
            None => refused(CUresult::CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called"),
        }
    }

    pub fn memory_mut(&mut self) -> Outcome<&mut Memory> {
        match &mut self.memory {
            Some(memory) => Ok(memory),
            None => refused(CUresult::CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called"),
        }
    }

    /// Implements cuInit.
    pub fn initialize(&mut self) -> Outcome {
        if let Some(problem) = &self.unreadable {
            eprintln!("stand-in: {problem}");
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, problem.clone());
        }
        if self.memory.is_none() {
            self.memory = Some(Memory::new(self.policy.memory)?);
        }
        self.initialized = true;
        static AT_EXIT: Once = Once::new();
        AT_EXIT.call_once(|| {
            faults::install();
            // SAFETY: the handler is a function of this library, which no process unloads.
            unsafe { libc::atexit(at_exit) };
        });
        Ok(())
    }

    /// Returns the matrix products that the emulator computes on the CPU.
    pub fn cpu_products(&mut self) -> Result<Arc<CpuProducts>, DeviceError> {
        match &self.products {
            Some(products) => Ok(products.clone()),
            None => Ok(self.products.insert(Arc::new(CpuProducts::new(1)?)).clone()),
        }
    }

    /// Returns the stream of a handle, or refuses the call if no stream has this handle or the stream was destroyed.
    pub fn stream(&self, handle: u64) -> Outcome<&Stream> {
        match self.streams.get(&handle).filter(|stream| !stream.destroyed) {
            Some(stream) => Ok(stream),
            None => refused(
                CUresult::CUDA_ERROR_INVALID_HANDLE,
                format!("{handle:#x} is no stream, or was destroyed"),
            ),
        }
    }

    pub fn event(&mut self, handle: u64) -> Outcome<&mut Event> {
        match self.events.get_mut(&handle) {
            Some(event) => Ok(event),
            None => refused(
                CUresult::CUDA_ERROR_INVALID_HANDLE,
                format!("{handle:#x} is no event, or was destroyed"),
            ),
        }
    }

    pub fn function(&mut self, handle: u64) -> Outcome<&mut Function> {
        match self.functions.get_mut(&handle) {
            Some(function) => Ok(function),
            None => refused(
                CUresult::CUDA_ERROR_INVALID_HANDLE,
                format!("{handle:#x} is no function, or is unloaded"),
            ),
        }
    }

    /// Refuses a call unless the context is bound to the calling thread.
    pub fn bound(&self) -> Outcome {
        match BOUND.get() {
            CONTEXT if self.retained > 0 => Ok(()),
            CONTEXT => refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, "the bound context was released"),
            _ => refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, "no context is bound to this thread"),
        }
    }

    /// Frees an allocation of device memory at once, without waiting for work.
    pub fn free_now(&mut self, address: u64) -> Outcome {
        if self.memory_mut()?.free(address)? {
            self.violation(&format!("bytes after the end of the allocation at {address:#x} were written"));
        }
        Ok(())
    }

    /// Reports a use of the driver that CUDA leaves undefined.
    pub fn violation(&mut self, text: &str) {
        self.violations += 1;
        eprintln!("stand-in: {text}");
    }

    /// Counts a call by its name, and refuses the call after an error of earlier work or if a policy says so.
    fn begin(&mut self, name: &'static str, needs_device: bool) -> Outcome {
        let calls = self.calls.entry(name).or_default();
        *calls += 1;
        if self.policy.failure.as_ref().is_some_and(|failure| failure.call == name && failure.nth == *calls) {
            eprintln!("stand-in: {name} fails by a policy");
            return Err(Refusal { code: failure_of(name), reason: "this call fails by a policy".into() });
        }
        if !self.initialized && name != "cuInit" {
            return refused(CUresult::CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
        }
        match &self.sticky {
            Some(error) if needs_device => {
                let Refusal { code, reason } = error;
                Err(Refusal { code: *code, reason: format!("an error of earlier work: {reason}") })
            }
            _ => Ok(()),
        }
    }

    /// Releases everything that belongs to the context, whose work has run. What its users still held is reported.
    pub fn release_everything(&mut self) {
        if self.sticky.is_none() {
            let held = self.held();
            if !held.is_empty() {
                self.violation(&format!("the context was released with {held}"));
            }
        }
        let allocations: Vec<u64> =
            self.memory.iter().flat_map(|memory| memory.live().map(|found| found.start)).collect();
        for address in allocations {
            let _ = self.free_now(address);
        }
        self.streams.retain(|&handle, _| handle == LEGACY);
        self.events.clear();
        self.graphs.clear();
        self.executables.clear();
        self.captures.clear();
        self.modules.clear();
        self.functions.clear();
    }

    /// Lists the objects and the memory that callers still hold; empty if they hold none.
    fn held(&self) -> String {
        let bytes: Vec<u64> =
            self.memory.iter().flat_map(|memory| memory.live().map(|found| found.bytes)).collect();
        let locked = self.memory.iter().flat_map(Memory::live_page_locked).count();
        let mut text = String::new();
        if !bytes.is_empty() {
            let _ = write!(text, "{} allocations ({} bytes)", bytes.len(), bytes.iter().sum::<u64>());
        }
        let counts = [
            (locked, "page-locked allocations"),
            (
                self.streams
                    .iter()
                    .filter(|(handle, stream)| **handle != LEGACY && !stream.destroyed)
                    .count(),
                "streams",
            ),
            (self.events.len(), "events"),
            (self.graphs.len() + self.executables.len(), "graphs"),
            (self.modules.len(), "modules"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}{count} {what}");
        }
        text
    }
}

/// Binds a context to this thread.
pub fn bind(context: u64) {
    BOUND.set(context);
}

/// Returns the context that is bound to this thread.
pub fn bound_context() -> u64 {
    BOUND.get()
}

/// Returns the code that a call returns when a policy makes it fail.
fn failure_of(name: &str) -> u32 {
    match name {
        "cuMemAlloc" | "cuMemAllocAsync" | "cuMemHostAlloc" => CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32,
        "cuLaunchKernel" | "cuLaunchKernelEx" => CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES as u32,
        "cublasLtCreate" => Status::CUBLAS_STATUS_ALLOC_FAILED as u32,
        name if name.starts_with("cublasLt") => Status::CUBLAS_STATUS_EXECUTION_FAILED as u32,
        _ => CUresult::CUDA_ERROR_UNKNOWN as u32,
    }
}

fn lock() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a call of the driver that uses the device. No panic leaves it.
pub fn call(name: &'static str, body: impl FnOnce(&mut Driver) -> Outcome) -> u32 {
    guarded(name, true, CUresult::CUDA_ERROR_UNKNOWN as u32, body)
}

/// Runs a call of the driver that works even after an error of the context.
pub fn host_call(name: &'static str, body: impl FnOnce(&mut Driver) -> Outcome) -> u32 {
    guarded(name, false, CUresult::CUDA_ERROR_UNKNOWN as u32, body)
}

/// Runs a call of cuBLASLt.
pub fn cublas_call(name: &'static str, body: impl FnOnce(&mut Driver) -> Outcome) -> u32 {
    guarded(name, false, Status::CUBLAS_STATUS_INTERNAL_ERROR as u32, body)
}

fn guarded(
    name: &'static str,
    needs_device: bool,
    after_panic: u32,
    body: impl FnOnce(&mut Driver) -> Outcome,
) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut driver = lock();
        faults::now_in(name);
        let outcome = driver.begin(name, needs_device).and_then(|()| body(&mut driver));
        faults::now_in("");
        outcome.map_err(|refusal| (refusal, driver.policy.log))
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err((Refusal { code, reason }, log))) => {
            let text = format!("{name}: {reason}");
            refusal::remember(code, &text);
            if log {
                eprintln!("stand-in: {text}");
            }
            code
        }
        Err(_) => {
            eprintln!("stand-in: {name} panicked");
            after_panic
        }
    }
}

/// Reports leaks when the process ends, and writes the number of calls by name.
extern "C" fn at_exit() {
    let checked = catch_unwind(|| {
        let mut driver = match DRIVER.try_lock() {
            Ok(driver) => driver,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // If another thread is inside a call, it will not leave the call any more.
            Err(TryLockError::WouldBlock) => return false,
        };
        if driver.sticky.is_none() {
            let mut held = driver.held();
            let descriptors = driver.cublas.live();
            if descriptors > 0 {
                let separator = if held.is_empty() { "" } else { ", " };
                let _ = write!(held, "{separator}{descriptors} objects of cuBLASLt");
            }
            if !held.is_empty() {
                driver.violation(&format!("the process ended with {held}"));
            }
        }
        let never = driver.policy.unwaited.clone().filter(|kernel| !driver.launched.contains(&**kernel));
        if let Some(kernel) = never {
            let launched: Vec<&str> = driver.launched.iter().copied().collect();
            driver.violation(&format!(
                "{kernel}, whose waits a policy takes away, was never launched; launched: {}",
                launched.join(" ")
            ));
        }
        if let Some(path) = &driver.policy.calls {
            let lines: String =
                driver.calls.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
            if let Err(error) = std::fs::write(path, lines) {
                eprintln!("stand-in: {}: {error}", path.display());
            }
        }
        driver.violations > 0
    });
    if !matches!(checked, Ok(false)) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(FOUND) };
    }
}
