//! Tests flexdraft's kernels on the stand-in: they give the bits of the emulator, and launches beyond a limit fail.

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};
use flexdraft::kernels::Kernels;
use flexdraft::kernels::activation::SiluMul;
use flexdraft::kernels::norm::{Residual, RmsNorm};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::random::Stream;
use flexdraft::runtime::{
    Cuda, Element, Launch, RawCuda, RawStream, Runtime, RuntimeError, Simt, SimtOptions,
};
use flexdraft::sampling::SamplingParams;
use half::bf16;

use crate::process::{device, dies, ended, succeeds, this_test};

const ROWS: usize = 5;
const COLS: usize = 192;

/// The kernels on a runtime, with a stream to run them on.
struct On<'a, R: Runtime> {
    kernels: &'a Kernels<R>,
    stream: &'a R::Stream,
}

impl<R: Runtime> On<'_, R> {
    fn memory<T: Element>(&self, host: &[T]) -> R::Memory<T> {
        let mut memory = self.kernels.runtime().allocate(self.stream, host.len()).unwrap();
        self.kernels.runtime().upload(self.stream, host, &mut memory, 0).unwrap();
        memory
    }

    fn host<T: Element>(&self, memory: &R::Memory<T>, len: usize) -> Vec<T> {
        let mut host = vec![T::zeroed(); len];
        self.kernels.runtime().download(self.stream, memory, 0, &mut host).unwrap();
        host
    }

    /// Runs RMSNorm on rows, then the activation, which reads the results of the norm.
    fn normed(&self) -> Vec<u16> {
        let runtime = self.kernels.runtime();
        let x: Vec<bf16> = numbers(ROWS * COLS).iter().map(|&x| bf16::from_f32(x)).collect();
        let (x, weight) = (self.memory(&x), self.memory(&numbers(COLS)));
        let mut normed = self.memory(&[bf16::ZERO; ROWS * COLS]);
        let mut out = self.memory(&[bf16::ZERO; ROWS * COLS / 2]);
        let args = RmsNorm {
            x: Residual::Is(runtime.view(self.stream, &x)),
            weight: runtime.view(self.stream, &weight),
            out: runtime.view_mut(self.stream, &mut normed),
            eps: 1e-6,
        };
        self.kernels.rms_norm(self.stream, &args).unwrap();
        drop(args);
        let args = SiluMul {
            x: runtime.view(self.stream, &normed),
            out: runtime.view_mut(self.stream, &mut out),
            cols: COLS / 2,
        };
        self.kernels.silu_mul(self.stream, &args).unwrap();
        drop(args);
        self.host(&out, ROWS * COLS / 2).iter().map(|x| x.to_bits()).collect()
    }

    /// Runs RMSNorm with operands that belong to another stream, drops the operands, and waits for their stream, which frees
    /// them. The launch has not run before that unless something waits for the launch.
    fn norm_of_dropped(&self, owner: &Self) -> Result<Vec<u16>, RuntimeError> {
        let runtime = self.kernels.runtime();
        let wait_for_owner = || owner.host(&owner.memory(&[0u32]), 1);
        let x: Vec<bf16> = numbers(ROWS * COLS).iter().map(|&x| bf16::from_f32(x)).collect();
        let (x, weight) = (owner.memory(&x), owner.memory(&numbers(COLS)));
        wait_for_owner();
        let mut out = self.memory(&[bf16::ZERO; ROWS * COLS]);
        let args = RmsNorm {
            x: Residual::Is(runtime.view(self.stream, &x)),
            weight: runtime.view(self.stream, &weight),
            out: runtime.view_mut(self.stream, &mut out),
            eps: 1e-6,
        };
        self.kernels.rms_norm(self.stream, &args).unwrap();
        drop(args);
        drop((x, weight));
        wait_for_owner();
        let mut found = vec![bf16::ZERO; ROWS * COLS];
        runtime.download(self.stream, &out, 0, &mut found)?;
        Ok(found.iter().map(|x| x.to_bits()).collect())
    }

    fn sampled(&self) -> Vec<RowStats> {
        let runtime = self.kernels.runtime();
        let logits = self.memory(&numbers(ROWS * COLS));
        let params = SamplingParams::at_temperature(0.9);
        let ways = |row| RowSampling::new(&params, Some(Stream::target_draw(3, row))).unwrap();
        let sampling = self.memory(&(0..ROWS).map(ways).collect::<Vec<_>>());
        let mut workspace = self.memory(&vec![0f32; workspace_len(ROWS, COLS, false).unwrap()]);
        let mut stats = self.memory(&[RowStats::default(); ROWS]);
        let args = Sample::<f32> {
            vocab: COLS,
            stride: COLS,
            logits: LogitRows::Read(runtime.view(self.stream, &logits)),
            logit_index: None,
            sampling: runtime.view(self.stream, &sampling),
            starts: None,
            draft: None,
            calibration: None,
            workspace: runtime.view_mut(self.stream, &mut workspace),
            stats: runtime.view_mut(self.stream, &mut stats),
            error: None,
        };
        self.kernels.sample(self.stream, args).unwrap();
        self.host(&stats, ROWS)
    }
}

