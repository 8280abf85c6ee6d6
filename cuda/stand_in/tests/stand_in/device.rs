//! Tests the device, its context, and policies that cannot be read.

use cudarc::driver::result;
use flexdraft::runtime::{Cuda, Runtime, RuntimeError};

use crate::process::{device, ended, is_found, succeeds, this_test};

#[test]
fn is_an_h100() {
    succeeds(this_test!(), "", &[("MEMORY", "1000000")], || {
        let (context, _stream) = device();
        assert!(context.name().unwrap().contains("H100"));
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        let limits = Cuda::new(&context).unwrap().limits();
        assert_eq!((limits.multiprocessors, limits.shared_bytes_per_cta), (132, 227 << 10));
        assert_eq!(context.mem_get_info().unwrap(), (1_000_000, 1_000_000));
        assert!(
            matches!(Cuda::context(1), Err(RuntimeError::Unavailable(reason)) if reason.contains("cuDeviceGet"))
        );
    });
}

#[test]
fn a_call_without_a_context_is_refused() {
    succeeds(this_test!(), "", &[], || {
        let (_context, _stream) = device();
        let other = std::thread::spawn(|| {
            // SAFETY: the call is refused.
            let error = unsafe { result::malloc_sync(8) }.unwrap_err().to_string();
            assert!(error.contains("cuMemAlloc: no context is bound to this thread"), "{error}");
            assert!(error.contains("CUDA_ERROR_INVALID_CONTEXT"), "{error}");
        });
        other.join().unwrap();
    });
}

#[test]
fn a_policy_that_cannot_be_read_is_no_device() {
    let ended = ended(this_test!(), "", &[("STREAMS", "lazy")], || {
        let error = Cuda::context(0).unwrap_err().to_string();
        assert!(error.contains("FLEXDRAFT_STAND_IN_STREAMS is `lazy`; expected eager or late"), "{error}");
    });
    assert!(ended.status.success(), "{}", ended.stderr);
}

#[test]
fn the_nth_call_fails_if_a_policy_says_so() {
    succeeds(this_test!(), "", &[("FAIL", "cuMemAllocAsync:2")], || {
        let (_context, stream) = device();
        let _first = stream.alloc_zeros::<u8>(8).unwrap();
        let error = stream.alloc_zeros::<u8>(8).unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY") && error.contains("cuMemAllocAsync"), "{error}");
        let _third = stream.alloc_zeros::<u8>(8).unwrap();
    });
}

#[test]
fn what_is_left_when_the_process_ends_is_found() {
    is_found(this_test!(), "memory", &[], "1 allocations (24 bytes)", || {
        let (_context, stream) = device();
        std::mem::forget(stream.alloc_zeros::<u8>(24).unwrap());
    });
    is_found(this_test!(), "an event", &[], "1 events", || {
        let (context, _stream) = device();
        std::mem::forget(context.new_event(None).unwrap());
    });
}
