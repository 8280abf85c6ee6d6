//! Tests streams: work runs at once, or as late as the rules allow.

use cudarc::driver::result;
use cudarc::driver::sys::CUevent_flags;
use flexdraft::runtime::{Cuda, RawCuda, RawStream, Runtime};

use crate::process::{device, succeeds, this_test};

#[test]
fn results_exist_after_a_synchronisation_only() {
    let expected = |policy: &str, test: &str, early: [u8; 3]| {
        succeeds(test, policy, &[("STREAMS", policy)], || {
            let (_context, stream) = device();
            let memory = stream.clone_htod(&[1u8, 2, 3]).unwrap();
            let mut found = [0; 3];
            stream.memcpy_dtoh(&memory, &mut found).unwrap();
            assert_eq!(found, early);
            stream.synchronize().unwrap();
            assert_eq!(found, [1, 2, 3]);
        });
    };
    expected("late", this_test!(), [0; 3]);
    expected("eager", this_test!(), [1, 2, 3]);
}

/// A copy that runs after its call has failed would write to memory that the caller has freed.
#[test]
fn a_failed_wait_leaves_no_copy_behind() {
    let late = ("STREAMS", "late");
    succeeds(this_test!(), "our stream", &[("FAIL", "cuStreamSynchronize:1"), late], || {
        let (context, stream) = device();
        download_fails(&Cuda::new(&context).unwrap(), &stream);
    });
    // The upload to a stream of another library waits too.
    succeeds(this_test!(), "foreign stream", &[("FAIL", "cuStreamSynchronize:2"), late], || {
        let (context, stream) = device();
        // SAFETY: the stream outlives everything that is made with it.
        let raw = unsafe { RawStream::new(&context, stream.cu_stream() as u64) };
        download_fails(&RawCuda::new(&context).unwrap(), &raw);
    });
}

fn download_fails<R: Runtime>(runtime: &R, stream: &R::Stream) {
    let mut memory = runtime.allocate::<u8>(stream, 3).unwrap();
    runtime.upload(stream, &[1, 2, 3], &mut memory, 0).unwrap();
    let mut found = [0; 3];
    let error = runtime.download(stream, &memory, 0, &mut found).unwrap_err().to_string();
    assert!(error.contains("cuStreamSynchronize"), "{error}");
    assert_eq!(found, [1, 2, 3]);
}

#[test]
fn page_locked_sources_are_read_when_the_copy_runs() {
    succeeds(this_test!(), "", &[("STREAMS", "late")], || {
        let (context, stream) = device();
        let mut memory = stream.alloc_zeros::<u8>(2).unwrap();
        let mut pageable = [1u8; 2];
        stream.memcpy_htod(&pageable, &mut memory).unwrap();
        pageable.fill(7);
        assert_eq!(
            stream.clone_dtoh(&memory).and_then(|read| stream.synchronize().map(|()| read)).unwrap(),
            [1; 2]
        );
        // SAFETY: written before it is read.
        let mut locked = unsafe { context.alloc_pinned::<u8>(2) }.unwrap();
        let source = locked.as_mut_ptr().unwrap();
        // SAFETY: the page-locked memory has two bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(source, 2) };
        bytes.fill(1);
        stream.memcpy_htod(bytes, &mut memory).unwrap();
        bytes.fill(7);
        let mut found = [0u8; 2];
        stream.memcpy_dtoh(&memory, &mut found).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(found, [7; 2]);
    });
}

#[test]
fn a_stream_waits_for_another_only_through_an_event() {
    succeeds(this_test!(), "", &[("STREAMS", "late")], || {
        let (context, one) = device();
        let other = context.new_stream().unwrap();
        let memory = one.alloc_zeros::<u8>(1).unwrap();
        one.synchronize().unwrap();
        let read = || {
            let mut found = [9u8];
            other.memcpy_dtoh(&memory, &mut found).unwrap();
            other.synchronize().unwrap();
            found[0]
        };
        // SAFETY: the memory has this byte.
        unsafe { result::memset_d8_async(memory.as_view_mut_address(&one), 5, 1, one.cu_stream()) }.unwrap();
        assert_eq!(read(), 0);
        let event = one.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        assert!(!event.is_complete());
        other.wait(&event).unwrap();
        assert_eq!(read(), 5);
        assert!(event.is_complete());
        let end = one.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        assert!(event.elapsed_ms(&end).unwrap() >= 0.0);
        let untimed = one.record_event(None).unwrap();
        assert!(event.elapsed_ms(&untimed).is_err());
    });
}

/// Gives the device address of a slice's memory.
trait Address {
    fn as_view_mut_address(&self, stream: &cudarc::driver::CudaStream) -> u64;
}

impl Address for cudarc::driver::CudaSlice<u8> {
    fn as_view_mut_address(&self, stream: &cudarc::driver::CudaStream) -> u64 {
        cudarc::driver::DevicePtr::device_ptr(self, stream).0
    }
}

#[test]
fn a_destroyed_stream_is_refused_and_its_work_still_runs() {
    succeeds(this_test!(), "", &[("STREAMS", "late")], || {
        let (context, stream) = device();
        let memory = stream.alloc_zeros::<u8>(1).unwrap();
        // SAFETY: destroyed once.
        unsafe {
            let address = memory.as_view_mut_address(&stream);
            stream.synchronize().unwrap();
            let raw = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
            result::memset_d8_async(address, 5, 1, raw).unwrap();
            result::stream::destroy(raw).unwrap();
            let error = result::memset_d8_async(address, 6, 1, raw).unwrap_err().to_string();
            assert!(error.contains("cuMemsetD8Async: ") && error.contains("was destroyed"), "{error}");
        }
        context.synchronize().unwrap();
        let mut found = [0u8];
        stream.memcpy_dtoh(&memory, &mut found).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(found, [5]);
    });
}
