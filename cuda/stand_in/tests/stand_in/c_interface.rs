//! Tests the C interface on the stand-in: launches on the caller's stream, over the caller's device memory, give the
//! emulator's bits, and a pass belongs to the stream that it was opened for.

use std::ffi::c_void;
use std::ptr;

use flexdraft::kernels::norm::{Residual, RmsNorm};
use flexdraft::kernels::rope::RopeTable;
use flexdraft::kernels::{Kernels, Paging, PassTables};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::runtime::{Element, RawCuda, RawMemory, RawStream, Runtime, Simt, SimtOptions};
use flexdraft_ffi::*;
use half::bf16;

use crate::process::{device, succeeds, this_test};

const ROWS: usize = 3;
const COLS: usize = 64;
static PAGES: [u32; 1] = [0];

fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0).collect()
}

/// Returns the normed rows and the cosines and sines of a pass at position 5, computed by the emulator.
fn expected() -> (Vec<bf16>, Vec<f32>) {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
    let x: Vec<bf16> = numbers(ROWS * COLS).into_iter().map(bf16::from_f32).collect();
    let (weight, mut out) = (numbers(COLS), vec![bf16::ZERO; ROWS * COLS]);
    let x = Residual::Is(stream.view(&x));
    let args = RmsNorm { x, weight: stream.view(&weight), out: stream.view_mut(&mut out), eps: 1e-6 };
    kernels.rms_norm(&stream, &args).unwrap();
    drop(args);
    let rows = SequenceRows { pages: &[0], start: 5, candidates: ROWS, groups: vec![], slots: 0 };
    let mut pass = PassTables::new(simt, &stream, 1, 1).unwrap();
    let paging = Paging { pages: 1, page_size: 16 };
    pass.upload(simt, &stream, &Pass { sequences: vec![rows] }, paging).unwrap();
    let (inv_freq, mut cos_sin) = ([1f32, 0.5], vec![0f32; ROWS * 4]);
    let args = RopeTable {
        pass: &pass,
        inv_freq: stream.view(&inv_freq),
        scale: 1.0,
        cos_sin: stream.view_mut(&mut cos_sin),
    };
    kernels.rope_table(&stream, &args).unwrap();
    drop(args);
    (out, cos_sin)
}

/// The caller's memory: an engine's tensors on the device.
struct Engine {
    runtime: RawCuda,
    stream: RawStream,
}

impl Engine {
    fn memory<T: Element>(&self, host: &[T]) -> RawMemory<T> {
        let mut memory = self.runtime.allocate(&self.stream, host.len()).unwrap();
        self.runtime.upload(&self.stream, host, &mut memory, 0).unwrap();
        memory
    }

    fn operand<T: Element>(&self, memory: &RawMemory<T>, dtype: u32) -> FlexdraftBuffer {
        let view = self.runtime.view(&self.stream, memory);
        FlexdraftBuffer { data: view.address() as *mut c_void, len: view.len() as u64, dtype, reserved: 0 }
    }

    fn host<T: Element>(&self, memory: &RawMemory<T>, len: usize) -> Vec<T> {
        let mut host = vec![T::zeroed(); len];
        self.runtime.download(&self.stream, memory, 0, &mut host).unwrap();
        host
    }
}

/// Calls a function of the C interface, and returns its status.
fn status(call: impl FnOnce(*mut FlexdraftError) -> i32) -> i32 {
    let mut error = FlexdraftError::default();
    let status = call(&raw mut error);
    eprintln!("status {status}: {}", error.text());
    status
}

