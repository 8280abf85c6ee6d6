//! The structs of the TVM-FFI and DLPack interfaces, declared by hand: `tvm/ffi/c_api.h` of apache-tvm-ffi 0.1, and
//! `dlpack/dlpack.h` 1.x.

use std::ffi::{c_char, c_int, c_void};

/// Type of a value: none.
pub const NONE: i32 = 0;
/// Type of a value: an integer.
pub const INT: i32 = 1;
/// Type of a value: a boolean.
pub const BOOL: i32 = 2;
/// Type of a value: a double.
pub const FLOAT: i32 = 3;
/// Type of a value: a pointer to a tensor.
pub const TENSOR_POINTER: i32 = 7;
/// The first type of values that are objects.
pub const OBJECT: i32 = 64;
/// Type of a value: a tensor object, whose [`Tensor`] follows its header.
pub const TENSOR: i32 = 70;

/// DLPack's device type of host memory.
pub const CPU: i32 = 1;
/// DLPack's device type of CUDA memory.
pub const CUDA: i32 = 2;

/// DLPack's code of signed integers.
pub const CODE_INT: u8 = 0;
/// DLPack's code of unsigned integers.
pub const CODE_UINT: u8 = 1;
/// DLPack's code of IEEE floating-point numbers.
pub const CODE_FLOAT: u8 = 2;
/// DLPack's code of bfloat16.
pub const CODE_BFLOAT: u8 = 4;

/// A value: `TVMFFIAny`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Any {
    /// The type of the value.
    pub type_index: i32,
    /// 0, except in small strings.
    pub padding: u32,
    /// The bits of an integer, a double or a pointer.
    pub bits: u64,
}

/// The header of an object: `TVMFFIObject`.
#[repr(C)]
#[derive(Debug)]
pub struct Object {
    /// The strong count in the low half, the weak count in the high half.
    pub counts: u64,
    /// The type of the object.
    pub type_index: i32,
    /// Unused.
    pub padding: u32,
    /// Frees the object: flag 1 when the strong count reaches 0, flag 2 when the weak count does.
    pub deleter: Option<unsafe extern "C" fn(*mut c_void, c_int)>,
}

/// A text with its length: `TVMFFIByteArray`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ByteArray {
    /// The bytes.
    pub data: *const c_char,
    /// The number of bytes.
    pub size: usize,
}

/// A device: `DLDevice`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kind of device: [`CPU`] or [`CUDA`].
    pub kind: i32,
    /// The number of the device.
    pub id: i32,
}

/// A type of elements: `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataType {
    /// The kind of numbers.
    pub code: u8,
    /// The bits of a number.
    pub bits: u8,
    /// The number of lanes of a vector; 1 for plain numbers.
    pub lanes: u16,
}

/// A tensor: `DLTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// The address of the memory.
    pub data: *mut c_void,
    /// The device of the memory.
    pub device: Device,
    /// The number of dimensions.
    pub dimensions: i32,
    /// The type of the elements.
    pub dtype: DataType,
    /// The size of each dimension.
    pub shape: *const i64,
    /// The distance of neighbours in each dimension, in elements; null for row-major tensors.
    pub strides: *const i64,
    /// The offset of the first element from `data`, in bytes.
    pub byte_offset: u64,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Any>() == 16 && offset_of!(Any, bits) == 8);
    assert!(
        size_of::<Object>() == 24 && offset_of!(Object, type_index) == 8 && offset_of!(Object, deleter) == 16
    );
    assert!(size_of::<ByteArray>() == 16 && size_of::<Device>() == 8 && size_of::<DataType>() == 4);
    assert!(
        size_of::<Tensor>() == 48 && offset_of!(Tensor, dimensions) == 16 && offset_of!(Tensor, dtype) == 20
    );
    assert!(offset_of!(Tensor, shape) == 24 && offset_of!(Tensor, byte_offset) == 40);
};
