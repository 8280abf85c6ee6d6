//! Helpers that the tests of the C interface share: the header, a C compiler, operands, and errors.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::Once;

use flexdraft::kernels::HalfFloat;
use flexdraft::kernels::acceptance::{Verdict, Verify};
use flexdraft::kernels::sampling::{Logit, LogitEdit, RowEdits, RowSampling, RowStats};
use flexdraft::kernels::selection::Draft;
use flexdraft_ffi::*;
use half::{bf16, f16};

/// Returns the path of the header. With `FLEXDRAFT_BLESS=1`, the first call writes it, before any test reads it.
pub fn header() -> PathBuf {
    static WRITTEN: Once = Once::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/flexdraft.h");
    WRITTEN.call_once(|| {
        if std::env::var_os("FLEXDRAFT_BLESS").is_some_and(|value| value == "1") {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, generated_header()).unwrap();
        }
    });
    path
}

/// Returns the header that the Rust sources give.
pub fn generated_header() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    let mut text = Vec::new();
    cbindgen::Builder::new().with_crate(folder).with_config(config).generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

/// Returns an empty folder for files of a test program.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ffi-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Compiles a source file with warnings as errors, by the compiler that the environment variable `variable` names.
/// Returns the compiler's messages if it fails.
pub fn compile(variable: &str, default: &str, arguments: &[&str], source: &Path) -> Result<(), String> {
    let compiler = std::env::var(variable).unwrap_or_else(|_| default.into());
    let warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
    let include = header().parent().unwrap().to_owned();
    let output =
        Command::new(&compiler).args(warnings).arg("-I").arg(include).arg(source).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{compiler}: {error}"));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Makes a struct of the C interface with its size. With `..` at the end, the fields that are not named are zeros, as in
/// C: absent operands, and numbers of 0.
macro_rules! versioned {
    ($name:ident { $($field:ident $(: $value:expr)?,)* .. }) => {
        $name {
            struct_size: size_of::<$name>() as u64,
            $($field $(: $value)?,)*
            // SAFETY: the fields are numbers, pointers, and structs of these.
            ..unsafe { std::mem::zeroed::<$name>() }
        }
    };
    ($name:ident { $($fields:tt)* }) => {
        $name { struct_size: size_of::<$name>() as u64, $($fields)* }
    };
}
pub(crate) use versioned;

/// The element types of operands.
pub trait Elements {
    const DTYPE: u32;
}

/// The types of floating-point operands.
pub trait Float: Elements {
    /// Rounds a number to the type.
    fn rounded(x: f32) -> Self;
}

impl Float for f32 {
    fn rounded(x: f32) -> Self {
        x
    }
}

impl Float for bf16 {
    fn rounded(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

impl Float for f16 {
    fn rounded(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// The types of rows and caches.
pub trait Half: HalfFloat + Float + PartialEq {
    const ZERO: Self;
    const ONE: Self;
}

impl Half for bf16 {
    const ZERO: Self = bf16::ZERO;
    const ONE: Self = bf16::ONE;
}

impl Half for f16 {
    const ZERO: Self = f16::ZERO;
    const ONE: Self = f16::ONE;
}

/// The types that store logits, with the type of their calibrators.
pub trait Stored: Logit + Float {
    type Calibrator: Half;
}

impl Stored for f32 {
    type Calibrator = bf16;
}

impl Stored for bf16 {
    type Calibrator = bf16;
}

impl Stored for f16 {
    type Calibrator = f16;
}

macro_rules! elements {
    ($($name:ty: $dtype:expr),* $(,)?) => { $(impl Elements for $name { const DTYPE: u32 = $dtype; })* };
}

elements![
    bf16: FLEXDRAFT_BF16,
    f16: FLEXDRAFT_F16,
    f32: FLEXDRAFT_F32,
    i32: FLEXDRAFT_I32,
    u32: FLEXDRAFT_U32,
    RowSampling: FLEXDRAFT_ROW_SAMPLING,
    RowStats: FLEXDRAFT_ROW_STATS,
    Verify: FLEXDRAFT_VERIFY,
    Verdict: FLEXDRAFT_VERDICT,
    Draft: FLEXDRAFT_DRAFT,
    RowEdits: FLEXDRAFT_ROW_EDITS,
    LogitEdit: FLEXDRAFT_LOGIT_EDIT,
];

/// Returns a slice as an operand that a kernel reads.
pub fn read<T: Elements>(slice: &[T]) -> FlexdraftBuffer {
    FlexdraftBuffer {
        data: slice.as_ptr().cast_mut().cast(),
        len: slice.len() as u64,
        dtype: T::DTYPE,
        reserved: 0,
    }
}

/// Returns a slice as an operand that a kernel writes.
pub fn write<T: Elements>(slice: &mut [T]) -> FlexdraftBuffer {
    FlexdraftBuffer { data: slice.as_mut_ptr().cast(), len: slice.len() as u64, dtype: T::DTYPE, reserved: 0 }
}

pub const ABSENT: FlexdraftBuffer = FlexdraftBuffer::ABSENT;

pub const NO_ROWS: FlexdraftHeadRows = FlexdraftHeadRows::ABSENT;

/// Returns the columns from `column` on of the rows from `row` on of a matrix of bf16 or f16, as rows of heads.
pub fn columns(matrix: FlexdraftBuffer, width: usize, row: usize, column: usize) -> FlexdraftHeadRows {
    let first = row * width + column;
    let data = matrix.data.cast::<u16>().wrapping_add(first).cast();
    let rows = FlexdraftBuffer { data, len: matrix.len - first as u64, ..matrix };
    FlexdraftHeadRows { rows, stride: width as u64 }
}

/// Calls a function of the C interface with an error struct as its last argument. Returns the status and the text of a
/// failure.
pub fn attempt(call: impl FnOnce(*mut FlexdraftError) -> i32) -> Result<(), (i32, String)> {
    let mut error = FlexdraftError::default();
    let status = call(&raw mut error);
    assert_eq!(status, error.status);
    assert_eq!(error.text().len(), (error.text_bytes as usize).min(495));
    if status == FLEXDRAFT_OK {
        assert_eq!(error.text(), "");
        return Ok(());
    }
    assert_ne!(error.text(), "");
    Err((status, error.text()))
}

/// The kernels on the emulator, opened through the C interface.
pub struct Opened(pub *mut FlexdraftKernels);

impl Opened {
    pub fn new() -> Self {
        let mut kernels = ptr::null_mut();
        // SAFETY: both pointers lead to variables.
        attempt(|error| unsafe { flexdraft_open(FLEXDRAFT_CHECKED_EMULATOR, &raw mut kernels, error) })
            .unwrap();
        Opened(kernels)
    }

    /// Opens tables of a pass and uploads the rows of its sequences.
    pub fn pass(&self, sequences: &[FlexdraftSequence], pages: u64, page_size: u64) -> OpenedPass {
        let mut pass = ptr::null_mut();
        let most = sequences.iter().map(|s| s.page_count).max().unwrap_or(0);
        // SAFETY: the kernels are open, and all pointers lead to variables or slices of the stated sizes.
        unsafe {
            let batch = sequences.len() as u64;
            attempt(|error| flexdraft_pass_open(self.0, ptr::null_mut(), batch, most, &raw mut pass, error))
                .unwrap();
        }
        let pass = OpenedPass(pass);
        self.upload(&pass, sequences, pages, page_size).unwrap();
        pass
    }

    pub fn upload(
        &self,
        pass: &OpenedPass,
        sequences: &[FlexdraftSequence],
        pages: u64,
        page_size: u64,
    ) -> Result<(), (i32, String)> {
        let rows = FlexdraftPassRows {
            struct_size: size_of::<FlexdraftPassRows>() as u64,
            sequences: sequences.as_ptr(),
            sequence_count: sequences.len() as u64,
            sequence_stride: size_of::<FlexdraftSequence>() as u64,
            pages,
            page_size,
        };
        // SAFETY: as above.
        attempt(|error| unsafe {
            flexdraft_pass_upload(self.0, ptr::null_mut(), pass.0, &raw const rows, error)
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: the object is open, and closed once.
        unsafe { flexdraft_close(self.0) }
    }
}

pub struct OpenedPass(pub *mut FlexdraftPass);

impl Drop for OpenedPass {
    fn drop(&mut self) {
        // SAFETY: the object is open, and closed once.
        unsafe { flexdraft_pass_close(self.0) }
    }
}

/// Returns the rows of a sequence in the C interface's form, with groups for the accepted lengths in `groups`.
pub fn sequence(pages: &[u32], start: u64, candidates: u64, groups: u64, slots: u64) -> FlexdraftSequence {
    FlexdraftSequence {
        struct_size: size_of::<FlexdraftSequence>() as u64,
        pages: pages.as_ptr(),
        page_count: pages.len() as u64,
        start,
        candidates,
        first_group: 0,
        groups,
        slots,
    }
}

/// A small generator of numbers for operands (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Returns a number from 0 to `end` − 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns numbers from −2 to 2.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
    }

    /// Returns numbers from −2 to 2, rounded to a type.
    pub fn rounded<T: Float>(&mut self, len: usize) -> Vec<T> {
        self.floats(len).into_iter().map(T::rounded).collect()
    }
}
