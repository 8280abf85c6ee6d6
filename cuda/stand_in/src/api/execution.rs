//! The driver's calls for modules, functions and launches.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::{CUlaunchAttributeID, CUlaunchConfig, CUresult};
use flexdraft::runtime::simt::kernel_limits;

use crate::driver::{Driver, call};
use crate::foreign::{In, Out, Text};
use crate::modules::{Function, Module, SHARED};
use crate::refusal::{Outcome, refused};
use crate::work::{KernelLaunch, Work};

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<u64>, image: In<u8>) -> u32 {
    call("cuModuleLoadData", |driver| {
        driver.bound()?;
        driver.refuse_in_capture()?;
        // SAFETY: the caller upholds the contract about images.
        let found = unsafe { Module::read(image.pointer()) }?;
        let handle = driver.next_handle();
        driver.modules.insert(handle, found);
        module.set(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> u32 {
    call("cuModuleUnload", |driver| {
        driver.bound()?;
        driver.refuse_in_capture()?;
        if driver.modules.remove(&module).is_none() {
            let reason = format!("{module:#x} is no module, or was unloaded");
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, reason);
        }
        driver.functions.retain(|_, function| function.module != module);
        Ok(())
    })
}

/// Makes a function of the kernel `name` of a module, and returns its handle.
fn load_function(driver: &mut Driver, module: u64, name: &str) -> Outcome<u64> {
    let Some(found) = driver.modules.get(&module) else {
        return refused(
            CUresult::CUDA_ERROR_INVALID_HANDLE,
            format!("{module:#x} is no module, or was unloaded"),
        );
    };
    let Some((name, limits)) = kernel_limits(name).filter(|_| found.may_have(name)) else {
        return refused(CUresult::CUDA_ERROR_NOT_FOUND, format!("the image has no kernel `{name}`"));
    };
    let function = Function { module, name, limits, shared_bytes: SHARED };
    let handle = driver.next_handle();
    driver.functions.insert(handle, function);
    Ok(handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(function: Out<u64>, module: u64, name: Text) -> u32 {
    call("cuModuleGetFunction", |driver| {
        driver.bound()?;
        let name = name.read()?.into_owned();
        function.set(load_function(driver, module, &name)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<c_int>, attribute: u32, function: u64) -> u32 {
    call("cuFuncGetAttribute", |driver| {
        driver.bound()?;
        value.set(driver.function(function)?.attribute(attribute)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: u64, attribute: u32, value: c_int) -> u32 {
    call("cuFuncSetAttribute", |driver| {
        driver.bound()?;
        driver.function(function)?.set_attribute(attribute, value)
    })
}

/// The parameters that a launch passes to its kernel: a pointer to each, or one buffer with its size.
struct Params {
    each: In<*const u8>,
    extra: In<*const c_void>,
}

/// The keys of the list in which a launch describes its parameter buffer.
const END: usize = 0;
const BUFFER: usize = 1;
const BUFFER_SIZE: usize = 2;

impl Params {
    /// Copies the parameter struct, which every kernel has as its only parameter.
    fn read(&self, name: &str, bytes: usize) -> Outcome<Vec<u64>> {
        let mut words = vec![0u64; bytes.div_ceil(size_of::<u64>())];
        let from = match (self.each.is_null(), self.extra.is_null()) {
            (false, true) => self.each.get(0)?,
            (true, false) => self.buffer(name, bytes)?,
            _ => {
                let reason = format!("kernel {name}: parameters are either separate or in one buffer");
                return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
            }
        };
        if from.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("kernel {name}: no parameter"));
        }
        // SAFETY: the caller guarantees that the parameter has the size that the kernel declares.
        unsafe { std::ptr::copy_nonoverlapping(from, words.as_mut_ptr().cast::<u8>(), bytes) };
        Ok(words)
    }

    fn buffer(&self, name: &str, bytes: usize) -> Outcome<*const u8> {
        let (mut buffer, mut size, mut index) = (std::ptr::null(), None, 0);
        loop {
            let key = self.extra.get(index)? as usize;
            match key {
                END => break,
                BUFFER => buffer = self.extra.get(index + 1)?.cast(),
                BUFFER_SIZE => size = Some(In::from(self.extra.get(index + 1)?.cast::<usize>()).get(0)?),
                _ => {
                    let reason = format!("kernel {name}: key {key} of the parameters is unknown");
                    return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
                }
            }
            index += 2;
        }
        if size != Some(bytes) {
            let reason = format!("kernel {name}: {size:?} bytes of parameters, expected {bytes}");
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
        }
        Ok(buffer)
    }
}

fn launch(
    driver: &mut Driver,
    function: u64,
    [grid, block]: [[u32; 3]; 2],
    shared_bytes: u32,
    stream: u64,
    params: &Params,
    dependent: bool,
) -> Outcome {
    driver.bound()?;
    driver.stream(stream)?;
    let function = *driver.function(function)?;
    function.check(grid, block, shared_bytes)?;
    let params_bytes = function.limits.params_bytes;
    let params = params.read(function.name, params_bytes)?.into();
    let (name, module, threads) = (function.name, function.module, block[0]);
    let launch = KernelLaunch { name, module, grid, threads, shared_bytes, params, params_bytes, dependent };
    driver.enqueue(stream, Work::Launch(launch))
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: u64,
    each: In<*const u8>,
    extra: In<*const c_void>,
) -> u32 {
    call("cuLaunchKernel", |driver| {
        let shape = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
        launch(driver, function, shape, shared_bytes, stream, &Params { each, extra }, false)
    })
}

/// Returns whether the attributes of a launch permit it to begin before the previous launch has ended.
fn dependent(config: &CUlaunchConfig) -> Outcome<bool> {
    let mut dependent = false;
    for index in 0..config.numAttrs as usize {
        // An attribute is its number, four bytes of padding, and a value of 64 bytes; this attribute's value is an integer.
        let words = In::from(config.attrs.wrapping_add(index).cast_const().cast::<u32>());
        let id = words.get(0)?;
        if id != CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as u32 {
            let reason = format!("the stand-in does not know the launch attribute {id}");
            return refused(CUresult::CUDA_ERROR_NOT_SUPPORTED, reason);
        }
        dependent = match words.get(2)? {
            value @ (0 | 1) => value == 1,
            value => {
                let reason =
                    format!("the attribute of programmatic dependent launch is {value}, expected 0 or 1");
                return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
            }
        };
    }
    Ok(dependent)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: In<CUlaunchConfig>,
    function: u64,
    each: In<*const u8>,
    extra: In<*const c_void>,
) -> u32 {
    call("cuLaunchKernelEx", |driver| {
        let config = config.get(0)?;
        let dependent = dependent(&config)?;
        let shape = [
            [config.gridDimX, config.gridDimY, config.gridDimZ],
            [config.blockDimX, config.blockDimY, config.blockDimZ],
        ];
        let stream = config.hStream as u64;
        launch(driver, function, shape, config.sharedMemBytes, stream, &Params { each, extra }, dependent)
    })
}
