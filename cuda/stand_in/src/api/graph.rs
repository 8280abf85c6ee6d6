//! Graphs.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;

use crate::driver::{Driver, call};
use crate::foreign::Out;
use crate::refusal::{Outcome, refused};
use crate::work::Work;

fn executable(driver: &Driver, handle: u64) -> Outcome<Arc<[Work]>> {
    match driver.executables.get(&handle) {
        Some(found) => Ok(found.clone()),
        None => {
            let reason = format!("{handle:#x} is no executable graph, or was destroyed");
            refused(CUresult::CUDA_ERROR_INVALID_HANDLE, reason)
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(out: Out<u64>, graph: u64, flags: u64) -> u32 {
    call("cuGraphInstantiate", |driver| {
        driver.bound()?;
        if flags != 0 {
            return refused(
                CUresult::CUDA_ERROR_NOT_SUPPORTED,
                format!("the stand-in does not know flags {flags:#x}"),
            );
        }
        let Some(work) = driver.graphs.get(&graph).cloned() else {
            let reason = format!("{graph:#x} is no graph, or was destroyed");
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, reason);
        };
        let handle = driver.next_handle();
        driver.executables.insert(handle, work);
        out.set(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(handle: u64, stream: u64) -> u32 {
    call("cuGraphUpload", |driver| {
        driver.bound()?;
        driver.stream(stream)?;
        executable(driver, handle).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(handle: u64, stream: u64) -> u32 {
    call("cuGraphLaunch", |driver| {
        driver.bound()?;
        let work = executable(driver, handle)?;
        driver.enqueue(stream, Work::Graph(work))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(handle: u64) -> u32 {
    call("cuGraphExecDestroy", |driver| {
        executable(driver, handle)?;
        // A replay of the graph that has not run yet still runs.
        driver.executables.remove(&handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(handle: u64) -> u32 {
    call("cuGraphDestroy", |driver| match driver.graphs.remove(&handle) {
        Some(_) => Ok(()),
        None => {
            refused(CUresult::CUDA_ERROR_INVALID_HANDLE, format!("{handle:#x} is no graph, or was destroyed"))
        }
    })
}
