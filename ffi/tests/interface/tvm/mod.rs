//! Tests of the TVM-FFI functions, called as a loader calls them: by the symbol in the shared library, with the structs
//! of the two interfaces. A small library takes the place of libtvm_ffi.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

use flexdraft_ffi::*;
use half::{bf16, f16};

use crate::support::{Noise, attempt, compile, folder};

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

/// A value of TVM-FFI.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Any {
    type_index: i32,
    padding: u32,
    bits: u64,
}

const NONE: Any = Any { type_index: 0, padding: 0, bits: 0 };

fn int(value: i64) -> Any {
    Any { type_index: 1, padding: 0, bits: value.cast_unsigned() }
}

fn flag(value: bool) -> Any {
    Any { type_index: 2, padding: 0, bits: u64::from(value) }
}

fn float(value: f64) -> Any {
    Any { type_index: 3, padding: 0, bits: value.to_bits() }
}

/// A tensor of DLPack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Tensor {
    data: *mut c_void,
    device: [i32; 2],
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

type Function = unsafe extern "C" fn(*mut c_void, *const Any, i32, *mut Any) -> i32;

/// The shared library, and the library in the place of libtvm_ffi.
struct Libraries {
    kernels: usize,
    host: usize,
}

fn open(path: &Path, flags: c_int) -> usize {
    let text = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero; both libraries have no initialisers.
    let library = unsafe { dlopen(text.as_ptr(), flags) };
    assert!(!library.is_null(), "{}", path.display());
    library as usize
}

fn symbol(library: usize, name: &str) -> *mut c_void {
    let text = CString::new(name).unwrap();
    // SAFETY: the library is open.
    let found = unsafe { dlsym(library as *mut c_void, text.as_ptr()) };
    assert!(!found.is_null(), "{name}");
    found
}

fn libraries() -> &'static Libraries {
    static OPEN: OnceLock<Libraries> = OnceLock::new();
    OPEN.get_or_init(|| {
        let out = folder("tvm").join("libtvm_ffi_host.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interface/tvm_ffi_host.c");
        compile("CC", "cc", &["-std=c11", "-shared", "-fPIC", "-o", out.to_str().unwrap()], &source).unwrap();
        let beside: PathBuf = std::env::current_exe().unwrap().parent().unwrap().join("libflexdraft_ffi.so");
        Libraries { host: open(&out, RTLD_NOW | RTLD_GLOBAL), kernels: open(&beside, RTLD_NOW) }
    })
}

/// Calls a function. Returns its result, or the kind and the text of the error that it raised.
fn call(name: &str, values: &[Any]) -> Result<Any, (String, String)> {
    let found = symbol(libraries().kernels, &format!("__tvm_ffi_{name}"));
    let mut result = NONE;
    // SAFETY: the symbol has this type, and the values are valid.
    let status = unsafe {
        let function = std::mem::transmute::<*mut c_void, Function>(found);
        function(ptr::null_mut(), values.as_ptr(), values.len() as i32, &raw mut result)
    };
    if status == 0 {
        return Ok(result);
    }
    assert_eq!(status, -1);
    type Raised = unsafe extern "C" fn(c_int) -> *const c_char;
    // SAFETY: the host's function has this type, and returns texts that end with a zero.
    let text = |want: c_int| unsafe {
        let raised = std::mem::transmute::<*mut c_void, Raised>(symbol(libraries().host, "raised"));
        CStr::from_ptr(raised(want)).to_string_lossy().into_owned()
    };
    Err((text(0), text(1)))
}

/// The types of operands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    Bf16,
    F16,
    F32,
    I32,
    U32,
    /// i64 on the host, which the C interface has not.
    I64,
    /// A struct of the C interface, by its number and size.
    Struct(u32, usize),
}
use Type::{Bf16, F16, F32, I32, I64, Struct, U32};

const SAMPLING: Type = Struct(FLEXDRAFT_ROW_SAMPLING, 40);
const STATS: Type = Struct(FLEXDRAFT_ROW_STATS, 48);
const VERIFY: Type = Struct(FLEXDRAFT_VERIFY, 48);
const VERDICT: Type = Struct(FLEXDRAFT_VERDICT, 32);
const DRAFT: Type = Struct(FLEXDRAFT_DRAFT, 32);
const ROW_EDITS: Type = Struct(FLEXDRAFT_ROW_EDITS, 24);
const EDITS: Type = Struct(FLEXDRAFT_LOGIT_EDIT, 16);

/// An operand with its own memory, as a tensor and as a buffer of the C interface.
#[derive(Clone, Debug)]
struct Operand {
    kind: Type,
    shape: Vec<i64>,
    /// The memory, in words of 16 bytes, which are aligned for every kernel.
    memory: Vec<u128>,
}

impl Operand {
    fn new(kind: Type, shape: &[usize]) -> Self {
        let count: usize = shape.iter().product();
        let (bytes, last) = match kind {
            Bf16 | F16 => (2, None),
            F32 | I32 | U32 => (4, None),
            I64 => (8, None),
            Struct(_, size) => (size, Some(size)),
        };
        let shape = shape.iter().chain(&last).map(|&size| size as i64).collect();
        Operand { kind, shape, memory: vec![0; (count * bytes).div_ceil(16)] }
    }

