//! The driver's calls for streams, events, and the capture of streams.

use cudarc::driver::sys::{CUevent_flags, CUresult};

use crate::driver::call;
use crate::foreign::Out;
use crate::objects::{Event, LEGACY, Recorded, Stream};
use crate::refusal::refused;

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: Out<u64>, flags: u32) -> u32 {
    call("cuStreamCreate", |driver| {
        driver.bound()?;
        if flags > 1 {
            return refused(
                CUresult::CUDA_ERROR_INVALID_VALUE,
                format!("the flags are {flags}, expected 0 or 1"),
            );
        }
        let handle = driver.next_handle();
        driver.streams.insert(handle, Stream { blocking: flags == 0, ..Stream::default() });
        stream.set(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(handle: u64) -> u32 {
    call("cuStreamDestroy", |driver| {
        driver.bound()?;
        if handle == LEGACY {
            return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "the legacy stream cannot be destroyed");
        }
        if let Some(capture) = driver.stream(handle)?.capture {
            driver.invalidate(capture);
        }
        // The work that a destroyed stream still has runs nevertheless.
        if let Some(stream) = driver.streams.get_mut(&handle) {
            stream.destroyed = true;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(handle: u64) -> u32 {
    call("cuStreamSynchronize", |driver| {
        driver.bound()?;
        driver.refuse_captured(handle)?;
        driver.finish_all_of(handle);
        driver.simt.full_barrier();
        match &driver.sticky {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(handle: u64, event: u64, flags: u32) -> u32 {
    call("cuStreamWaitEvent", |driver| {
        driver.bound()?;
        if flags > 1 {
            return refused(
                CUresult::CUDA_ERROR_INVALID_VALUE,
                format!("the flags are {flags}, expected 0 or 1"),
            );
        }
        driver.wait(handle, event)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(handle: u64, status: Out<u32>) -> u32 {
    call("cuStreamIsCapturing", |driver| {
        driver.bound()?;
        let capture = driver.stream(handle)?.capture;
        let invalid =
            capture.and_then(|capture| driver.captures.get(&capture)).map(|capture| capture.invalid);
        // The status of a capture: 0 for none, 1 for active, 2 for invalidated.
        status.set(invalid.map_or(0, |invalid| if invalid { 2 } else { 1 }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(handle: u64, mode: u32) -> u32 {
    call("cuStreamBeginCapture", |driver| {
        driver.bound()?;
        driver.begin_capture(handle, mode)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(handle: u64, graph: Out<u64>) -> u32 {
    call("cuStreamEndCapture", |driver| {
        driver.bound()?;
        match driver.end_capture(handle) {
            Ok(work) => {
                let id = driver.next_handle();
                driver.graphs.insert(id, work);
                graph.set(id)
            }
            Err(refusal) => {
                graph.set(0)?;
                Err(refusal)
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<u64>, flags: u32) -> u32 {
    call("cuEventCreate", |driver| {
        driver.bound()?;
        let timed = flags & CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 == 0;
        let handle = driver.next_handle();
        driver.events.insert(handle, Event { timed, recorded: Recorded::Never, time: None });
        event.set(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: u64) -> u32 {
    call("cuEventDestroy", |driver| {
        driver.bound()?;
        driver.event(event)?;
        driver.events.remove(&event);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: u64, stream: u64) -> u32 {
    call("cuEventRecord", |driver| {
        driver.bound()?;
        driver.record(event, stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: u64) -> u32 {
    call("cuEventQuery", |driver| {
        driver.bound()?;
        match driver.is_reached(event)? {
            true => Ok(()),
            false => refused(CUresult::CUDA_ERROR_NOT_READY, "the work before the event has not run"),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: u64) -> u32 {
    call("cuEventSynchronize", |driver| {
        driver.bound()?;
        driver.synchronize_event(event)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64) -> u32 {
    call("cuEventElapsedTime", |driver| {
        driver.bound()?;
        let mut times = [0.0; 2];
        for (event, to) in [start, end].into_iter().zip(&mut times) {
            let reached = driver.is_reached(event)?;
            let event = driver.event(event)?;
            match (event.timed, event.time) {
                (true, Some(time)) if reached => *to = time,
                (true, None) if matches!(event.recorded, Recorded::Never) => {
                    return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "an event was never recorded");
                }
                (false, _) => return refused(CUresult::CUDA_ERROR_INVALID_HANDLE, "an event takes no time"),
                (true, _) => {
                    return refused(CUresult::CUDA_ERROR_NOT_READY, "the work before an event has not run");
                }
            }
        }
        milliseconds.set(((times[1] - times[0]) / 1e3) as f32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) -> u32 {
    cuEventElapsedTime_v2(milliseconds, start, end)
}
