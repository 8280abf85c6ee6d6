//! Launches through the driver.
//!
//! With programmatic dependent launch (compute capability 9.0), a kernel may begin before the previous launch has
//! ended. The kernel runs up to its wait for earlier launches, `griddepcontrol.wait`, and continues when the previous
//! launch has ended. Only code that contains the wait may be launched in this way: the machine code for sm_90a. PTX for
//! sm_80, which the driver compiles for newer GPUs, has no wait.
//!
//! Kernels of other libraries, which multiply matrices, may precede a kernel that begins early. A library's kernel
//! itself begins after all earlier work, or waits for earlier work before it reads its operands, because any earlier
//! work may have written them. When it has ended, all earlier work has therefore ended too, as with the kernels of this
//! crate. Its results are read only after the wait. Copies, fills and graphs begin and end as without programmatic
//! launch: no work begins before an earlier copy has ended.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute as FunctionAttribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchConfig, CUstream, cuLaunchKernelEx,
};
use cudarc::driver::{CudaFunction, DriverError, result};

/// The virtual architecture, as the driver reports it, from which on compiled kernels wait for earlier launches.
const WAITS_FROM: i32 = 90;

/// The shape of a launch, without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaunchShape {
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    /// Whether the launch may begin before the previous launch has ended.
    pub(super) dependent: bool,
}

/// Returns whether the code that the driver loaded for a function waits for earlier launches.
pub(super) fn waits_for_earlier_launches(function: &CudaFunction) -> Result<bool, DriverError> {
    Ok(function.get_attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? >= WAITS_FROM)
}

/// Puts a launch on a stream.
///
/// # Safety
///
/// The context of the stream is bound, and function and stream are alive. `params` is the function's only parameter, a
/// struct whose pointers stay valid until the launch has run. A dependent launch is of a function that
/// [waits](waits_for_earlier_launches).
pub(super) unsafe fn launch(
    function: CUfunction,
    stream: CUstream,
    shape: LaunchShape,
    params: *mut c_void,
) -> Result<(), DriverError> {
    let LaunchShape { grid, threads, shared_bytes, dependent } = shape;
    // The driver copies the parameter struct before it returns.
    let mut params = [params];
    if !dependent {
        let block = (threads, 1, 1);
        // SAFETY: the caller upholds the contract of this function.
        return unsafe {
            result::launch_kernel(function, grid.into(), block, shared_bytes, stream, &mut params)
        };
    }
    let mut attribute = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { pad: [0; 64] },
    };
    attribute.value.programmaticStreamSerializationAllowed = 1;
    let config = CUlaunchConfig {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: the caller upholds the contract; configuration and attribute live until the call returns.
    unsafe { cuLaunchKernelEx(&raw const config, function, params.as_mut_ptr(), std::ptr::null_mut()) }
        .result()
}
