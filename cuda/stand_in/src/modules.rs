//! Modules and functions of the driver: images of kernels, and the limits of a launch.

use cudarc::driver::sys::{CUfunction_attribute as Attribute, CUresult};
use flexdraft::runtime::simt::KernelLimits;

use crate::refusal::{Outcome, refused};

/// The first line of an image that is only a list of kernels (`build/nvcc.rs`).
const NAMES: &str = "// kernels of flexdraft, without device code";

/// The first bytes of an image with device code, a fatbin.
const FATBIN: u32 = 0xba55_ed50;

/// The shared memory of a CTA in bytes: the size that every kernel may use, and the size that a kernel may opt into.
pub const SHARED: u32 = 48 << 10;
pub const SHARED_OPT_IN: u32 = 227 << 10;

/// The virtual architecture of the code that an H100 loads: compute_90a.
const VIRTUAL_ARCHITECTURE: u32 = 90;

const MOST_THREADS: u64 = 1024;
const MOST_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A loaded image of kernels.
#[derive(Debug)]
pub struct Module {
    /// The kernels that the image lists; `None` if the image has device code, which the stand-in does not read.
    names: Option<Vec<String>>,
}

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    pub module: u64,
    pub name: &'static str,
    pub limits: KernelLimits,
    /// The largest dynamic shared memory that a launch of the kernel may ask for, in bytes.
    pub shared_bytes: u32,
}

impl Module {
    /// Reads an image of kernels: a fatbin, or a list of names.
    ///
    /// # Safety
    ///
    /// `image` leads to a fatbin, or to text that ends with a zero.
    pub unsafe fn read(image: *const u8) -> Outcome<Self> {
        if image.is_null() {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, "the image is a null pointer");
        }
        let magic = FATBIN.to_le_bytes();
        // SAFETY: an image has at least one byte, and the next ones are read as long as the earlier ones are not zero.
        if (0..magic.len()).all(|i| unsafe { *image.add(i) } == magic[i]) {
            return Ok(Module { names: None });
        }
        // SAFETY: the caller upholds the contract about text.
        let text = unsafe { std::ffi::CStr::from_ptr(image.cast()) }.to_string_lossy();
        let mut lines = text.lines();
        if lines.next() != Some(NAMES) {
            return refused(
                CUresult::CUDA_ERROR_INVALID_IMAGE,
                "the image is neither a fatbin nor a list of flexdraft's kernels",
            );
        }
        let names = lines.map(|line| line.trim_start_matches("// ").to_owned());
        Ok(Module { names: Some(names.collect()) })
    }

    /// Returns whether the image may have a kernel: it lists the kernel's name, or has device code.
    pub fn may_have(&self, kernel: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.iter().any(|listed| listed == kernel))
    }
}

impl Function {
    pub fn attribute(&self, attribute: u32) -> Outcome<i32> {
        let value = |value: u32| Ok(i32::try_from(value).unwrap_or(i32::MAX));
        if attribute == Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as u32 {
            value(self.limits.threads)
        } else if attribute == Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION as u32 {
            value(VIRTUAL_ARCHITECTURE)
        } else if attribute == Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as u32 {
            value(0)
        } else if attribute == Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32 {
            value(self.shared_bytes)
        } else {
            refused(
                CUresult::CUDA_ERROR_INVALID_VALUE,
                format!("the stand-in does not know attribute {attribute}"),
            )
        }
    }

    pub fn set_attribute(&mut self, attribute: u32, value: i32) -> Outcome {
        if attribute != Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32 {
            return refused(
                CUresult::CUDA_ERROR_INVALID_VALUE,
                format!("attribute {attribute} cannot be set"),
            );
        }
        match u32::try_from(value) {
            Ok(bytes) if bytes <= SHARED_OPT_IN => {
                self.shared_bytes = bytes;
                Ok(())
            }
            _ => {
                let reason = format!("{value} bytes of shared memory, expected 0 to {SHARED_OPT_IN}");
                refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason)
            }
        }
    }

    /// Checks the shape of a launch against the limits of the device and of the kernel.
    pub fn check(&self, grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> Outcome {
        let name = self.name;
        if (0..3).any(|axis| grid[axis] == 0 || grid[axis] > MOST_GRID[axis]) {
            let reason = format!("kernel {name}: the grid is {grid:?}, expected 1 to {MOST_GRID:?}");
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
        }
        let threads: u64 = block.iter().map(|&threads| u64::from(threads)).product();
        if threads == 0 || threads > MOST_THREADS {
            let reason = format!("kernel {name}: a CTA has {block:?} threads, expected 1 to {MOST_THREADS}");
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
        }
        if threads > u64::from(self.limits.threads) {
            let reason = format!(
                "kernel {name}: a CTA has {threads} threads, expected at most {} of this kernel",
                self.limits.threads
            );
            return refused(CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, reason);
        }
        if block[1] != 1 || block[2] != 1 {
            return refused(
                CUresult::CUDA_ERROR_NOT_SUPPORTED,
                format!("kernel {name}: a CTA has {block:?} threads, expected one dimension"),
            );
        }
        if shared_bytes > self.shared_bytes {
            let allowed = self.shared_bytes;
            let reason =
                format!("kernel {name}: {shared_bytes} bytes of shared memory, expected at most {allowed}");
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, reason);
        }
        Ok(())
    }
}