/// Returns deterministic numbers between -2 and 2.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0).collect()
}

fn expected() -> (Vec<u16>, Vec<RowStats>) {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    let emulator = On { kernels: &kernels, stream: &stream };
    (emulator.normed(), emulator.sampled())
}

#[test]
fn kernels_give_the_emulators_bits() {
    for streams in ["eager", "late"] {
        for checking in ["off", "accesses"] {
            let case = format!("{streams} {checking}");
            succeeds(this_test!(), &case, &[("STREAMS", streams), ("CHECKING", checking)], || {
                let (context, stream) = device();
                let kernels = Kernels::load(&context).unwrap();
                let found = On { kernels: &kernels, stream: &stream };
                assert_eq!((found.normed(), found.sampled()), expected());
                // The kernels also run on a stream of another library.
                let kernels = Kernels::new(RawCuda::new(&context).unwrap());
                // SAFETY: the stream outlives everything that is made with it.
                let stream = unsafe { RawStream::new(&context, stream.cu_stream() as u64) };
                let found = On { kernels: &kernels, stream: &stream };
                assert_eq!((found.normed(), found.sampled()), expected());
            });
        }
    }
}

#[test]
fn cudarcs_events_keep_streams_in_order() {
    succeeds(this_test!(), "", &[("STREAMS", "late")], || {
        let context = Cuda::context(0).unwrap();
        let kernels = Kernels::load(&context).unwrap();
        let (one, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let memory = On { kernels: &kernels, stream: &one }.memory(&[1u32, 2, 3]);
        assert_eq!(On { kernels: &kernels, stream: &other }.host(&memory, 3), [1, 2, 3]);
    });
}

/// Memory may be dropped while a launch that uses it waits: it is freed on its own stream, which waits for cudarc's event of
/// the launch. Without events, as candle may ask of cudarc, memory of the launch's own stream may still be dropped.
#[test]
fn operands_are_dropped_while_a_launch_waits() {
    let expected = || {
        let kernels = Kernels::new(Simt::new(SimtOptions::default()));
        let stream = kernels.runtime().stream();
        let emulator = On { kernels: &kernels, stream: &stream };
        emulator.norm_of_dropped(&emulator).unwrap()
    };
    for events in [true, false] {
        for streams in [1, 2] {
            let case = format!("{streams} streams, events: {events}");
            succeeds(this_test!(), &case, &[("STREAMS", "late")], || {
                let context = Cuda::context(0).unwrap();
                if !events {
                    // SAFETY: with one stream, the stream orders all uses. With two streams, the launch reads freed
                    // memory, which the stand-in reports.
                    unsafe { context.disable_event_tracking() };
                }
                let kernels = Kernels::load(&context).unwrap();
                let (one, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
                let launching = On { kernels: &kernels, stream: &one };
                let owner = On { kernels: &kernels, stream: if streams == 1 { &one } else { &other } };
                let found = launching.norm_of_dropped(&owner);
                if events || streams == 1 {
                    assert_eq!(found, Ok(expected()));
                } else {
                    let error = found.unwrap_err().to_string();
                    assert!(error.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
                }
            });
        }
    }
    succeeds(this_test!(), "a stream of another library", &[("STREAMS", "late")], || {
        let (context, stream) = device();
        let kernels = Kernels::new(RawCuda::new(&context).unwrap());
        // SAFETY: the stream outlives everything that is made with it.
        let stream = unsafe { RawStream::new(&context, stream.cu_stream() as u64) };
        let on = On { kernels: &kernels, stream: &stream };
        assert_eq!(on.norm_of_dropped(&on), Ok(expected()));
    });
}

#[test]
fn a_kernel_whose_body_is_skipped_writes_nothing() {
    succeeds(this_test!(), "", &[("SKIP", "rms_norm")], || {
        let (context, stream) = device();
        let kernels = Kernels::load(&context).unwrap();
        let found = On { kernels: &kernels, stream: &stream };
        assert!(found.normed().iter().all(|&bits| bits == 0));
        assert_eq!(found.sampled(), expected().1);
    });
}

/// Runs RMSNorm on a row of 256 columns into memory for 200, so that the kernel writes past the end.
pub fn norm_past_the_end(runtime: &Cuda, stream: &Arc<CudaStream>) {
    let kernels = Kernels::new(Cuda::new(stream.context()).unwrap());
    let on = On { kernels: &kernels, stream };
    let (x, weight) = (on.memory(&[bf16::ONE; 256]), on.memory(&[1f32; 256]));
    let mut out = on.memory(&[bf16::ZERO; 200]);
    let address = runtime.view_mut(stream, &mut out).address();
    let queue = runtime.queue(stream);
    let args = RmsNorm {
        x: Residual::Is(runtime.view(stream, &x)),
        weight: runtime.view(stream, &weight),
        // SAFETY: none: the memory has fewer elements. The bytes behind it belong to no other allocation.
        out: unsafe { flexdraft::runtime::ViewMut::from_raw(address, 256, queue) },
        eps: 1e-6,
    };
    kernels.rms_norm(stream, &args).unwrap();
}

/// Launches `rms_norm` with a parameter struct of zeros, and returns the error.
fn launch(
    kernels: &Kernels<Cuda>,
    stream: &Arc<CudaStream>,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
) -> String {
    let params = [0u64; 64];
    let launch = Launch {
        kernel: "rms_norm",
        grid,
        threads,
        shared_bytes: shared,
        params: params.as_ptr().cast(),
        params_bytes: size_of_val(&params),
        regions: &[],
    };
    // SAFETY: the launch is refused.
    unsafe { kernels.runtime().launch(stream, &launch) }.unwrap_err().to_string()
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    succeeds(this_test!(), "", &[], || {
        let (context, stream) = device();
        let kernels = Kernels::load(&context).unwrap();
        for (grid, threads, shared, expected) in [
            ([1, 65_536, 1], 32, 0, "the grid is [1, 65536, 1]"),
            ([0, 1, 1], 32, 0, "the grid is [0, 1, 1]"),
            ([1, 1, 1], 0, 0, "a CTA has [0, 1, 1] threads"),
            ([1, 1, 1], 1025, 0, "a CTA has [1025, 1, 1] threads"),
            ([1, 1, 1], 1024, 0, "1024 threads, expected at most"),
            ([1, 1, 1], 32, 300 << 10, "needs 307200 bytes of shared memory per CTA"),
        ] {
            let error = launch(&kernels, &stream, grid, threads, shared);
            assert!(error.contains("rms_norm") && error.contains(expected), "{error}");
        }
    });
}

#[test]
fn shared_memory_has_to_be_opted_into() {
    succeeds(this_test!(), "", &[("FAIL", "cuFuncSetAttribute:1")], || {
        let (context, _stream) = device();
        let error = Cuda::new(&context).unwrap_err().to_string();
        assert!(error.contains("cuFuncSetAttribute"), "{error}");
    });
}

#[test]
fn parameters_that_lead_to_freed_memory_are_an_error_of_the_context() {
    succeeds(this_test!(), "", &[], || {
        let (context, stream) = device();
        let kernels = Kernels::load(&context).unwrap();
        let on = On { kernels: &kernels, stream: &stream };
        let x = on.memory(&[bf16::ONE; 256]);
        let address = kernels.runtime().view(&stream, &x).address();
        drop(x);
        let queue = kernels.runtime().queue(&stream);
        let weight = on.memory(&[1f32; 256]);
        let mut out = on.memory(&[bf16::ZERO; 256]);
        let args = RmsNorm {
            // SAFETY: none: the memory is freed. The stand-in does not run the kernel.
            x: Residual::Is(unsafe { flexdraft::runtime::View::from_raw(address, 256, queue) }),
            weight: kernels.runtime().view(&stream, &weight),
            out: kernels.runtime().view_mut(&stream, &mut out),
            eps: 1e-6,
        };
        // The launch itself reports no error of its kernel; the next wait does.
        kernels.rms_norm(&stream, &args).unwrap();
        let error = stream.synchronize().unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && error.contains("kernel rms_norm"), "{error}");
        let error = stream.alloc_zeros::<u8>(8).unwrap_err().to_string();
        assert!(error.contains("an error of earlier work"), "{error}");
    });
}

/// A process whose kernel reads device memory to which no parameter leads dies, with the name of the call.
#[test]
fn memory_that_no_parameter_leads_to_is_not_accessible() {
    dies(this_test!(), "", &[], "cuLaunchKernel touched device memory", || {
        let (context, stream) = device();
        let kernels = Kernels::load(&context).unwrap();
        let on = On { kernels: &kernels, stream: &stream };
        let (x, weight) = (on.memory(&[bf16::ONE; 1 << 16]), on.memory(&[1f32; 1 << 16]));
        let mut out = on.memory(&[bf16::ZERO; 8]);
        let runtime = kernels.runtime();
        let (address, queue) = (runtime.view_mut(&stream, &mut out).address(), runtime.queue(&stream));
        let args = RmsNorm {
            x: Residual::Is(runtime.view(&stream, &x)),
            weight: runtime.view(&stream, &weight),
            // SAFETY: none: the kernel writes past the end of the memory, which ends the process.
            out: unsafe { flexdraft::runtime::ViewMut::from_raw(address, 1 << 16, queue) },
            eps: 1e-6,
        };
        let _ = kernels.rms_norm(&stream, &args);
    });
}

/// Kernels with checks report an access to bytes after an operand, which kernels without checks may touch.
#[test]
fn checked_kernels_keep_to_their_operands() {
    succeeds(this_test!(), "", &[("CHECKING", "accesses")], || {
        let (context, stream) = device();
        let runtime = Cuda::new(&context).unwrap();
        norm_past_the_end(&runtime, &stream);
        let error = stream.synchronize().unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED") && error.contains("rms_norm"), "{error}");
    });
}

#[test]
fn a_module_that_is_unloaded_too_early_is_found() {
    let ended = ended(this_test!(), "", &[("STREAMS", "late")], || {
        let (context, stream) = device();
        let image = c"// kernels of flexdraft, without device code\n// rms_norm\n";
        // SAFETY: an image that the stand-in reads; the struct has the kernel's size, and the kernel does not run.
        unsafe {
            let module = result::module::load_data(image.as_ptr().cast()).unwrap();
            assert!(result::module::get_function(module, c"silu_mul".into()).is_err());
            let function = result::module::get_function(module, c"rms_norm".into()).unwrap();
            let mut params = [0u64; 64];
            let mut params = [params.as_mut_ptr().cast()];
            let (grid, block) = ((1, 1, 1), (32, 1, 1));
            result::launch_kernel(function, grid, block, 0, stream.cu_stream(), &mut params).unwrap();
            result::module::unload(module).unwrap();
        }
        assert!(stream.synchronize().is_err());
        drop(context);
    });
    assert!(ended.stderr.contains("its module was unloaded before it ran") || ended.stderr.is_empty());
}

#[test]
fn a_driver_refuses_images_without_code() {
    succeeds(this_test!(), "", &[("FAIL", "cuModuleLoadData:1")], || {
        let (context, _stream) = device();
        let error = Cuda::new(&context).unwrap_err();
        if Cuda::kernel_names().next().is_none() {
            assert_eq!(error, RuntimeError::NoDeviceCode);
        }
    });
}
