//! The arguments of a TVM-FFI function: numbers, tensors and passes, each checked and named in errors.

use std::ffi::c_void;

use super::abi::{
    Any, BOOL, CODE_BFLOAT, CODE_FLOAT, CODE_INT, CODE_UINT, CPU, CUDA, DataType, Device, FLOAT, INT, NONE,
    Object, TENSOR, TENSOR_POINTER, Tensor,
};
use super::pass::{Contents, contents};
use crate::attention::FlexdraftHeadRows;
use crate::buffer::{
    FLEXDRAFT_BF16, FLEXDRAFT_F16, FLEXDRAFT_F32, FLEXDRAFT_I32, FLEXDRAFT_U32, FlexdraftBuffer, dtype_name,
};
use crate::status::{
    FLEXDRAFT_DTYPE, FLEXDRAFT_LENGTH, FLEXDRAFT_QUEUE, FLEXDRAFT_VALUE, Outcome, Refusal, table,
};

/// The elements that a tensor argument may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// bf16 or f16; all rows and caches of a call have one of the two.
    Half,
    /// f32.
    F32,
    /// f32, bf16 or f16.
    Logits,
    /// i32.
    I32,
    /// u32; i32 too, because not every framework has u32.
    Word,
    /// i64, on the host.
    HostI64,
    /// i32, on the host.
    HostI32,
    /// u32 or i32, on the host.
    HostWord,
    /// f32, on the host.
    HostF32,
    /// Structs of the C interface with this type number and size: a tensor of u8 with a last dimension of this size.
    Struct(u32, usize),
    /// The same structs on the host.
    HostStruct(u32, usize),
}

/// A checked tensor argument.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The tensor as an operand of the C interface.
    pub buffer: FlexdraftBuffer,
    /// The size of each dimension; of structs, without the dimension of their bytes.
    pub shape: &'a [i64],
    /// The strides in elements; `None` for row-major tensors.
    pub strides: Option<&'a [i64]>,
}

impl<'a> Found<'a> {
    /// Returns the elements of a tensor on the host.
    ///
    /// # Safety
    ///
    /// The tensor is on the host, contiguous, has elements of `T`, and lives for `'a`.
    pub unsafe fn host<T: bytemuck::Pod>(&self, name: &str) -> Outcome<&'a [T]> {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { table(name, self.buffer.data.cast_const().cast(), self.buffer.len) }
    }

    /// Returns the size of a dimension.
    pub fn dim(&self, index: usize) -> u64 {
        self.shape.get(index).map_or(0, |&size| size.cast_unsigned())
    }
}

/// The arguments of one call, taken in order.
#[derive(Debug)]
pub struct Arguments<'a> {
    function: &'static str,
    values: &'a [Any],
    next: usize,
    device: Option<Device>,
}

fn refusal(status: i32, text: String) -> Refusal {
    Refusal { status, text }
}

/// Returns a C table of `len` entries.
///
/// # Safety
///
/// `from` is readable for `len` entries that live for `'a`.
unsafe fn entries<'a>(from: *const i64, len: usize) -> &'a [i64] {
    if len == 0 || from.is_null() {
        return &[];
    }
    // SAFETY: the caller upholds the contract of this function.
    unsafe { std::slice::from_raw_parts(from, len) }
}

fn is_row_major(shape: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1i64;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size <= 1 || stride == expected;
        expected = expected.saturating_mul(size);
        fits
    })
}

impl<'a> Arguments<'a> {
    /// Starts with the first argument of a function.
    pub fn new(function: &'static str, values: &'a [Any]) -> Self {
        Arguments { function, values, next: 0, device: None }
    }

