//! The operands of a launch: tensors, checked and named in errors.

use candle_core::{DType, Device, Result, Tensor};
use flexdraft::kernels::{HalfFloat, HalfView, KernelError};
use flexdraft::runtime::{Element, QueueId, View, ViewMut};
use half::{bf16, f16};

use crate::error::{Error, refused};
use crate::memory::{self, Span, Used};
use crate::table::{TableRow, form};

/// Any size of a dimension.
pub(crate) const ANY: usize = usize::MAX;

/// The elements that an operand may have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements {
    Bf16,
    F16,
    /// bf16 or f16, for the operand that decides the type of all rows and caches.
    Half,
    F32,
    /// f32, bf16 or f16.
    Logits,
    /// i32, or u32 as candle's own indices.
    Index,
    /// The numbers of a table, with its number of columns, which is the last dimension.
    Table(DType, usize),
}

impl Elements {
    /// The elements of a table of `T`.
    pub fn of<T: TableRow>() -> Self {
        let (dtype, columns) = form::<T>();
        Elements::Table(dtype, columns)
    }

    fn dtypes(self) -> Vec<DType> {
        match self {
            Elements::Bf16 => vec![DType::BF16],
            Elements::F16 => vec![DType::F16],
            Elements::Half => vec![DType::BF16, DType::F16],
            Elements::F32 => vec![DType::F32],
            Elements::Logits => vec![DType::F32, DType::BF16, DType::F16],
            Elements::Index => vec![DType::I32, DType::U32],
            Elements::Table(dtype, _) => vec![dtype],
        }
    }
}

/// The types of rows and caches.
pub(crate) trait Half: HalfFloat {
    const ELEMENTS: Elements;
    const DTYPE: DType;
}

impl Half for bf16 {
    const ELEMENTS: Elements = Elements::Bf16;
    const DTYPE: DType = DType::BF16;
}

impl Half for f16 {
    const ELEMENTS: Elements = Elements::F16;
    const DTYPE: DType = DType::F16;
}

/// Calls a generic function with the element type of all rows and caches of a launch, which is the type of the given
/// tensor. The function refuses a tensor that is neither bf16 nor f16.
macro_rules! of_half {
    ($tensor:expr, $kernels:ident . $function:ident ( $($argument:expr),* $(,)? )) => {
        match $tensor.dtype() {
            candle_core::DType::F16 => $kernels.$function::<half::f16>($($argument),*),
            _ => $kernels.$function::<half::bf16>($($argument),*),
        }
    };
}
pub(crate) use of_half;

/// Calls a generic function with the type of the logits of a launch, which a tensor decides. The function refuses a tensor
/// of another type.
macro_rules! of_logits {
    ($tensor:expr, $kernels:ident . $function:ident ( $($argument:expr),* $(,)? )) => {
        match $tensor.dtype() {
            candle_core::DType::BF16 => $kernels.$function::<half::bf16>($($argument),*),
            candle_core::DType::F16 => $kernels.$function::<half::f16>($($argument),*),
            _ => $kernels.$function::<f32>($($argument),*),
        }
    };
}
pub(crate) use of_logits;

/// The place of an operand in the list of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(usize);

#[derive(Debug)]
struct Operand {
    name: &'static str,
    tensor: Tensor,
    /// The number of elements from the first to the last.
    extent: usize,
    /// If the operand is rows with gaps: the distance of rows and the length of a row, in elements.
    rows: Option<(usize, usize)>,
    written: bool,
}

impl Operand {
    /// Returns the elements of the storage that the operand spans.
    fn range(&self) -> (usize, usize) {
        let start = self.tensor.layout().start_offset();
        (start, start.saturating_add(self.extent))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let ((start, end), (other_start, other_end)) = (self.range(), other.range());
        if let (Some((stride, row)), Some((other_stride, other_row))) = (self.rows, other.rows)
            && stride == other_stride
            && let (Some(column), Some(other_column)) =
                (start.checked_rem(stride), other_start.checked_rem(stride))
            && column + row <= stride
            && other_column + other_row <= stride
        {
            // Both are columns of the same longer rows.
            return column < other_column + other_row && other_column < column + row;
        }
        start < other_end && other_start < end
    }
}

/// The operands of one launch of `kernel`.
#[derive(Debug)]
pub(crate) struct Operands<'a> {
    kernel: &'static str,
    device: &'a Device,
    list: Vec<Operand>,
}

