//! Tests captures: a replay reads memory as it is then, and a capture refuses what the driver refuses.

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use flexdraft::runtime::{Cuda, Runtime};

use crate::process::{device, succeeds, this_test};

const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn a_replay_reads_memory_as_it_is_then() {
    for policy in ["eager", "late"] {
        succeeds(this_test!(), policy, &[("STREAMS", policy)], || {
            let (_context, stream) = device();
            let mut from = stream.clone_htod(&[1u8, 2]).unwrap();
            let mut to = stream.alloc_zeros::<u8>(2).unwrap();
            stream.begin_capture(MODE).unwrap();
            assert_eq!(
                stream.capture_status().unwrap(),
                CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
            );
            stream.memcpy_dtod(&from, &mut to).unwrap();
            let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
            let mut found = [9u8; 2];
            // The captured work does not run during the capture.
            for expected in [[0, 0], [3, 4], [5, 6]] {
                if expected != [0, 0] {
                    stream.memcpy_htod(&expected, &mut from).unwrap();
                    graph.launch().unwrap();
                }
                stream.memcpy_dtoh(&to, &mut found).unwrap();
                stream.synchronize().unwrap();
                assert_eq!(found, expected);
            }
        });
    }
}

#[test]
fn what_a_capture_does_not_permit() {
    let refused = |test: &str,
                   case: &str,
                   what: fn(&std::sync::Arc<cudarc::driver::CudaStream>) -> String,
                   code: &str| {
        succeeds(test, case, &[], || {
            let (_context, stream) = device();
            stream.begin_capture(MODE).unwrap();
            let error = what(&stream);
            assert!(error.contains(code), "{error}");
            assert_eq!(
                stream.capture_status().unwrap(),
                CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED
            );
            let error = stream.end_capture(CUgraphInstantiate_flags(0)).err().unwrap().to_string();
            assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"), "{error}");
            // After the failed capture, the stream is usable again.
            let memory = stream.clone_htod(&[1u8]).unwrap();
            assert_eq!(stream.clone_dtoh(&memory).unwrap(), [1]);
        });
    };
    let unsupported = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    refused(this_test!(), "wait", |stream| stream.synchronize().unwrap_err().to_string(), unsupported);
    refused(this_test!(), "allocate", |_| unsafe_malloc(), unsupported);
    let wait_for_all = |stream: &std::sync::Arc<cudarc::driver::CudaStream>| {
        stream.context().synchronize().unwrap_err().to_string()
    };
    refused(this_test!(), "wait for all", wait_for_all, unsupported);
    let foreign_event = |stream: &std::sync::Arc<cudarc::driver::CudaStream>| {
        let other = stream.context().new_stream().unwrap();
        let event = other.record_event(None).unwrap();
        stream.wait(&event).unwrap_err().to_string()
    };
    refused(this_test!(), "another stream's event", foreign_event, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION");
}

fn unsafe_malloc() -> String {
    // SAFETY: the call is refused.
    unsafe { result::malloc_sync(8) }.unwrap_err().to_string()
}

#[test]
fn forked_streams_are_captured_and_have_to_join() {
    succeeds(this_test!(), "", &[], || {
        let (context, stream) = device();
        let mut memory = stream.alloc_zeros::<u8>(1).unwrap();
        let other = context.new_stream().unwrap();
        for joins in [true, false] {
            stream.begin_capture(MODE).unwrap();
            other.join(&stream).unwrap();
            other.memset_zeros(&mut memory).unwrap();
            if joins {
                stream.join(&other).unwrap();
            }
            let graph = stream.end_capture(CUgraphInstantiate_flags(0));
            if joins {
                graph.unwrap().unwrap().launch().unwrap();
            } else {
                let error = graph.err().unwrap().to_string();
                assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE_UNJOINED"), "{error}");
            }
        }
        // The legacy stream cannot be captured.
        assert!(context.default_stream().begin_capture(MODE).is_err());
    });
}

#[test]
fn uploads_are_refused_before_they_reach_a_graph() {
    succeeds(this_test!(), "", &[], || {
        let (context, stream) = device();
        let runtime = Cuda::new(&context).unwrap();
        let mut memory = runtime.allocate::<u8>(&stream, 2).unwrap();
        stream.begin_capture(MODE).unwrap();
        let error = runtime.upload(&stream, &[1, 2], &mut memory, 0).unwrap_err().to_string();
        assert!(error.contains("cannot be uploaded in a capture"), "{error}");
        stream.end_capture(CUgraphInstantiate_flags(0)).unwrap();
    });
}
