//! The driver's calls for memory, copies and pointer attributes.

use std::ffi::c_void;

use cudarc::driver::sys::{CUmemorytype, CUpointer_attribute, CUresult};

use crate::driver::{Driver, call};
use crate::foreign::{In, Out};
use crate::memory::is_device_address;
use crate::refusal::{Outcome, refused};
use crate::work::{Place, Work};

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> u32 {
    call("cuMemGetInfo", |driver| {
        driver.bound()?;
        let sizes = driver.memory()?.sizes();
        free.set(sizes.0 as usize)?;
        total.set(sizes.1 as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> u32 {
    call("cuMemAlloc", |driver| {
        driver.bound()?;
        driver.refuse_in_capture()?;
        address.set(driver.memory_mut()?.allocate(bytes as u64)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: u64) -> u32 {
    call("cuMemAllocAsync", |driver| {
        driver.bound()?;
        if driver.stream(stream)?.capture.is_some() {
            return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, "the stand-in has no allocations in graphs");
        }
        address.set(driver.memory_mut()?.allocate(bytes as u64)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    call("cuMemFree", |driver| {
        driver.bound()?;
        driver.refuse_in_capture()?;
        // Before memory is freed, the driver waits for work that may use it.
        driver.finish_everything();
        driver.free_now(address)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> u32 {
    call("cuMemFreeAsync", |driver| {
        driver.bound()?;
        let found = driver.memory()?.containing(address, 0)?;
        if found.start != address {
            let reason = format!("{address:#x} is inside the allocation at {:#x}", found.start);
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
        }
        if driver.stream(stream)?.capture.is_some() {
            return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, "the stand-in frees no memory in graphs");
        }
        driver.enqueue(stream, Work::Free(address))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: Out<u64>, bytes: usize, _flags: u32) -> u32 {
    call("cuMemHostAlloc", |driver| {
        driver.bound()?;
        driver.refuse_in_capture()?;
        address.set(driver.memory_mut()?.lock_pages(bytes as u64)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: u64) -> u32 {
    call("cuMemFreeHost", |driver| {
        driver.bound()?;
        let uses = |work: &Work| match work {
            Work::Copy { to, from, .. } => [to, from].iter().any(|place| match place {
                Place::Host(at) => {
                    driver.memory().is_ok_and(|memory| memory.page_locked_at(*at) == Some(address))
                }
                _ => false,
            }),
            _ => false,
        };
        if driver.streams.values().any(|stream| stream.waiting.iter().any(uses)) {
            driver.violation("cuMemFreeHost: a copy of this memory has not run yet");
        }
        driver.memory_mut()?.unlock_pages(address)
    })
}

/// Puts a copy on a stream, after a check of its device addresses.
fn copy(driver: &mut Driver, to: Place, from: Place, bytes: usize, stream: u64) -> Outcome {
    driver.bound()?;
    driver.stream(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    for place in [&to, &from] {
        match place {
            Place::Device(address) => driver.memory()?.containing(*address, bytes as u64).map(drop)?,
            Place::Host(0) => return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a null pointer"),
            Place::Host(address) if is_device_address(*address) => {
                let reason = format!("{address:#x} is memory of the device, not of the host");
                return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
            }
            Place::Host(_) | Place::Staged(_) => {}
        }
    }
    driver.enqueue(stream, Work::Copy { to, from, bytes: bytes as u64 })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: In<u8>, bytes: usize, stream: u64) -> u32 {
    call("cuMemcpyHtoDAsync", |driver| {
        let address = from.address();
        let captured = driver.stream(stream)?.capture.is_some();
        // A graph reads the memory of the host at each replay, whatever kind of memory it is.
        if captured || is_device_address(address) || driver.memory()?.is_page_locked(address) {
            return copy(driver, Place::Device(to), Place::Host(address), bytes, stream);
        }
        let staged = from.copied(bytes)?.into();
        copy(driver, Place::Device(to), Place::Staged(staged), bytes, stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> u32 {
    call("cuMemcpyDtoHAsync", |driver| copy(driver, Place::Host(to), Place::Device(from), bytes, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> u32 {
    call("cuMemcpyDtoDAsync", |driver| copy(driver, Place::Device(to), Place::Device(from), bytes, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64) -> u32 {
    call("cuMemsetD8Async", |driver| {
        driver.bound()?;
        driver.stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        driver.memory()?.containing(to, bytes as u64)?;
        driver.enqueue(stream, Work::Fill { to, value, bytes: bytes as u64 })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttributes(
    count: u32,
    attributes: In<u32>,
    data: In<*mut c_void>,
    address: u64,
) -> u32 {
    call("cuPointerGetAttributes", |driver| {
        let memory = driver.memory()?;
        for index in 0..count as usize {
            let attribute = attributes.get(index)?;
            if attribute != CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as u32 {
                let reason = format!("the stand-in does not know attribute {attribute}");
                return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
            }
            // The driver reports no memory type for memory that it does not know.
            let kind = if is_device_address(address) && memory.containing(address, 1).is_ok() {
                CUmemorytype::CU_MEMORYTYPE_DEVICE as u32
            } else if memory.is_page_locked(address) {
                CUmemorytype::CU_MEMORYTYPE_HOST as u32
            } else {
                0
            };
            let to = data.get(index)?.cast::<u32>();
            if to.is_null() {
                return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "a null pointer for an attribute");
            }
            // SAFETY: the caller passes memory for each attribute's value, which is an unsigned integer here.
            unsafe { to.write_unaligned(kind) };
        }
        Ok(())
    })
}