/// Opens the kernels on the stand-in, and runs a norm and the rope table of a pass on a stream of the caller.
fn run() {
    let (context, stream) = device();
    let other = context.new_stream().unwrap();
    let address = stream.cu_stream() as *mut c_void;
    // SAFETY: the stream outlives everything that is made with it.
    let raw = unsafe { RawStream::new(&context, address as u64) };
    let engine = Engine { runtime: RawCuda::new(&context).unwrap(), stream: raw };
    let (mut kernels, mut pass) = (ptr::null_mut(), ptr::null_mut());
    let x: Vec<bf16> = numbers(ROWS * COLS).into_iter().map(bf16::from_f32).collect();
    let (x, weight) = (engine.memory(&x), engine.memory(&numbers(COLS)));
    let out = engine.memory(&[bf16::ZERO; ROWS * COLS]);
    let (inv_freq, cos_sin) = (engine.memory(&[1f32, 0.5]), engine.memory(&[0f32; ROWS * 4]));
    let norm = FlexdraftRmsNorm {
        struct_size: size_of::<FlexdraftRmsNorm>() as u64,
        x: engine.operand(&x, FLEXDRAFT_BF16),
        delta: FlexdraftBuffer::ABSENT,
        weight: engine.operand(&weight, FLEXDRAFT_F32),
        out: engine.operand(&out, FLEXDRAFT_BF16),
        eps: 1e-6,
        reserved: 0,
    };
    let sequence = FlexdraftSequence {
        struct_size: size_of::<FlexdraftSequence>() as u64,
        pages: PAGES.as_ptr(),
        page_count: 1,
        start: 5,
        candidates: ROWS as u64,
        first_group: 0,
        groups: 0,
        slots: 0,
    };
    let rows = FlexdraftPassRows {
        struct_size: size_of::<FlexdraftPassRows>() as u64,
        sequences: &raw const sequence,
        sequence_count: 1,
        sequence_stride: size_of::<FlexdraftSequence>() as u64,
        pages: 1,
        page_size: 16,
    };
    // SAFETY: the streams and the memory live until the end, and pointers lead to variables.
    unsafe {
        assert_eq!(status(|error| flexdraft_open(0, &raw mut kernels, error)), FLEXDRAFT_OK);
        assert_eq!(
            status(|error| flexdraft_rms_norm(kernels, address, &raw const norm, error)),
            FLEXDRAFT_OK
        );
        let opened = status(|error| flexdraft_pass_open(kernels, address, 1, 1, &raw mut pass, error));
        assert_eq!(opened, FLEXDRAFT_OK);
        let upload =
            |stream| status(|error| flexdraft_pass_upload(kernels, stream, pass, &raw const rows, error));
        assert_eq!(upload(other.cu_stream().cast()), FLEXDRAFT_QUEUE);
        assert_eq!(upload(address), FLEXDRAFT_OK);
        let rope = FlexdraftRopeTable {
            struct_size: size_of::<FlexdraftRopeTable>() as u64,
            pass,
            inv_freq: engine.operand(&inv_freq, FLEXDRAFT_F32),
            cos_sin: engine.operand(&cos_sin, FLEXDRAFT_F32),
            scale: 1.0,
            reserved: 0,
        };
        let launch = |stream| status(|error| flexdraft_rope_table(kernels, stream, &raw const rope, error));
        assert_eq!(launch(other.cu_stream().cast()), FLEXDRAFT_QUEUE);
        assert_eq!(launch(address), FLEXDRAFT_OK);
        let found = (engine.host(&out, ROWS * COLS), engine.host(&cos_sin, ROWS * 4));
        assert_eq!(found, expected());
        flexdraft_pass_close(pass);
        flexdraft_close(kernels);
    }
}

#[test]
fn the_c_interface_runs_on_the_callers_stream() {
    for streams in ["eager", "late"] {
        succeeds(this_test!(), streams, &[("STREAMS", streams), ("CHECKING", "accesses")], run);
    }
}

#[test]
fn there_is_no_second_device() {
    succeeds(this_test!(), "", &[], || {
        let mut kernels = ptr::null_mut();
        // SAFETY: the pointers lead to variables.
        let opened = status(|error| unsafe { flexdraft_open(1, &raw mut kernels, error) });
        assert_eq!(opened, FLEXDRAFT_NO_DEVICE);
        assert!(kernels.is_null());
    });
}