    fn take(&mut self, name: &str) -> Outcome<&'a Any> {
        let value = self.values.get(self.next).ok_or_else(|| {
            let (function, count) = (self.function, self.values.len());
            refusal(FLEXDRAFT_DTYPE, format!("{function} takes `{name}` after its {count} arguments"))
        })?;
        self.next += 1;
        Ok(value)
    }

    fn wrong(&self, name: &str, value: &Any, expected: &str) -> Refusal {
        let found = match value.type_index {
            NONE => "None".to_owned(),
            INT => "an integer".to_owned(),
            BOOL => "a boolean".to_owned(),
            FLOAT => "a number".to_owned(),
            TENSOR | TENSOR_POINTER => "a tensor".to_owned(),
            other => format!("a value of type {other}"),
        };
        refusal(FLEXDRAFT_DTYPE, format!("{}: `{name}` is {found}, expected {expected}", self.function))
    }

    /// Takes an integer of 0 or above.
    pub fn size(&mut self, name: &str) -> Outcome<u64> {
        let value = self.int(name)?;
        u64::try_from(value).map_err(|_| {
            refusal(FLEXDRAFT_VALUE, format!("{}: `{name}` is {value}, expected 0 or more", self.function))
        })
    }

    /// Takes an integer.
    pub fn int(&mut self, name: &str) -> Outcome<i64> {
        let value = self.take(name)?;
        match value.type_index {
            INT | BOOL => Ok(value.bits.cast_signed()),
            _ => Err(self.wrong(name, value, "an integer")),
        }
    }

    /// Takes a number that selects a way, such as an acceptance rule.
    pub fn choice(&mut self, name: &str) -> Outcome<u32> {
        let value = self.int(name)?;
        u32::try_from(value).map_err(|_| {
            refusal(FLEXDRAFT_VALUE, format!("{}: `{name}` is {value}, expected 0 or more", self.function))
        })
    }

    /// Takes a boolean, as 0 or 1.
    pub fn flag(&mut self, name: &str) -> Outcome<u32> {
        let value = self.take(name)?;
        match value.type_index {
            BOOL | INT if value.bits <= 1 => Ok(value.bits as u32),
            _ => Err(self.wrong(name, value, "a boolean")),
        }
    }

    /// Takes a number.
    pub fn float(&mut self, name: &str) -> Outcome<f32> {
        let value = self.take(name)?;
        match value.type_index {
            FLOAT => Ok(f64::from_bits(value.bits) as f32),
            INT => Ok(value.bits.cast_signed() as f32),
            _ => Err(self.wrong(name, value, "a number")),
        }
    }

    /// Takes a pass and its device.
    ///
    /// # Safety
    ///
    /// The caller of the function keeps the object alive during the call, and no other call uses it.
    pub unsafe fn pass(&mut self, name: &str) -> Outcome<&'a mut Contents> {
        let value = self.take(name)?;
        // SAFETY: the caller upholds the contract of this function.
        let found = unsafe { contents(value) };
        let found = found.ok_or_else(|| self.wrong(name, value, "an object of pass_tables"))?;
        self.on(name, found.device)?;
        Ok(found)
    }

    /// Records the device of an argument, which is the device of every argument.
    fn on(&mut self, name: &str, device: Device) -> Outcome<()> {
        let expected = *self.device.get_or_insert(device);
        let text = |device: Device| match device.kind {
            CPU => "the host".to_owned(),
            CUDA => format!("CUDA device {}", device.id),
            other => format!("device {} of type {other}", device.id),
        };
        if ![CPU, CUDA].contains(&device.kind) {
            let (function, found) = (self.function, text(device));
            let text = format!("{function}: `{name}` is on {found}, expected CUDA or the host");
            return Err(refusal(FLEXDRAFT_QUEUE, text));
        }
        if expected != device {
            let (function, found, expected) = (self.function, text(device), text(expected));
            let text = format!("{function}: `{name}` is on {found}, and an argument before it on {expected}");
            return Err(refusal(FLEXDRAFT_QUEUE, text));
        }
        Ok(())
    }

    /// Returns the device of the arguments, the host if there are none.
    pub fn device(&self) -> Device {
        self.device.unwrap_or(Device { kind: CPU, id: 0 })
    }

    /// Returns whether there are arguments that were not taken.
    pub fn has_more(&self) -> bool {
        self.next < self.values.len()
    }

    /// Checks that all arguments were taken.
    pub fn end(&self) -> Outcome<()> {
        if self.next == self.values.len() {
            return Ok(());
        }
        let (function, expected, found) = (self.function, self.next, self.values.len());
        Err(refusal(FLEXDRAFT_DTYPE, format!("{function} takes {expected} arguments, and got {found}")))
    }

    /// Takes a row-major tensor with these elements and this shape, in which −1 stands for any size.
    pub fn tensor(&mut self, name: &str, elements: Elements, shape: &[i64]) -> Outcome<Found<'a>> {
        let found = self.strided(name, elements, shape)?;
        match found.strides {
            None => Ok(found),
            Some(strides) => {
                let function = self.function;
                let text =
                    format!("{function}: `{name}` has the strides {strides:?}, expected a contiguous tensor");
                Err(refusal(FLEXDRAFT_VALUE, text))
            }
        }
    }

    /// Takes a [`tensor`](Self::tensor), or None.
    pub fn optional_tensor(
        &mut self,
        name: &str,
        elements: Elements,
        shape: &[i64],
    ) -> Outcome<Option<Found<'a>>> {
        match self.values.get(self.next) {
            Some(value) if value.type_index == NONE => {
                self.next += 1;
                Ok(None)
            }
            _ => self.tensor(name, elements, shape).map(Some),
        }
    }

    /// Takes rows of `columns` elements of bf16 or f16, which may be parts of longer rows. None, and the end of the arguments,
    /// give absent rows.
    pub fn optional_rows(&mut self, name: &str, columns: u64) -> Outcome<FlexdraftHeadRows> {
        match self.values.get(self.next) {
            None => return Ok(FlexdraftHeadRows::ABSENT),
            Some(value) if value.type_index == NONE => {
                self.next += 1;
                return Ok(FlexdraftHeadRows::ABSENT);
            }
            Some(_) => {}
        }
        let columns_of = i64::try_from(columns).map_err(|_| Refusal::overflow(name))?;
        let found = self.strided(name, Elements::Half, &[-1, columns_of])?;
        let Some(&[stride, within]) = found.strides else {
            return Ok(FlexdraftHeadRows { rows: found.buffer, stride: columns });
        };
        let stride = u64::try_from(stride).ok().filter(|_| within == 1).ok_or_else(|| {
            let (function, strides) = (self.function, [stride, within]);
            let text =
                format!("{function}: `{name}` has the strides {strides:?}, expected adjacent elements");
            refusal(FLEXDRAFT_VALUE, text)
        })?;
        let last = found.dim(0).saturating_sub(1).checked_mul(stride);
        let len = last.and_then(|last| last.checked_add(columns)).ok_or_else(|| Refusal::overflow(name))?;
        Ok(FlexdraftHeadRows { rows: FlexdraftBuffer { len, ..found.buffer }, stride })
    }

    /// Takes the operand of a [`tensor`](Self::tensor), or None, which gives an absent operand.
    pub fn optional(&mut self, name: &str, elements: Elements, shape: &[i64]) -> Outcome<FlexdraftBuffer> {
        let found = self.optional_tensor(name, elements, shape)?;
        Ok(found.map_or(FlexdraftBuffer::ABSENT, |found| found.buffer))
    }

    /// Takes a tensor with any strides.
    pub fn strided(&mut self, name: &str, elements: Elements, shape: &[i64]) -> Outcome<Found<'a>> {
        let value = self.take(name)?;
        let tensor: *const Tensor = match value.type_index {
            TENSOR_POINTER => value.bits as *const Tensor,
            TENSOR => (value.bits as *const Object).wrapping_add(1).cast(),
            _ => return Err(self.wrong(name, value, "a tensor")),
        };
        if tensor.is_null() {
            return Err(self.wrong(name, value, "a tensor that is not null"));
        }
        // SAFETY: the caller of the function passes valid values.
        let tensor = unsafe { &*tensor };
        let dimensions = usize::try_from(tensor.dimensions).unwrap_or(0);
        // SAFETY: as above; a tensor has sizes and, unless they are null, strides of its dimensions.
        let (sizes, strides) =
            unsafe { (entries(tensor.shape, dimensions), entries(tensor.strides, dimensions)) };
        let (dtype, bytes, is_host) = self.elements(name, elements, tensor.dtype)?;
        if is_host && tensor.device.kind != CPU {
            let text = format!("{}: `{name}` is not on the host, expected a CPU tensor", self.function);
            return Err(refusal(FLEXDRAFT_QUEUE, text));
        }
        if !is_host {
            self.on(name, tensor.device)?;
        }
        let whole: Vec<i64> = match elements {
            Elements::Struct(_, size) | Elements::HostStruct(_, size) => [shape, &[size as i64]].concat(),
            _ => shape.to_vec(),
        };
        let agrees = |(found, expected): (&i64, &i64)| *found >= 0 && (*expected < 0 || found == expected);
        if sizes.len() != whole.len() || !sizes.iter().zip(&whole).all(agrees) {
            let expected: Vec<String> =
                whole.iter().map(|&size| if size < 0 { "any".into() } else { size.to_string() }).collect();
            let (function, expected) = (self.function, expected.join(", "));
            let text = format!("{function}: `{name}` has the shape {sizes:?}, expected [{expected}]");
            return Err(refusal(FLEXDRAFT_LENGTH, text));
        }
        let sizes = &sizes[..shape.len()];
        let overflow = || Refusal::overflow(name);
        let len = sizes.iter().try_fold(1u64, |len, &size| len.checked_mul(size.cast_unsigned()));
        let len = len.filter(|len| len.checked_mul(bytes).is_some()).ok_or_else(overflow)?;
        let data: *mut c_void =
            tensor.data.wrapping_byte_add(usize::try_from(tensor.byte_offset).map_err(|_| overflow())?);
        let is_dense =
            len == 0 || strides.is_empty() || is_row_major(&whole_sizes(tensor, dimensions), strides);
        let strides = (!is_dense).then_some(strides);
        Ok(Found { buffer: FlexdraftBuffer { data, len, dtype, reserved: 0 }, shape: sizes, strides })
    }

    /// Checks the type of a tensor's elements. Returns their number in the C interface, their bytes, and whether they
    /// must be on the host.
    fn elements(&self, name: &str, elements: Elements, found: DataType) -> Outcome<(u32, u64, bool)> {
        let is = |code, bits| found == DataType { code, bits, lanes: 1 };
        let (bf16, f32) = (is(CODE_BFLOAT, 16), is(CODE_FLOAT, 32));
        let accepted = match elements {
            Elements::Half | Elements::Logits if is(CODE_FLOAT, 16) => Some((FLEXDRAFT_F16, 2, false)),
            Elements::Half | Elements::Logits if bf16 => Some((FLEXDRAFT_BF16, 2, false)),
            Elements::F32 | Elements::Logits if f32 => Some((FLEXDRAFT_F32, 4, false)),
            Elements::I32 if is(CODE_INT, 32) => Some((FLEXDRAFT_I32, 4, false)),
            Elements::Word if is(CODE_INT, 32) || is(CODE_UINT, 32) => Some((FLEXDRAFT_U32, 4, false)),
            Elements::HostI64 if is(CODE_INT, 64) => Some((FLEXDRAFT_I32, 8, true)),
            Elements::HostI32 if is(CODE_INT, 32) => Some((FLEXDRAFT_I32, 4, true)),
            Elements::HostWord if is(CODE_INT, 32) || is(CODE_UINT, 32) => Some((FLEXDRAFT_U32, 4, true)),
            Elements::HostF32 if f32 => Some((FLEXDRAFT_F32, 4, true)),
            Elements::Struct(dtype, size) if is(CODE_UINT, 8) => Some((dtype, size as u64, false)),
            Elements::HostStruct(dtype, size) if is(CODE_UINT, 8) => Some((dtype, size as u64, true)),
            _ => None,
        };
        accepted.ok_or_else(|| {
            let expected = match elements {
                Elements::Half => "bf16 or f16".to_owned(),
                Elements::F32 | Elements::HostF32 => "f32".to_owned(),
                Elements::Logits => "f32, bf16 or f16".to_owned(),
                Elements::I32 | Elements::HostI32 => "i32".to_owned(),
                Elements::Word | Elements::HostWord => "u32 or i32".to_owned(),
                Elements::HostI64 => "i64".to_owned(),
                Elements::Struct(dtype, size) | Elements::HostStruct(dtype, size) => {
                    format!("u8, with {size} bytes for each {}", dtype_name(dtype))
                }
            };
            let kind = match found.code {
                CODE_INT => "i",
                CODE_UINT => "u",
                CODE_FLOAT => "f",
                CODE_BFLOAT => "bf",
                _ => "type ",
            };
            let lanes = if found.lanes == 1 { String::new() } else { format!("x{}", found.lanes) };
            let text = format!(
                "{}: `{name}` has elements of {kind}{}{lanes}, expected {expected}",
                self.function, found.bits
            );
            refusal(FLEXDRAFT_DTYPE, text)
        })
    }
}

/// Returns the size of every dimension of a tensor.
fn whole_sizes(tensor: &Tensor, dimensions: usize) -> Vec<i64> {
    // SAFETY: a tensor has sizes of its dimensions.
    unsafe { entries(tensor.shape, dimensions) }.to_vec()
}
