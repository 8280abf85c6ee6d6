//! A matrix product: checked when it is put on a stream, and computed when it runs.

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasStatus_t as Status, cudaDataType_t as DataType,
};
use cudarc::driver::sys::CUresult;
use flexdraft::device::DeviceError;
use flexdraft::device::gpu::{ProductMemory, ProductOut, Products, Weights};
use half::bf16;

use super::algorithms::{Algorithm, Order};
use super::descriptors::{Description, Layout};
use crate::driver::Driver;
use crate::refusal::{Outcome, Refusal, unsupported};

/// The number of multiply-adds beyond which the policy `large` does not compute a product.
const LARGE: u64 = 1 << 33;

/// The shape of a matrix product: out `[rows, out_cols]` = x `[rows, in_cols]` · weightᵀ, weight `[out_cols, in_cols]`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub in_cols: usize,
    pub out_cols: usize,
    pub rows: usize,
    pub out: Layout,
    pub has_bias: bool,
}

impl Shape {
    /// Returns the shape that the descriptors of a product give; an error if the stand-in does not support it.
    pub fn new(description: &Description, [a, b, c, d]: [Layout; 4]) -> Outcome<Self> {
        let wrong = |what: String| unsupported(Status::CUBLAS_STATUS_NOT_SUPPORTED, what);
        let single = DataType::CUDA_R_32F as u32;
        let half = DataType::CUDA_R_16BF as u32;
        if (description.compute, description.scale) != (Compute::CUBLAS_COMPUTE_32F as u32, single) {
            return wrong("the stand-in sums in f32 only".into());
        }
        if !description.transposes_a || description.transposes_b {
            return wrong("the stand-in multiplies a transposed matrix by one as it is".into());
        }
        if a.kind != half || b.kind != half || ![half, single].contains(&d.kind) || c != d {
            return wrong(format!("element types {} {} {} {}", a.kind, b.kind, c.kind, d.kind));
        }
        if a.rows != b.rows || a.cols != d.rows || b.cols != d.cols {
            return unsupported(
                Status::CUBLAS_STATUS_INVALID_VALUE,
                format!("{a:?} times {b:?} is not {d:?}"),
            );
        }
        if [a.rows, a.cols, b.cols].contains(&0) {
            return unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, "an empty matrix");
        }
        let dense = |layout: &Layout| u64::try_from(layout.stride) == Ok(layout.rows);
        if !dense(&a)
            || !dense(&b)
            || u64::try_from(d.stride).is_ok_and(|stride| stride < d.rows)
            || d.stride < 0
        {
            return wrong(format!("strides {} {} {}", a.stride, b.stride, d.stride));
        }
        let [in_cols, out_cols, rows] = [a.rows, a.cols, b.cols].map(|size| size as usize);
        Ok(Shape { in_cols, out_cols, rows, out: d, has_bias: description.has_bias })
    }
}

/// The device addresses of a product's operands.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub weight: u64,
    pub x: u64,
    pub out: u64,
    pub bias: u64,
}

/// A matrix product that was put on a stream.
#[derive(Clone, Debug)]
pub struct Product {
    pub shape: Shape,
    pub at: Addresses,
    pub algorithm: Algorithm,
}

/// The results of a product, in one of the two types that results can have.
enum Values {
    Half(Vec<bf16>),
    Single(Vec<f32>),
}

