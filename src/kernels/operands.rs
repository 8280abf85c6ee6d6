//! Checks the operands of one launch, and records the memory that they occupy.

use super::KernelError;
use super::limits::{self, ExceededLimit};
use super::params::shapes::FLEXDRAFT_ROW_THREADS;
use crate::layout::AttentionShape;
use crate::runtime::{Access, Element, Launch, QueueId, Region, Runtime, RuntimeError, View, ViewMut};

/// The largest number of operands that a kernel has.
const MAX_OPERANDS: usize = 32;

/// The operands of one launch of `kernel`. Each operand is checked when it is turned into the pointer that
/// the parameter struct holds.
#[derive(Debug)]
pub(crate) struct Operands {
    kernel: &'static str,
    queue: QueueId,
    regions: [Region; MAX_OPERANDS],
    len: usize,
}

/// The grid of a kernel launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// The number of CTAs in x, y and z.
    pub ctas: [u32; 3],
    /// Threads per CTA.
    pub threads: u32,
    /// Dynamic shared memory per CTA, in bytes.
    pub shared_bytes: u32,
}

impl Operands {
    /// Starts an empty list of operands for a launch of `kernel` on `queue`.
    pub fn new(kernel: &'static str, queue: QueueId) -> Self {
        let none = Region { name: "", address: 0, bytes: 0, access: Access::Read };
        Operands { kernel, queue, regions: [none; MAX_OPERANDS], len: 0 }
    }

    /// Returns the pointer to an operand that the kernel reads. The operand must have exactly `expected`
    /// elements and be aligned to `alignment` bytes.
    pub fn read<T: Element>(
        &mut self,
        operand: &'static str,
        view: &View<'_, T>,
        expected: usize,
        alignment: usize,
    ) -> Result<*const T, KernelError> {
        self.check::<T>(operand, view.address(), view.len(), view.queue(), expected, alignment)?;
        Ok(self.push::<T>(operand, view.address(), expected, Access::Read)? as *const T)
    }

    /// Returns the pointer to an operand that the kernel writes, with the checks of [`read`](Operands::read).
    pub fn write<T: Element>(
        &mut self,
        operand: &'static str,
        view: &ViewMut<'_, T>,
        expected: usize,
        alignment: usize,
    ) -> Result<*mut T, KernelError> {
        self.check::<T>(operand, view.address(), view.len(), view.queue(), expected, alignment)?;
        Ok(self.push::<T>(operand, view.address(), expected, Access::Write)? as *mut T)
    }

    /// Returns the pointer to an operand with the checks of [`read`](Operands::read), but at least `needed` elements. An
    /// operand that the kernel only reads has [`Access::Write`] if its memory interleaves with memory that the kernel
    /// writes, such as other columns of the same rows: the emulator then allows writes to all of the memory.
    pub fn at_least<T: Element>(
        &mut self,
        operand: &'static str,
        view: &View<'_, T>,
        needed: usize,
        alignment: usize,
        access: Access,
    ) -> Result<*const T, KernelError> {
        let expected = view.len().max(needed);
        self.check::<T>(operand, view.address(), view.len(), view.queue(), expected, alignment)?;
        Ok(self.push::<T>(operand, view.address(), view.len(), access)? as *const T)
    }

