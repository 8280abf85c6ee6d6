//! The run of a stream's work, piece by piece, on the emulator and in device memory.

use cudarc::driver::sys::CUresult;
use flexdraft::runtime::{Access, Launch, Region, Runtime};

use crate::cublas::multiply;
use crate::driver::Driver;
use crate::memory::{self, Allocation};
use crate::objects::Recorded;
use crate::policy::Skip;
use crate::refusal::{Outcome, Refusal, refused};
use crate::work::{KernelLaunch, Place, Work};

/// The number of bytes beyond which the policy `large` skips a copy.
const LARGE_COPY: u64 = 256 << 20;

impl Driver {
    /// Runs all work that was put on a stream. An error of the work is an error of the context, and appears in later
    /// calls.
    pub fn finish_all_of(&mut self, handle: u64) {
        let issued = self.streams.get(&handle).map_or(0, |stream| stream.issued);
        if let Err(refusal) = self.finish(handle, issued)
            && self.sticky.is_none()
        {
            self.sticky = Some(refusal);
        }
    }

    /// Runs a stream's work until `count` pieces of it have run.
    pub fn finish(&mut self, handle: u64, count: u64) -> Outcome {
        loop {
            let Some(stream) = self.streams.get_mut(&handle).filter(|stream| stream.finished < count) else {
                return Ok(());
            };
            let Some(work) = stream.waiting.pop_front() else { return Ok(()) };
            // Only the order within a stream is checked.
            if self.newest_stream != handle {
                self.newest_stream = handle;
                self.simt.full_barrier();
            }
            let ran = run(self, &work);
            if let Some(stream) = self.streams.get_mut(&handle) {
                stream.finished += 1;
                if ran.is_err() {
                    // No work runs in a context after an error.
                    stream.finished = stream.issued;
                    stream.waiting.clear();
                }
            }
            ran?;
        }
    }

    /// Runs all work of all streams.
    pub fn finish_everything(&mut self) {
        let handles: Vec<u64> = self.streams.keys().copied().collect();
        handles.into_iter().for_each(|handle| self.finish_all_of(handle));
        self.streams.retain(|_, stream| !stream.destroyed || stream.finished < stream.issued);
    }

    /// Notes that a stream reached an event.
    pub fn reached(&mut self, event: u64, now: u64) {
        let clock = self.clock;
        if let Some(event) = self.events.get_mut(&event)
            && matches!(event.recorded, Recorded::At { recording, .. } if recording == now)
        {
            event.time = Some(clock);
        }
    }
}

/// The allocations that are accessible while a piece of work runs.
struct Opened(Vec<Allocation>);

impl Opened {
    fn add(&mut self, driver: &Driver, address: u64, bytes: u64) -> Outcome {
        let allocation = driver.memory()?.containing(address, bytes)?;
        memory::open(&allocation);
        self.0.push(allocation);
        Ok(())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.iter().for_each(memory::close);
    }
}

/// Runs one piece of work.
fn run(driver: &mut Driver, work: &Work) -> Outcome {
    driver.clock += work.microseconds();
    let mut opened = Opened(Vec::new());
    // Only kernels begin before earlier work has ended, and only directly after kernels.
    if matches!(work, Work::Copy { .. } | Work::Fill { .. } | Work::Graph(_)) {
        driver.simt.full_barrier();
    }
    match work {
        Work::Copy { to, from, bytes } => {
            for place in [to, from] {
                if let Place::Device(address) = place {
                    opened.add(driver, *address, *bytes)?;
                }
            }
            if *bytes > LARGE_COPY && driver.policy.skip == Skip::Large {
                return Ok(());
            }
            let source = match from {
                Place::Device(address) | Place::Host(address) => address_of(*address),
                Place::Staged(bytes) => bytes.as_ptr(),
            };
            let (Place::Device(address) | Place::Host(address)) = to else { return Ok(()) };
            // SAFETY: ranges of device memory were checked and opened; the caller of the copy answers for its own
            // memory, and staged bytes have this length. A copy may overlap itself.
            unsafe { std::ptr::copy(source, address_of(*address).cast_mut(), *bytes as usize) };
            Ok(())
        }
        Work::Fill { to, value, bytes } => {
            opened.add(driver, *to, *bytes)?;
            // SAFETY: the range was checked and opened.
            unsafe { memory::fill(*to, *value, *bytes as usize) };
            Ok(())
        }
        Work::Launch(launch) => run_kernel(driver, launch, &mut opened),
        Work::Product(product) => {
            for Region { address, bytes, .. } in product.regions() {
                opened.add(driver, address, bytes)?;
            }
            driver.simt.foreign_launch(&product.regions());
            let skipped = match driver.policy.skip {
                Skip::All => true,
                Skip::Large => product.is_large(),
                Skip::Nothing | Skip::Kernel(_) => false,
            };
            if skipped { Ok(()) } else { multiply(driver, product) }
        }
        Work::Free(address) => driver.free_now(*address),
        Work::Reached { event, recording } => {
            driver.reached(*event, *recording);
            Ok(())
        }
        Work::Wait { stream, count } => driver.finish(*stream, *count),
        Work::Graph(nodes) => {
            nodes.iter().try_for_each(|node| run(driver, node))?;
            driver.simt.full_barrier();
            Ok(())
        }
    }
}

fn run_kernel(driver: &mut Driver, launch: &KernelLaunch, opened: &mut Opened) -> Outcome {
    let named = |refusal: Refusal| Refusal {
        code: CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as u32,
        reason: format!("kernel {}: {}", launch.name, refusal.reason),
    };
    if !driver.modules.contains_key(&launch.module) {
        let reason = format!("kernel {}: its module was unloaded before it ran", launch.name);
        driver.violation(&reason);
        return refused(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, reason);
    }
    let mut regions = Vec::new();
    for &word in launch.params.iter().filter(|&&word| memory::is_device_address(word)) {
        // A pointer may lead to the end of an allocation, if the kernel's operand there is empty.
        let inside = driver.memory()?.containing(word, 0).map_err(named)?;
        opened.add(driver, inside.start, 0).map_err(named)?;
        let Allocation { start: address, bytes } = inside;
        if regions.iter().all(|region: &Region| region.address != address) {
            regions.push(Region { name: "an allocation", address, bytes, access: Access::Write });
        }
    }
    let skipped = match &driver.policy.skip {
        Skip::All => true,
        Skip::Kernel(name) => name == launch.name,
        Skip::Nothing | Skip::Large => false,
    };
    if skipped {
        return Ok(());
    }
    driver.launched.insert(launch.name);
    let request = Launch {
        kernel: launch.name,
        grid: launch.grid,
        threads: launch.threads,
        shared_bytes: launch.shared_bytes,
        params: launch.params.as_ptr().cast(),
        params_bytes: launch.params_bytes,
        regions: &regions,
    };
    // SAFETY: `params` is a copy of the struct that the caller gave to the driver for this kernel. Its pointers lead to
    // allocations, which are open; whoever launches a kernel answers for what it accesses, as with the driver.
    let ran = unsafe {
        match launch.dependent {
            true => driver.simt.launch(&driver.simt.stream(), &request),
            false => driver.simt.launch_after_all(&request),
        }
    };
    ran.or_else(|error| refused(CUresult::CUDA_ERROR_LAUNCH_FAILED, error.to_string()))
}

fn address_of(address: u64) -> *const u8 {
    std::ptr::with_exposed_provenance(address as usize)
}