/// Returns the types in words: "F32, BF16 or F16".
fn listed(dtypes: &[DType]) -> String {
    let names: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
    match names.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} or {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// Returns the size of a dimension; 0 without such a dimension.
pub(crate) fn dim(tensor: &Tensor, index: usize) -> usize {
    tensor.dims().get(index).copied().unwrap_or(0)
}

impl<'a> Operands<'a> {
    /// Starts an empty list of operands on `device`.
    pub fn new(kernel: &'static str, device: &'a Device) -> Self {
        Operands { kernel, device, list: Vec::new() }
    }

    /// Adds a contiguous tensor that the kernel reads.
    pub fn read(
        &mut self,
        name: &'static str,
        tensor: &Tensor,
        elements: Elements,
        shape: &[usize],
    ) -> Result<Slot> {
        self.contiguous(name, tensor, elements, shape, false)
    }

    /// Adds a contiguous tensor that the kernel writes.
    pub fn write(
        &mut self,
        name: &'static str,
        tensor: &Tensor,
        elements: Elements,
        shape: &[usize],
    ) -> Result<Slot> {
        self.contiguous(name, tensor, elements, shape, true)
    }

    /// Adds a contiguous tensor that the kernel reads, if there is one.
    pub fn optional(
        &mut self,
        name: &'static str,
        tensor: Option<&Tensor>,
        elements: Elements,
        shape: &[usize],
    ) -> Result<Option<Slot>> {
        tensor.map(|tensor| self.read(name, tensor, elements, shape)).transpose()
    }

    /// Adds a new tensor of zeros that the kernel writes.
    pub fn output(&mut self, name: &'static str, dtype: DType, shape: &[usize]) -> Result<(Slot, Tensor)> {
        self.check_size(name, dtype, shape)?;
        let tensor = Tensor::zeros(shape, dtype, self.device)?;
        Ok((self.push(name, tensor.clone(), tensor.elem_count(), true), tensor))
    }

    /// Adds a new tensor `[len]` of −1 that the kernel writes.
    pub fn output_indices(&mut self, name: &'static str, len: usize) -> Result<(Slot, Tensor)> {
        self.check_size(name, DType::I32, &[len])?;
        let tensor = Tensor::full(-1i32, len, self.device)?;
        Ok((self.push(name, tensor.clone(), len, true), tensor))
    }

    /// Checks that a new tensor has a size that memory can have.
    fn check_size(&self, what: &'static str, dtype: DType, shape: &[usize]) -> Result<()> {
        let bytes = shape.iter().try_fold(dtype.size_in_bytes(), |bytes, &size| bytes.checked_mul(size));
        match bytes {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
            _ => Err(refused(KernelError::Overflow { kernel: self.kernel, what })),
        }
    }

    /// Adds a new table of `rows` structs of zeros that the kernel writes.
    pub fn output_table<T: TableRow>(&mut self, name: &'static str, rows: usize) -> Result<(Slot, Tensor)> {
        let (dtype, columns) = form::<T>();
        self.output(name, dtype, &[rows, columns])
    }

    /// Adds memory of `len` elements of f32, whose contents do not matter and which only the kernel reads.
    pub fn workspace(&mut self, len: Option<usize>) -> Result<Slot> {
        let len = len.unwrap_or(usize::MAX);
        self.check_size("workspace", DType::F32, &[len])?;
        // SAFETY: the kernel writes every element before it reads the element, and the tensor is given to nothing else.
        let tensor = unsafe { Tensor::empty(len, DType::F32, self.device) }?;
        Ok(self.push("workspace", tensor, len, true))
    }

    /// Adds a tensor `[pages, page_size, kv_heads, head_dim]` with any strides, in which the elements of a head are
    /// adjacent.
    pub fn cache(
        &mut self,
        name: &'static str,
        tensor: &Tensor,
        elements: Elements,
        shape: &[usize],
        written: bool,
    ) -> Result<Slot> {
        self.check(name, tensor, elements, &[ANY; 4])?;
        self.check(name, tensor, elements, shape)?;
        let (dims, strides) = (tensor.dims(), tensor.stride());
        if dim(tensor, 3) > 1 && strides.last() != Some(&1) {
            let expected = "adjacent elements within a head";
            return Err(self.strides(name, tensor, expected));
        }
        let mut last =
            dims.iter().zip(strides).map(|(&size, &stride)| size.saturating_sub(1).checked_mul(stride));
        let last = last.try_fold(0usize, |sum, term| sum.checked_add(term?));
        let extent =
            if tensor.elem_count() == 0 { Some(0) } else { last.and_then(|last| last.checked_add(1)) };
        let overflow = KernelError::Overflow { kernel: self.kernel, what: name };
        Ok(self.push(name, tensor.clone(), extent.ok_or_else(|| refused(overflow))?, written))
    }

    /// Adds rows `[rows, columns]`, which may be parts of longer rows, and returns the distance of rows in elements.
    pub fn rows(
        &mut self,
        name: &'static str,
        tensor: &Tensor,
        elements: Elements,
        shape: [usize; 2],
        written: bool,
    ) -> Result<(Slot, usize)> {
        self.check(name, tensor, elements, &shape)?;
        let ([rows, columns], stride) = ([dim(tensor, 0), dim(tensor, 1)], tensor.stride());
        let (apart, adjacent) = match *stride {
            [apart, adjacent] => (apart, columns <= 1 || adjacent == 1),
            _ => (0, false),
        };
        // The stride of a single row has no meaning.
        let apart = if rows <= 1 { apart.max(columns) } else { apart };
        if !adjacent || apart < columns {
            return Err(self.strides(name, tensor, "rows of adjacent elements that do not overlap"));
        }
        let before = rows.saturating_sub(1).checked_mul(apart).and_then(|before| before.checked_add(columns));
        let extent = if rows == 0 { Some(0) } else { before };
        let overflow = KernelError::Overflow { kernel: self.kernel, what: name };
        let slot = self.push(name, tensor.clone(), extent.ok_or_else(|| refused(overflow))?, written);
        if let Some(operand) = self.list.last_mut() {
            operand.rows = Some((apart, columns));
        }
        Ok((slot, apart))
    }

    fn contiguous(
        &mut self,
        name: &'static str,
        tensor: &Tensor,
        elements: Elements,
        shape: &[usize],
        written: bool,
    ) -> Result<Slot> {
        self.check(name, tensor, elements, shape)?;
        if !tensor.is_contiguous() {
            return Err(self.strides(name, tensor, "a contiguous tensor"));
        }
        Ok(self.push(name, tensor.clone(), tensor.elem_count(), written))
    }

    fn push(&mut self, name: &'static str, tensor: Tensor, extent: usize, written: bool) -> Slot {
        self.list.push(Operand { name, tensor, extent, rows: None, written });
        Slot(self.list.len() - 1)
    }

    fn strides(&self, operand: &'static str, tensor: &Tensor, expected: &'static str) -> candle_core::Error {
        let (kernel, found) = (self.kernel, tensor.stride().to_vec());
        Error::Strides { kernel, operand, expected, found }.into()
    }

    /// Checks the device, the type of the elements and the shape of a tensor. A table has one more dimension than `shape`.
    fn check(
        &self,
        operand: &'static str,
        tensor: &Tensor,
        elements: Elements,
        shape: &[usize],
    ) -> Result<()> {
        let kernel = self.kernel;
        self.on(operand, tensor.device())?;
        let dtypes = elements.dtypes();
        if !dtypes.contains(&tensor.dtype()) {
            let (expected, found) = (listed(&dtypes), tensor.dtype());
            return Err(Error::Dtype { kernel, operand, expected, found }.into());
        }
        let mut whole = shape.to_vec();
        if let Elements::Table(_, columns) = elements {
            whole.push(columns);
        }
        let found = tensor.dims();
        let agrees = |(&expected, &found): (&usize, &usize)| expected == ANY || expected == found;
        if found.len() != whole.len() || !whole.iter().zip(found).all(agrees) {
            let size = |&size: &usize| if size == ANY { "any".into() } else { size.to_string() };
            let expected = format!("[{}]", whole.iter().map(size).collect::<Vec<String>>().join(", "));
            return Err(Error::Shape { kernel, operand, expected, found: found.to_vec() }.into());
        }
        Ok(())
    }

    /// Checks that an operand's device is the device of the launch.
    pub fn on(&self, operand: &'static str, found: &Device) -> Result<()> {
        if found.same_device(self.device) {
            return Ok(());
        }
        let (kernel, expected, found) = (self.kernel, self.device.location(), found.location());
        Err(Error::Device { kernel, operand, expected, found }.into())
    }

    /// Locks the memory of all operands and calls `launch` with it. The operands are on `queue`.
    pub fn hold(
        &self,
        queue: QueueId,
        launch: &mut dyn FnMut(&Held<'_>) -> std::result::Result<(), KernelError>,
    ) -> Result<()> {
        let keys: Vec<usize> = self.list.iter().map(|operand| memory::storage_of(&operand.tensor)).collect();
        self.check_shared(&keys)?;
        let mut storages = keys.clone();
        storages.sort_unstable();
        storages.dedup();
        let used = storages.iter().map(|&storage| {
            let of_storage = || self.list.iter().zip(&keys).filter(move |&(_, &key)| key == storage);
            let written = of_storage().find(|(operand, _)| operand.written);
            let (operand, _) = written.or_else(|| of_storage().next())?;
            Some(Used { tensor: &operand.tensor, written: written.is_some() })
        });
        let used: Vec<Used<'_>> = used.flatten().collect();
        memory::lock(&used, &mut Vec::new(), &mut |spans: &[Span]| {
            let span = |key: &usize| storages.binary_search(key).ok().and_then(|index| spans.get(index));
            let addresses =
                self.list.iter().zip(&keys).map(|(operand, key)| self.address(operand, span(key)));
            let addresses = addresses.collect::<Result<Vec<u64>>>()?;
            launch(&Held { operands: &self.list, addresses: &addresses, queue }).map_err(refused)
        })
    }

    /// Checks that no operand shares memory with an operand that the kernel writes.
    fn check_shared(&self, keys: &[usize]) -> Result<()> {
        for (index, (operand, key)) in self.list.iter().zip(keys).enumerate() {
            let before = self.list.iter().zip(keys).take(index);
            let shared = before.filter(|&(_, other)| other == key).map(|(other, _)| other);
            let mut shared = shared.filter(|other| operand.written || other.written);
            if let Some(other) = shared.find(|other| operand.overlaps(other)) {
                let (kernel, operand, other) = (self.kernel, other.name, operand.name);
                return Err(Error::Shared { kernel, operand, other }.into());
            }
        }
        Ok(())
    }

    /// Returns the address of an operand's first element, if its storage contains the operand.
    fn address(&self, operand: &Operand, span: Option<&Span>) -> Result<u64> {
        let (start, end) = operand.range();
        match span {
            Some(span) if operand.extent == 0 || end <= span.len => {
                Ok(span.address.wrapping_add((start * operand.tensor.dtype().size_in_bytes()) as u64))
            }
            _ => {
                let (kernel, operand, len) = (self.kernel, operand.name, span.map_or(0, |span| span.len));
                Err(Error::Storage { kernel, operand, end, len }.into())
            }
        }
    }
}

/// The operands of a launch, whose memory is locked.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    operands: &'a [Operand],
    addresses: &'a [u64],
    queue: QueueId,
}

impl Held<'_> {
    /// Returns the address and the length of an operand in elements of `T`.
    fn span<T: Element>(&self, Slot(index): Slot) -> (u64, usize) {
        match (self.operands.get(index), self.addresses.get(index)) {
            (Some(operand), Some(&address)) => {
                let bytes = operand.extent.saturating_mul(operand.tensor.dtype().size_in_bytes());
                (address, bytes / size_of::<T>())
            }
            _ => (0, 0),
        }
    }

    /// Views an operand that the kernel reads.
    pub fn view<T: Element>(&self, slot: Slot) -> View<'_, T> {
        let (address, len) = self.span::<T>(slot);
        // SAFETY: the operand's storage has this address and this number of elements, and its lock is held until the
        // launch is on the stream. The stream orders the launch before a free of the memory (`memory`). Operands that the
        // kernel writes share no memory with others.
        unsafe { View::from_raw(address, len, self.queue) }
    }

    /// Views an operand that the kernel writes.
    pub fn view_mut<T: Element>(&self, slot: Slot) -> ViewMut<'_, T> {
        let (address, len) = self.span::<T>(slot);
        // SAFETY: as above; the lock is held for writing, because the operand was added as one that the kernel writes.
        unsafe { ViewMut::from_raw(address, len, self.queue) }
    }

    /// Views an operand of bf16 or f16 that the kernel reads.
    pub fn half(&self, slot: Slot, dtype: DType) -> HalfView<'_> {
        match dtype {
            DType::F16 => self.view::<f16>(slot).into(),
            _ => self.view::<bf16>(slot).into(),
        }
    }

    /// Views an operand that the kernel reads, if there is one.
    pub fn optional<T: Element>(&self, slot: Option<Slot>) -> Option<View<'_, T>> {
        slot.map(|slot| self.view(slot))
    }
}
