//! Tests device memory: its contents, its limits, and accesses that are not permitted.

use cudarc::driver::result;
use flexdraft::runtime::{Cuda, Runtime};

use crate::process::{device, dies, is_found, succeeds, this_test};

#[test]
fn new_memory_is_poisoned_and_zeroed_memory_is_zero() {
    succeeds(this_test!(), "", &[], || {
        let (_context, stream) = device();
        for len in [1, 7, 4096, 3 << 20] {
            // SAFETY: any bytes are valid.
            let new = unsafe { stream.alloc::<u8>(len) }.unwrap();
            assert!(stream.clone_dtoh(&new).unwrap().iter().all(|byte| [0xd5, 0xff].contains(byte)));
            let zeroed = stream.alloc_zeros::<u8>(len).unwrap();
            assert_eq!(stream.clone_dtoh(&zeroed).unwrap(), vec![0; len]);
        }
    });
}

#[test]
fn memory_is_limited() {
    succeeds(this_test!(), "", &[("MEMORY", "100000")], || {
        let (_context, stream) = device();
        let held = stream.alloc_zeros::<u8>(90_000).unwrap();
        let error = stream.alloc_zeros::<u8>(20_000).unwrap_err().to_string();
        assert!(error.contains("20000 bytes were requested, and 10000 of 100000 bytes are free"), "{error}");
        drop(held);
        stream.alloc_zeros::<u8>(100_000).unwrap();
    });
}

#[test]
fn freed_and_foreign_addresses_are_refused() {
    succeeds(this_test!(), "", &[], || {
        let (_context, stream) = device();
        let memory = stream.alloc_zeros::<u8>(64).unwrap();
        // SAFETY: the copies are refused.
        unsafe {
            let refused = |to, what: &str| {
                let error =
                    result::memcpy_htod_async(to, &[1u8; 65], stream.cu_stream()).unwrap_err().to_string();
                assert!(
                    error.contains("cuMemcpyHtoDAsync: 65 bytes at") && error.contains("no allocation"),
                    "{what}"
                );
            };
            let address = memory.leak();
            refused(address, "too short");
            result::free_sync(address).unwrap();
            refused(address, "freed");
            refused(&raw const stream as u64, "of the host");
            let error = result::free_sync(address).unwrap_err().to_string();
            assert!(error.contains("cuMemFree: "), "{error}");
        }
    });
}

#[test]
fn the_host_cannot_touch_device_memory() {
    dies(this_test!(), "", &[], "the host touched device memory outside of every call", || {
        let (_context, stream) = device();
        let memory = stream.alloc_zeros::<u8>(64).unwrap();
        let address = memory.leak() as usize;
        // SAFETY: none; the access ends the process.
        unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() };
    });
}

#[test]
fn bytes_after_the_end_are_watched() {
    is_found(this_test!(), "", &[], "bytes after the end of the allocation", || {
        let (context, stream) = device();
        let runtime = Cuda::new(&context).unwrap();
        // The kernel writes 256 columns to memory for fewer.
        crate::kernels::norm_past_the_end(&runtime, &stream);
    });
}

#[test]
fn kinds_of_host_memory_are_known() {
    succeeds(this_test!(), "", &[("STREAMS", "late")], || {
        let (context, stream) = device();
        let runtime = Cuda::new(&context).unwrap();
        let mut memory = runtime.allocate::<u8>(&stream, 4).unwrap();
        // SAFETY: written before it is read.
        let mut locked = unsafe { context.alloc_pinned::<u8>(4) }.unwrap();
        locked.as_mut_slice().unwrap().copy_from_slice(&[1, 2, 3, 4]);
        // An upload has read its source when it returns, whatever kind of memory the source is.
        runtime.upload(&stream, locked.as_slice().unwrap(), &mut memory, 0).unwrap();
        locked.as_mut_slice().unwrap().fill(9);
        let mut found = [0; 4];
        runtime.download(&stream, &memory, 0, &mut found).unwrap();
        assert_eq!(found, [1, 2, 3, 4]);
    });
}