impl Product {
    /// Returns the ranges of device memory that the product uses, as addresses and sizes in bytes.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let Shape { in_cols, out_cols, rows, out, has_bias } = self.shape;
        let mut ranges = vec![
            (self.at.weight, (in_cols * out_cols * 2) as u64),
            (self.at.x, (in_cols * rows * 2) as u64),
            (self.at.out, out.bytes()),
        ];
        if has_bias {
            ranges.push((self.at.bias, out_cols as u64 * out.element_bytes()));
        }
        ranges
    }

    fn multiply_adds(&self) -> u64 {
        let Shape { in_cols, out_cols, rows, .. } = self.shape;
        (in_cols as u64).saturating_mul(out_cols as u64).saturating_mul(rows as u64)
    }

    pub fn is_large(&self) -> bool {
        self.multiply_adds() > LARGE
    }

    /// Returns a modelled time in microseconds: the time of a launch, and arithmetic at 200 million multiply-adds a
    /// microsecond.
    pub fn microseconds(&self) -> f64 {
        (2.0 + self.multiply_adds() as f64 / 2e8) / self.algorithm.speed()
    }

    /// Computes the product. Its ranges of memory are accessible.
    pub fn run(&self, driver: &mut Driver) -> Outcome {
        let Shape { in_cols, out_cols, rows, out, has_bias } = self.shape;
        driver.cublas.products += 1;
        let products = driver.cublas.products;
        let single = out.element_bytes() == 4;
        // SAFETY: `ranges` lists these elements, which were checked and made accessible.
        let (weight, x, bias) = unsafe {
            let bias = match (has_bias, single) {
                (false, _) => None,
                (true, true) => Some(copied::<f32>(self.at.bias, out_cols)),
                (true, false) => {
                    Some(copied::<bf16>(self.at.bias, out_cols).into_iter().map(bf16::to_f32).collect())
                }
            };
            (
                copied::<bf16>(self.at.weight, in_cols * out_cols),
                copied::<bf16>(self.at.x, in_cols * rows),
                bias,
            )
        };
        let weights = Weights { weight, bias, in_cols, out_cols };
        let mut values = if single {
            Values::Single(vec![0.0; rows * out_cols])
        } else {
            Values::Half(vec![bf16::ZERO; rows * out_cols])
        };
        let orders: Vec<Order> = (0..rows).map(|row| self.algorithm.order(rows, row, products)).collect();
        if orders.contains(&Order::Usual) {
            usual(driver, &weights, &x, rows, &mut values)?;
        }
        for (row, order) in orders.into_iter().enumerate() {
            if let Order::Parts(parts) = order {
                in_parts(&weights, &x[row * in_cols..][..in_cols], parts, row * out_cols, &mut values);
            }
        }
        let stride = out.stride as usize;
        for row in 0..rows {
            let to = self.at.out + (row * stride) as u64 * out.element_bytes();
            // SAFETY: as above; elements between the rows stay as they are.
            unsafe {
                match &values {
                    Values::Half(values) => store(to, &values[row * out_cols..][..out_cols]),
                    Values::Single(values) => store(to, &values[row * out_cols..][..out_cols]),
                }
            }
        }
        Ok(())
    }
}

/// Computes a matrix product with the order of sums of the emulator's own products.
fn usual(driver: &mut Driver, weights: &Weights, x: &Vec<bf16>, rows: usize, values: &mut Values) -> Outcome {
    let failed =
        |error: DeviceError| Refusal { code: CUresult::CUDA_ERROR_UNKNOWN as u32, reason: error.to_string() };
    let products = driver.cpu_products().map_err(failed)?;
    let (simt, stream) = (&driver.simt, driver.simt.stream());
    let layer = products.new_layer(simt, &stream, weights).map_err(failed)?;
    let memory = match values {
        Values::Half(values) => ProductMemory::Bf16(values),
        Values::Single(values) => ProductMemory::F32(values),
    };
    let out = ProductOut { memory, stride: weights.out_cols, first_row: 0 };
    products.multiply(simt, &stream, &layer, x, 0..rows, out).map_err(failed)
}

/// Computes one row of a matrix product, with every sum split into `parts` parts.
fn in_parts(weights: &Weights, x: &[bf16], parts: usize, first: usize, values: &mut Values) {
    let part = x.len().div_ceil(parts).max(1);
    for (col, w) in weights.weight.chunks_exact(weights.in_cols).enumerate() {
        let sum = |(x, w): (&[bf16], &[bf16])| {
            x.iter().zip(w).fold(0.0f32, |sum, (x, w)| sum + x.to_f32() * w.to_f32())
        };
        let mut total: f32 = x.chunks(part).zip(w.chunks(part)).map(sum).sum();
        if let Some(bias) = &weights.bias {
            total += bias[col];
        }
        match values {
            Values::Half(values) => values[first + col] = bf16::from_f32(total),
            Values::Single(values) => values[first + col] = total,
        }
    }
}

/// # Safety
///
/// `address` leads to `len` accessible elements.
unsafe fn copied<T: Copy>(address: u64, len: usize) -> Vec<T> {
    // SAFETY: the caller's promise; the operands were checked to be aligned.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address as usize), len) }.to_vec()
}

/// # Safety
///
/// `address` leads to accessible memory for the elements.
unsafe fn store<T: Copy>(address: u64, elements: &[T]) {
    let to = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(elements.as_ptr(), to, elements.len()) };
}
