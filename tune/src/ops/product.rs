//! Matrix products with rounded operands: bf16 products of f32 tensors.

use candle_core::{DType, Result, Tensor};

/// Returns the type of everything but the operands of matrix products, if the operands are rounded to `compute`.
pub fn working_type(compute: DType) -> DType {
    match compute {
        DType::BF16 | DType::F16 => DType::F32,
        other => other,
    }
}

/// Computes a · b with operands rounded to `compute`; sums and result have its [`working_type`].
///
/// # Errors
/// Candle's errors: mismatched shapes, out of memory.
pub fn product(a: &Tensor, b: &Tensor, compute: DType) -> Result<Tensor> {
    let rounded = |x: &Tensor| {
        let x = x.to_dtype(compute)?;
        // Candle has no bf16 products on the CPU, so f32 products of rounded operands imitate them. In f32, products of
        // rounded numbers are exact, as they are in matrix units.
        if x.device().is_cpu() { x.to_dtype(working_type(compute)) } else { Ok(x) }
    };
    let (a, b) = (rounded(a)?, rounded(b)?);
    #[cfg(feature = "cuda")]
    if compute == DType::BF16 && a.device().is_cuda() {
        return super::gemm::bf16_product(&a, &b);
    }
    a.matmul(&b)?.to_dtype(working_type(compute))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn operands_are_rounded_and_the_sum_is_not() -> Result<()> {
        let a = Tensor::new(&[[1.0f32 + 1.0 / 1024.0, 256.0]], &Device::Cpu)?;
        let b = Tensor::new(&[[3.0f32], [1.0 / 1024.0]], &Device::Cpu)?;
        let value = |compute| product(&a, &b, compute)?.flatten_all()?.to_vec1::<f32>();
        assert_eq!(value(DType::F32)?, [3.25 + 3.0 / 1024.0]);
        // In bf16, the operand 1 + 2⁻¹⁰ rounds to 1, so the sum is 3 + 256 / 1024.
        assert_eq!(value(DType::BF16)?, [3.25]);
        Ok(())
    }
}