    /// Returns an operand with elements or structs.
    fn of<T: bytemuck::Pod>(kind: Type, shape: &[usize], elements: &[T]) -> Self {
        let mut operand = Operand::new(kind, shape);
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        bytemuck::cast_slice_mut(&mut operand.memory)[..bytes.len()].copy_from_slice(bytes);
        operand
    }

    /// Returns an operand of random numbers.
    fn noise(kind: Type, shape: &[usize], noise: &mut Noise) -> Self {
        let count = shape.iter().product();
        match kind {
            Bf16 => Operand::of(kind, shape, &noise.rounded::<bf16>(count)),
            F16 => Operand::of(kind, shape, &noise.rounded::<f16>(count)),
            _ => Operand::of(kind, shape, &noise.floats(count)),
        }
    }

    /// Returns the operand as a buffer of the C interface.
    fn buffer(&mut self) -> FlexdraftBuffer {
        let (dtype, last) = match self.kind {
            Bf16 => (FLEXDRAFT_BF16, 0),
            F16 => (FLEXDRAFT_F16, 0),
            F32 => (FLEXDRAFT_F32, 0),
            I32 => (FLEXDRAFT_I32, 0),
            U32 => (FLEXDRAFT_U32, 0),
            I64 => (FLEXDRAFT_ABSENT, 0),
            Struct(dtype, _) => (dtype, 1),
        };
        let sizes = &self.shape[..self.shape.len() - last];
        let len = sizes.iter().product::<i64>().cast_unsigned();
        FlexdraftBuffer { data: self.memory.as_mut_ptr().cast(), len, dtype, reserved: 0 }
    }

    /// Returns the operand as a tensor.
    fn tensor(&mut self) -> Tensor {
        let (code, bits) = match self.kind {
            Bf16 => (4, 16),
            F16 => (2, 16),
            F32 => (2, 32),
            I32 => (0, 32),
            U32 => (1, 32),
            I64 => (0, 64),
            Struct(..) => (1, 8),
        };
        Tensor {
            data: self.memory.as_mut_ptr().cast(),
            device: [1, 0],
            dimensions: self.shape.len() as i32,
            code,
            bits,
            lanes: 1,
            shape: self.shape.as_ptr(),
            strides: ptr::null(),
            byte_offset: 0,
        }
    }

    fn elements<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory)
    }
}

/// Calls a function that returns a number.
fn number(name: &str, values: &[Any]) -> usize {
    let found = call(name, values).unwrap();
    assert_eq!(found.type_index, 1);
    found.bits as usize
}

fn value(tensor: &Tensor) -> Any {
    Any { type_index: 7, padding: 0, bits: ptr::from_ref(tensor) as u64 }
}

/// An argument of a TVM-FFI function: the operand with this index, or a value.
#[derive(Clone, Copy)]
enum Argument {
    At(usize),
    Value(Any),
}
use Argument::{At, Value};

/// Returns the values of arguments whose operands are `tensors`.
fn values_of(arguments: &[Argument], tensors: &[Tensor]) -> Vec<Any> {
    let value_of = |argument: &Argument| match *argument {
        At(index) => value(&tensors[index]),
        Value(value) => value,
    };
    arguments.iter().map(value_of).collect()
}

/// Runs a kernel through both interfaces on copies of the operands, and asserts that they leave the same bits and
/// change something. Returns the operands after the run.
fn same(
    name: &str,
    operands: &[Operand],
    arguments: &[Argument],
    through_c: impl FnOnce(&[FlexdraftBuffer], *mut FlexdraftError) -> i32,
) -> Vec<Operand> {
    let (mut by_c, mut by_tvm) = (operands.to_vec(), operands.to_vec());
    let buffers: Vec<_> = by_c.iter_mut().map(Operand::buffer).collect();
    attempt(|error| through_c(&buffers, error)).unwrap();
    let tensors: Vec<_> = by_tvm.iter_mut().map(Operand::tensor).collect();
    let values = values_of(arguments, &tensors);
    assert_eq!(call(name, &values), Ok(NONE), "{name}");
    for (index, (c, tvm)) in by_c.iter().zip(&by_tvm).enumerate() {
        assert_eq!(tvm.memory, c.memory, "{name}: operand {index}");
    }
    assert!(
        by_tvm.iter().zip(operands).any(|(after, before)| after.memory != before.memory),
        "{name} wrote nothing"
    );
    by_tvm
}

macro_rules! versioned {
    ($name:ident { $($fields:tt)* }) => {
        $name { struct_size: size_of::<$name>() as u64, $($fields)* }
    };
}

/// Returns a way to launch a function of the C interface on operands given by their buffers.
macro_rules! c {
    ($opened:expr, $function:ident, |$b:ident| $args:expr) => {
        |$b: &[FlexdraftBuffer], error: *mut FlexdraftError| {
            let args = $args;
            // SAFETY: the kernels are open, and the operands live during the call.
            unsafe { $function($opened.0, ptr::null_mut(), &raw const args, error) }
        }
    };
}

mod edits;
mod misuse;
mod passes;
mod rows;
mod sampling;
