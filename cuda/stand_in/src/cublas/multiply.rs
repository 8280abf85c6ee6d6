//! The computation of a matrix product on the CPU, in the order of sums of its algorithm.

use cudarc::driver::sys::CUresult;
use flexdraft::device::DeviceError;
use flexdraft::device::gpu::{ProductMemory, ProductOut, Products, Weights};
use half::bf16;

use super::algorithms::Order;
use super::product::{Product, Shape};
use crate::driver::Driver;
use crate::refusal::{Outcome, Refusal};

/// The results of a product, in one of the two types that results can have.
enum Values {
    Half(Vec<bf16>),
    Single(Vec<f32>),
}

/// Computes a product, whose ranges of memory are accessible.
pub fn multiply(driver: &mut Driver, product: &Product) -> Outcome {
    let Shape { in_cols, out_cols, rows, out, has_bias } = product.shape;
    driver.cublas.products += 1;
    let products = driver.cublas.products;
    let single = out.element_bytes() == 4;
    // SAFETY: `ranges` lists these elements, which were checked and made accessible.
    let (weight, x, bias) = unsafe {
        let bias = match (has_bias, single) {
            (false, _) => None,
            (true, true) => Some(copied::<f32>(product.at.bias, out_cols)),
            (true, false) => {
                Some(copied::<bf16>(product.at.bias, out_cols).into_iter().map(bf16::to_f32).collect())
            }
        };
        (
            copied::<bf16>(product.at.weight, in_cols * out_cols),
            copied::<bf16>(product.at.x, in_cols * rows),
            bias,
        )
    };
    let weights = Weights { weight, bias, in_cols, out_cols };
    let mut values = if single {
        Values::Single(vec![0.0; rows * out_cols])
    } else {
        Values::Half(vec![bf16::ZERO; rows * out_cols])
    };
    let orders: Vec<Order> = (0..rows).map(|row| product.algorithm.order(rows, row, products)).collect();
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
        let to = product.at.out + (row * stride) as u64 * out.element_bytes();
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
    // SAFETY: the caller upholds the contract of this function; the operands were checked to be aligned.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address as usize), len) }.to_vec()
}

/// # Safety
///
/// `address` leads to accessible memory for the elements.
unsafe fn store<T: Copy>(address: u64, elements: &[T]) {
    let to = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the caller upholds the contract of this function.
    unsafe { std::ptr::copy_nonoverlapping(elements.as_ptr(), to, elements.len()) };
}
