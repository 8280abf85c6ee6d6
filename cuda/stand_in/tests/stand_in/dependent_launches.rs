//! Tests of programmatic dependent launch on the stand-in: the launch attribute, and the checks of what may be accessed
//! before earlier launches have ended.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{
    CUfunction, CUgraphInstantiate_flags, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUmodule, CUstreamCaptureMode, cuLaunchKernelEx,
};
use cudarc::driver::{CudaStream, DriverError, result};

use crate::process::{device, succeeds, this_test};

const THREADS: u32 = 32;
const CHECKED: [(&str, &str); 1] = [("CHECKING", "accesses")];

/// The parameters of the kernels in `cuda/simt/tests/planted.cu`.
#[repr(C)]
struct Params {
    input: u64,
    out: u64,
    table: u64,
    argument: u32,
}

/// Planted kernels with their memory, on a stream.
struct Planted {
    stream: Arc<CudaStream>,
    module: CUmodule,
    memory: [u64; 3],
}

impl Planted {
    fn new(stream: &Arc<CudaStream>) -> Self {
        let image = c"// kernels of flexdraft, without device code\n\
            // planted_table\n// planted_look_up\n// planted_look_up_before_waiting\n// planted_table_before_waiting\n\
            // planted_idle\n// planted_idle_without_wait\n";
        // SAFETY: an image that the stand-in reads; the memory is set before a kernel reads it, and freed by `drop`.
        unsafe {
            let module = result::module::load_data(image.as_ptr().cast()).unwrap();
            let memory = [(); 3].map(|()| result::malloc_sync(4 * THREADS as usize).unwrap());
            for address in memory {
                result::memset_d8_async(address, 1, 4 * THREADS as usize, stream.cu_stream()).unwrap();
            }
            Self { stream: stream.clone(), module, memory }
        }
    }

    fn function(&self, name: &CStr) -> CUfunction {
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.module, name.into()) }.unwrap()
    }

    /// Launches a kernel with one attribute: its number and its value.
    fn launch_with(&self, name: &CStr, id: CUlaunchAttributeID, value: i32) -> Result<(), DriverError> {
        let mut attribute =
            CUlaunchAttribute { id, pad: [0; 4], value: CUlaunchAttributeValue { pad: [0; 64] } };
        attribute.value.programmaticStreamSerializationAllowed = value;
        let config = CUlaunchConfig {
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: THREADS,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        let [input, out, table] = self.memory;
        let mut params = Params { input, out, table, argument: 3 };
        let mut params = [(&raw mut params).cast::<c_void>()];
        let function = self.function(name);
        // SAFETY: the struct is the kernel's, its memory is alive, and everything else lives until the call returns.
        unsafe { cuLaunchKernelEx(&raw const config, function, params.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
    }

    /// Launches a kernel that may begin before the previous launch has ended, or that may not.
    fn launch(&self, name: &CStr, dependent: bool) {
        let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        self.launch_with(name, id, i32::from(dependent)).unwrap();
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        // After an error of the context, the stand-in refuses these calls, and reports no leaks.
        // SAFETY: memory and module are freed once, and the driver waits for work that uses the memory.
        unsafe {
            for address in self.memory {
                let _ = result::free_sync(address);
            }
            let _ = result::module::unload(self.module);
        }
    }
}

#[test]
fn only_the_known_attribute_is_taken() {
    succeeds(this_test!(), "", &[], || {
        let (_context, stream) = device();
        let planted = Planted::new(&stream);
        let programmatic = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        for value in [0, 1] {
            planted.launch_with(c"planted_idle", programmatic, value).unwrap();
        }
        let error = planted.launch_with(c"planted_idle", programmatic, 2).unwrap_err().to_string();
        assert!(error.contains("programmatic dependent launch is 2, expected 0 or 1"), "{error}");
        let other = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
        let error = planted.launch_with(c"planted_idle", other, 1).unwrap_err().to_string();
        assert!(error.contains("does not know the launch attribute"), "{error}");
        stream.synchronize().unwrap();
    });
}

/// Launches that may begin early in every kernel, as a list of launches and as a captured graph. The error appears when
/// the host waits.
#[test]
fn mistakes_in_the_order_of_launches_are_found() {
    let read = "a read of `an allocation`, while the launch 1 in front, which writes it, may still run";
    let between = "launch 2 in front, which writes it, may still run: a launch between them did not wait";
    let write = "a write of `an allocation`, while the launch 1 in front, which reads it, may still run";
    let cases: [(&str, &[&CStr], Option<&str>); 6] = [
        ("sound", &[c"planted_table", c"planted_look_up", c"planted_table", c"planted_look_up"], None),
        ("read", &[c"planted_table", c"planted_look_up_before_waiting"], Some(read)),
        ("sound three", &[c"planted_table", c"planted_idle", c"planted_look_up"], None),
        ("no wait", &[c"planted_table", c"planted_idle_without_wait", c"planted_look_up"], Some(between)),
        ("write", &[c"planted_look_up", c"planted_table_before_waiting"], Some(write)),
        // Behind the last kernel, nothing needs its wait.
        ("last", &[c"planted_table", c"planted_idle_without_wait"], None),
    ];
    for (case, kernels, expected) in cases {
        for captured in [false, true] {
            let policies = [&CHECKED[..], &[("STREAMS", "late")]].concat();
            succeeds(this_test!(), &format!("{case} {captured}"), &policies, || {
                let (_context, stream) = device();
                let planted = Planted::new(&stream);
                let launch_all = |dependent| kernels.iter().for_each(|name| planted.launch(name, dependent));
                // Launches that begin when everything in front has ended need no wait.
                launch_all(false);
                stream.synchronize().unwrap();
                if captured {
                    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
                    stream.begin_capture(mode).unwrap();
                    launch_all(true);
                    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
                    graph.launch().unwrap();
                } else {
                    launch_all(true);
                }
                match (stream.synchronize(), expected) {
                    (Ok(()), None) => {}
                    (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{error}"),
                    (found, _) => panic!("{found:?}"),
                }
            });
        }
    }
}

#[test]
fn a_copy_is_a_full_barrier() {
    succeeds(this_test!(), "", &CHECKED, || {
        let (_context, stream) = device();
        let planted = Planted::new(&stream);
        planted.launch(c"planted_table", true);
        // SAFETY: both ranges are allocated.
        unsafe { result::memcpy_dtod_async(planted.memory[1], planted.memory[0], 4, stream.cu_stream()) }
            .unwrap();
        planted.launch(c"planted_look_up_before_waiting", true);
        stream.synchronize().unwrap();
    });
}