    /// Returns the number of columns of a fused q, k and v projection with these heads, if attention supports them.
    pub fn qkv_cols(&self, shape: AttentionShape) -> Result<usize, KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = shape;
        self.within(limits::heads(shape))?;
        let heads = kv_heads.checked_mul(2).and_then(|heads| heads.checked_add(q_heads));
        let overflow = KernelError::Overflow { kernel: self.kernel, what: "heads" };
        self.product("heads", &[heads.ok_or(overflow)?, head_dim])
    }

    /// Returns the pointer to the device error word, or null if there is none.
    pub fn error_word(&mut self, view: Option<&ViewMut<'_, u32>>) -> Result<*mut u32, KernelError> {
        view.map_or(Ok(std::ptr::null_mut()), |view| self.write("error word", view, 1, 4))
    }

    /// Returns the pointer to an optional operand, or null if it is missing.
    pub fn read_optional<T: Element>(
        &mut self,
        operand: &'static str,
        view: Option<&View<'_, T>>,
        expected: usize,
        alignment: usize,
    ) -> Result<*const T, KernelError> {
        view.map_or(Ok(std::ptr::null()), |view| self.read(operand, view, expected, alignment))
    }

    /// Returns the same operands for a launch of the kernel `kernel`, which errors then name.
    pub fn of(self, kernel: &'static str) -> Self {
        Operands { kernel, ..self }
    }

    /// Returns the name of the kernel that is launched.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Returns the error for a shape that the kernel does not support in this launch.
    pub fn unsupported(&self, what: &'static str, found: usize, supported: &'static str) -> KernelError {
        KernelError::exceeded(self.kernel, ExceededLimit { what, found, supported })
    }

    /// Returns an error that names the kernel if a limit is exceeded.
    pub fn within(&self, checked: Result<(), ExceededLimit>) -> Result<(), KernelError> {
        checked.map_err(|limit| KernelError::exceeded(self.kernel, limit))
    }

    /// Returns the pointer to a workspace of at least `needed` elements.
    pub fn workspace<T: Element>(
        &mut self,
        operand: &'static str,
        view: &ViewMut<'_, T>,
        needed: usize,
        alignment: usize,
    ) -> Result<*mut T, KernelError> {
        Ok(self.at_least(operand, &view.as_view(), needed, alignment, Access::Write)?.cast_mut())
    }

    /// Converts a size to `i32`, the kernels' type for sizes; an error if it does not fit.
    pub fn i32(&self, what: &'static str, value: usize) -> Result<i32, KernelError> {
        i32::try_from(value).map_err(|_| KernelError::Overflow { kernel: self.kernel, what })
    }

    /// Returns the number of elements of an operand with these dimensions; an error if it overflows.
    pub fn product(&self, what: &'static str, dims: &[usize]) -> Result<usize, KernelError> {
        let overflow = KernelError::Overflow { kernel: self.kernel, what };
        dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or(overflow)
    }

    /// Checks the number of columns of bf16 or f16 rows, which are read in chunks of 16 bytes, and returns it in the
    /// kernels' type.
    pub fn cols(&self, cols: usize) -> Result<i64, KernelError> {
        self.within(limits::columns(cols))?;
        self.i32("columns", cols).map(i64::from)
    }

    /// Returns a grid with one CTA per row.
    pub fn rows_grid(&self, rows: usize, shared_bytes: u32) -> Result<Grid, KernelError> {
        let ctas = [self.i32("rows", rows)?.cast_unsigned(), 1, 1];
        Ok(Grid { ctas, threads: FLEXDRAFT_ROW_THREADS, shared_bytes })
    }

    fn check<T>(
        &self,
        operand: &'static str,
        address: u64,
        found: usize,
        queue: QueueId,
        expected: usize,
        alignment: usize,
    ) -> Result<(), KernelError> {
        let kernel = self.kernel;
        if found != expected {
            return Err(KernelError::Length { kernel, operand, expected, found });
        }
        if queue != self.queue {
            return Err(KernelError::Queue { kernel, operand });
        }
        let alignment = alignment.max(align_of::<T>());
        if found > 0 && !address.is_multiple_of(alignment as u64) {
            return Err(KernelError::Alignment { kernel, operand, alignment, address });
        }
        Ok(())
    }

    fn push<T>(
        &mut self,
        name: &'static str,
        address: u64,
        len: usize,
        access: Access,
    ) -> Result<u64, KernelError> {
        let overflow = KernelError::Overflow { kernel: self.kernel, what: name };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(overflow.clone())? as u64;
        *self.regions.get_mut(self.len).ok_or(overflow)? = Region { name, address, bytes, access };
        self.len += 1;
        Ok(address)
    }

    /// Launches the kernel with these operands.
    ///
    /// # Safety
    ///
    /// `params` is the kernel's parameter struct, filled with pointers that came from these operands and
    /// with shapes that they were checked against.
    pub unsafe fn launch<R: Runtime, P>(
        &self,
        runtime: &R,
        stream: &R::Stream,
        grid: Grid,
        params: &P,
    ) -> Result<(), KernelError> {
        let allowed = runtime.limits().shared_bytes_per_cta;
        if grid.shared_bytes > allowed {
            let (kernel, needed) = (self.kernel, grid.shared_bytes);
            return Err(RuntimeError::SharedMemory { kernel, needed, allowed }.into());
        }
        // A launch with an empty grid has nothing to do, and CUDA refuses it.
        if grid.ctas.contains(&0) {
            return Ok(());
        }
        let launch = Launch {
            kernel: self.kernel,
            grid: grid.ctas,
            threads: grid.threads,
            shared_bytes: grid.shared_bytes,
            params: std::ptr::from_ref(params).cast(),
            params_bytes: size_of::<P>(),
            regions: &self.regions[..self.len],
        };
        // SAFETY: the caller guarantees this about `params`; views borrow their memory until after this
        // call.
        Ok(unsafe { runtime.launch(stream, &launch) }?)
    }
}
