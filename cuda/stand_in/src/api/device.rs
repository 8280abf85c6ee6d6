//! The driver's calls for devices and the context, and for the descriptions of results.

use std::ffi::{c_char, c_int};

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUresult};

use crate::driver::{CONTEXT, bind, bound_context, call, host_call};
use crate::foreign::Out;
use crate::modules::{SHARED, SHARED_OPT_IN};
use crate::refusal::{self, Outcome, refused};

const NAME: &[u8] = b"NVIDIA H100 80GB HBM3 (flexdraft's stand-in)";

/// The attributes of the device that the stand-in imitates, an H100 SXM.
const ATTRIBUTES: &[(Attribute, u32)] = &[
    (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9),
    (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0),
    (Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132),
    (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024),
    (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048),
    (Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
    (Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65_536),
    (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, SHARED),
    (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, SHARED_OPT_IN),
    (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 228 << 10),
    (Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 50 << 20),
    (Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1_980_000),
    (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 2_619_000),
    (Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 5120),
    (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1),
];

fn check_device(device: c_int) -> Outcome {
    if device == 0 {
        return Ok(());
    }
    refused(CUresult::CUDA_ERROR_INVALID_DEVICE, format!("the device is {device}; the only device is 0"))
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> u32 {
    call("cuInit", |driver| match flags {
        0 => driver.initialize(),
        _ => refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("the flags are {flags}, expected 0")),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> u32 {
    match version.set(13_000) {
        Ok(()) => 0,
        Err(refusal) => refusal.code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) -> u32 {
    host_call("cuDeviceGet", |_| {
        check_device(ordinal)?;
        device.set(ordinal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> u32 {
    host_call("cuDeviceGetCount", |_| count.set(1))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> u32 {
    host_call("cuDeviceGetName", |_| {
        check_device(device)?;
        let capacity = usize::try_from(len).unwrap_or_default();
        if name.is_null() || capacity == 0 {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "no room for the name");
        }
        let bytes = NAME.len().min(capacity - 1);
        // SAFETY: the caller has room for `len` bytes, the terminating zero among them.
        unsafe {
            std::ptr::copy_nonoverlapping(NAME.as_ptr().cast(), name, bytes);
            name.add(bytes).write(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, attribute: u32, device: c_int) -> u32 {
    host_call("cuDeviceGetAttribute", |_| {
        check_device(device)?;
        match ATTRIBUTES.iter().find(|(known, _)| *known as u32 == attribute) {
            Some((_, found)) => value.set(c_int::try_from(*found).unwrap_or(c_int::MAX)),
            None => {
                let reason = format!("the stand-in does not know attribute {attribute}");
                refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason)
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) -> u32 {
    host_call("cuDeviceTotalMem", |driver| {
        check_device(device)?;
        bytes.set(driver.memory()?.sizes().1 as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRetain", |driver| {
        check_device(device)?;
        driver.retained += 1;
        context.set(CONTEXT)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    host_call("cuDevicePrimaryCtxRelease", |driver| {
        check_device(device)?;
        if driver.retained == 0 {
            return refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, "the context is not retained");
        }
        driver.retained -= 1;
        if driver.retained == 0 {
            driver.finish_everything();
            driver.release_everything();
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<u64>) -> u32 {
    host_call("cuCtxGetCurrent", |_| context.set(bound_context()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: u64) -> u32 {
    host_call("cuCtxSetCurrent", |driver| {
        if context != 0 && (context != CONTEXT || driver.retained == 0) {
            let reason = format!("{context:#x} is no context, or was released");
            return refused(CUresult::CUDA_ERROR_INVALID_CONTEXT, reason);
        }
        bind(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    call("cuCtxSynchronize", |driver| {
        driver.bound()?;
        driver.refuse_in_any_capture()?;
        driver.finish_everything();
        driver.simt.full_barrier();
        match &driver.sticky {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: u32, name: Out<*const c_char>) -> u32 {
    let found = refusal::name(code);
    let set = name.set(found.map_or(std::ptr::null(), |name| name.as_ptr()));
    if found.is_some() && set.is_ok() { 0 } else { CUresult::CUDA_ERROR_INVALID_VALUE as u32 }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: u32, text: Out<*const c_char>) -> u32 {
    let found = refusal::description(code);
    let set = text.set(found.map_or(std::ptr::null(), |text| text.as_ptr()));
    if found.is_some() && set.is_ok() { 0 } else { CUresult::CUDA_ERROR_INVALID_VALUE as u32 }
}
