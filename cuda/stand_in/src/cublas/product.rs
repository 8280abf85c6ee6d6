//! A matrix product that a call put on a stream.

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasStatus_t as Status, cudaDataType_t as DataType,
};

use flexdraft::runtime::{Access, Region};

use super::algorithms::Algorithm;
use super::descriptors::{Description, Layout};
use crate::refusal::{Outcome, unsupported};

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
            return wrong(format!(
                "the element types are {}, {}, {} and {}; expected bf16 factors and results in bf16 or f32",
                a.kind, b.kind, c.kind, d.kind
            ));
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
            return wrong(format!(
                "the strides are {}, {} and {}; expected factors without gaps, and results that do not overlap",
                a.stride, b.stride, d.stride
            ));
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

impl Product {
    /// Returns the ranges of device memory that the product uses.
    pub fn regions(&self) -> Vec<Region> {
        let Shape { in_cols, out_cols, rows, out, has_bias } = self.shape;
        let region = |name, address, bytes, access| Region { name, address, bytes, access };
        let mut regions = vec![
            region("weight", self.at.weight, (in_cols * out_cols * 2) as u64, Access::Read),
            region("x", self.at.x, (in_cols * rows * 2) as u64, Access::Read),
            region("out", self.at.out, out.bytes(), Access::Write),
        ];
        if has_bias {
            let bytes = out_cols as u64 * out.element_bytes();
            regions.push(region("bias", self.at.bias, bytes, Access::Read));
        }
        regions
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
}
