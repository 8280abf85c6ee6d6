//! Products of bf16 tensors with f32 results, computed by cuBLAS. Candle's own products round their results to bf16.

use candle_core::{Error, Layout, Result};

#[cfg(feature = "cuda")]
pub use self::cuda::bf16_product;

/// A product of row-major matrices `[m, k]` and `[k, n]`, or of batches of them, in the form that cuBLAS takes.
///
/// cuBLAS matrices are column-major, so cuBLAS sees a row-major matrix as its transpose. It is therefore asked for Cᵀ
/// = Bᵀ·Aᵀ, with B as its first operand and A as its second.
#[derive(Debug)]
struct Gemm {
    batch: i32,
    m: i32,
    n: i32,
    k: i32,
    a: Operand,
    b: Operand,
}

/// The memory layout of a product's operand.
#[derive(Debug)]
struct Operand {
    /// True if cuBLAS must transpose the operand: its columns are contiguous, its rows are not.
    transposed: bool,
    /// Distance from one contiguous row or column to the next, in elements.
    leading: i32,
    /// Distance from one matrix of the batch to the next, in elements.
    batch_stride: i64,
}

impl Gemm {
    /// Returns the product of tensors with the given layouts.
    fn of(a: &Layout, b: &Layout) -> Result<Self> {
        let refused =
            || Error::msg(format!("shapes {:?} and {:?} cannot be multiplied", a.shape(), b.shape()));
        let (batch, m, k, n) = match (a.dims(), b.dims()) {
            (&[m, k], &[rows, n]) if rows == k => (1, m, k, n),
            (&[batch, m, k], &[batches, rows, n]) if rows == k && batches == batch => (batch, m, k, n),
            _ => return Err(refused()),
        };
        let [batch, m, n, k] = [batch, m, n, k].map(|len| i32::try_from(len).ok());
        let (Some(batch), Some(m), Some(n), Some(k)) = (batch, m, n, k) else { return Err(refused()) };
        Ok(Self { batch, m, n, k, a: Operand::of(a)?, b: Operand::of(b)? })
    }

    /// Returns the number of elements of the product's result.
    #[cfg(feature = "cuda")]
    fn result_len(&self) -> usize {
        [self.batch, self.m, self.n].into_iter().map(|len| usize::try_from(len).unwrap_or(0)).product()
    }
}

impl Operand {
    fn of(layout: &Layout) -> Result<Self> {
        let (&[.., rows, columns], &[ref batch @ .., down, across]) = (layout.dims(), layout.stride()) else {
            return Err(Error::msg("a product's operand is not a matrix"));
        };
        // The stride between rows has no meaning if a matrix has a single row; the same holds for columns.
        let (transposed, leading) = if (across == 1 || columns == 1) && (down >= columns || rows == 1) {
            (false, down.max(columns))
        } else if (down == 1 || rows == 1) && (across >= rows || columns == 1) {
            (true, across.max(rows))
        } else {
            return Err(Error::msg(format!("neither rows nor columns of {layout:?} are contiguous")));
        };
        let too_far = |_| Error::msg(format!("{layout:?} is too large for cuBLAS"));
        Ok(Self {
            transposed,
            leading: i32::try_from(leading).map_err(too_far)?,
            batch_stride: i64::try_from(batch.first().copied().unwrap_or(0)).map_err(too_far)?,
        })
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::backend::BackendStorage;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor};
    use cudarc::cublas::{result, sys};
    use cudarc::driver::{DevicePtr, DevicePtrMut};
    use half::bf16;

    use super::{Gemm, Operand};

    /// Computes a · b for bf16 tensors on one GPU, matrices or batches of matrices; the result is f32.
    ///
    /// # Errors
    /// Errors of candle and cuBLAS: mismatched shapes, tensors of another type or device, out of memory.
    pub fn bf16_product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        if a.dtype() != DType::BF16 || b.dtype() != DType::BF16 || !a.device().same_device(b.device()) {
            return Err(Error::msg("a product by cuBLAS expects two bf16 tensors on one device"));
        }
        a.apply_op2_no_bwd(b, &Bf16Product)
    }

    struct Bf16Product;

    impl CustomOp2 for Bf16Product {
        fn name(&self) -> &'static str {
            "bf16 product with an f32 result"
        }

        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            Err(Error::msg("a product by cuBLAS expects tensors on a GPU, found tensors on the CPU"))
        }

        fn cuda_fwd(
            &self,
            a: &CudaStorage,
            a_layout: &Layout,
            b: &CudaStorage,
            b_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let gemm = Gemm::of(a_layout, b_layout)?;
            let device = a.device().clone();
            let (blas, stream) = (device.cublas_handle(), device.cuda_stream());
            let a = a.as_cuda_slice::<bf16>()?.slice(a_layout.start_offset()..);
            let b = b.as_cuda_slice::<bf16>()?.slice(b_layout.start_offset()..);
            // SAFETY: with β = 0 cuBLAS writes every element and reads none.
            let mut product = unsafe { device.alloc::<f32>(gemm.result_len()) }?;
            {
                let (a, _a_is_read) = a.device_ptr(&stream);
                let (b, _b_is_read) = b.device_ptr(&stream);
                let (c, _c_is_written) = product.device_ptr_mut(&stream);
                let (alpha, beta) = (1f32, 0f32);
                let op = |operand: &Operand| match operand.transposed {
                    true => sys::cublasOperation_t::CUBLAS_OP_T,
                    false => sys::cublasOperation_t::CUBLAS_OP_N,
                };
                // SAFETY: the pointers belong to slices on the handle's stream that live until the call has been
                // queued. The layouts' matrices lie within these slices, and the result has m · n elements per
                // matrix. α and β have the compute type, f32.
                unsafe {
                    result::gemm_strided_batched_ex(
                        *blas.handle(),
                        op(&gemm.b),
                        op(&gemm.a),
                        gemm.n,
                        gemm.m,
                        gemm.k,
                        (&raw const alpha).cast(),
                        b as *const _,
                        sys::cudaDataType_t::CUDA_R_16BF,
                        gemm.b.leading,
                        gemm.b.batch_stride,
                        a as *const _,
                        sys::cudaDataType_t::CUDA_R_16BF,
                        gemm.a.leading,
                        gemm.a.batch_stride,
                        (&raw const beta).cast(),
                        c as *mut _,
                        sys::cudaDataType_t::CUDA_R_32F,
                        gemm.n,
                        i64::from(gemm.m) * i64::from(gemm.n),
                        gemm.batch,
                        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                        sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
                    )
                }
                .w()?;
            }
            let (rows, columns) = (gemm.m as usize, gemm.n as usize);
            let shape = match a_layout.dims() {
                [batch, _, _] => Shape::from((*batch, rows, columns)),
                _ => Shape::from((rows, columns)),
            };
            Ok((CudaStorage::wrap_cuda_slice(product, device), shape))
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// Returns `count` small whole numbers, whose products and sums are exact in bf16 and f32, `[count]`.
    fn numbers(count: usize) -> Tensor {
        let numbers: Vec<f32> = (0..count).map(|i| ((7 * i + 3) % 11) as f32 - 5.0).collect();
        Tensor::from_vec(numbers, count, &Device::Cpu).unwrap()
    }

    /// Computes the product as cuBLAS would, from the elements of the tensors' memory: column-major, with the operands
    /// exchanged.
    fn as_cublas(a: &Tensor, b: &Tensor) -> Vec<f32> {
        let memory = |x: &Tensor| {
            let (storage, layout) = x.storage_and_layout();
            let candle_core::Storage::Cpu(candle_core::CpuStorage::F32(elements)) = &*storage else {
                panic!()
            };
            elements[layout.start_offset()..].to_vec()
        };
        let gemm = Gemm::of(a.layout(), b.layout()).unwrap();
        let (first, second) = (memory(b), memory(a));
        let element = |memory: &[f32], operand: &Operand, batch: i32, row: i32, column: i32| {
            let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
            let leading = i64::from(operand.leading);
            let place =
                i64::from(batch) * operand.batch_stride + i64::from(row) + i64::from(column) * leading;
            memory[usize::try_from(place).unwrap()]
        };
        let mut result = Vec::new();
        for batch in 0..gemm.batch {
            for (column, row) in (0..gemm.m).flat_map(|column| (0..gemm.n).map(move |row| (column, row))) {
                let term =
                    |i| element(&first, &gemm.b, batch, row, i) * element(&second, &gemm.a, batch, i, column);
                result.push((0..gemm.k).map(term).sum());
            }
        }
        result
    }

    #[test]
    fn every_layout_is_multiplied() {
        for (batch, m, k, n) in
            [(1, 3, 4, 5), (3, 2, 5, 4), (2, 1, 3, 4), (2, 3, 1, 4), (2, 3, 4, 1), (1, 1, 1, 1)]
        {
            // Operands with every kind of layout: a plain matrix, a transposed one, a part of wider rows and a part of
            // longer columns, both at an offset.
            let forms = |rows: usize, columns: usize| {
                let whole = |rows: usize, columns: usize| {
                    numbers(batch * rows * columns).reshape((batch, rows, columns)).unwrap()
                };
                [
                    whole(rows, columns),
                    whole(columns, rows).t().unwrap(),
                    whole(rows, columns + 3).narrow(2, 2, columns).unwrap(),
                    whole(columns, rows + 3).narrow(2, 1, rows).unwrap().t().unwrap(),
                    whole(rows + 2, columns).narrow(1, 1, rows).unwrap(),
                ]
            };
            for a in forms(m, k) {
                for b in forms(k, n) {
                    let contiguous = |x: &Tensor| x.force_contiguous().unwrap();
                    let expected = contiguous(&a).matmul(&contiguous(&b)).unwrap();
                    assert_eq!(as_cublas(&a, &b), expected.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                    let matrix = |x: &Tensor| x.get(0).unwrap();
                    let first = contiguous(&matrix(&a)).matmul(&contiguous(&matrix(&b))).unwrap();
                    let found = as_cublas(&matrix(&a), &matrix(&b));
                    assert_eq!(found, first.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_multiplied_is_refused() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let refused = |a: &Tensor, b: &Tensor| Gemm::of(a.layout(), b.layout()).unwrap_err().to_string();
        for (a, b) in [
            (zeros(&[2, 3]), zeros(&[2, 3])),
            (zeros(&[2, 3, 4]), zeros(&[3, 4, 2])),
            (zeros(&[2, 3, 4]), zeros(&[4, 2])),
            (zeros(&[3]), zeros(&[3])),
        ] {
            assert!(refused(&a, &b).contains("cannot be multiplied"), "{}", refused(&a, &b));
        }
        // Layouts that cuBLAS cannot read: every other column, and overlapping rows.
        let strided = zeros(&[3, 4, 2]).narrow(2, 0, 1).unwrap().squeeze(2).unwrap();
        assert!(refused(&zeros(&[2, 3]), &strided).contains("contiguous"));
        let one = zeros(&[1, 4]).broadcast_as((3, 4)).unwrap();
        assert!(refused(&one, &zeros(&[4, 2])).contains("contiguous"));
    }

    #[cfg(feature = "cuda")]
    #[test]
    #[ignore = "needs a GPU"]
    fn a_gpu_computes_what_the_cpu_does() -> Result<()> {
        let gpu = Device::new_cuda(0)?;
        let (a, b) =
            (numbers(3 * 8 * 16).reshape((3, 8, 16))?, numbers(3 * 16 * 24).reshape((3, 24, 16))?.t()?);
        let on = |x: &Tensor| x.to_dtype(DType::BF16)?.to_device(&gpu);
        let product = bf16_product(&on(&a)?, &on(&b)?)?.to_device(&Device::Cpu)?;
        assert_eq!(product.dtype(), DType::F32);
        assert_eq!(product.to_vec3::<f32>()?, a.matmul(&b.contiguous()?)?.to_vec3::<f32>()?);
        // The number 257 has more digits than bf16 holds, so this result shows that the sum is f32.
        let wide = Tensor::new(&[[256f32, 1.0]], &Device::Cpu)?;
        let ones = Tensor::ones((2, 1), DType::F32, &Device::Cpu)?;
        assert_eq!(bf16_product(&on(&wide)?, &on(&ones)?)?.to_vec2::<f32>()?, [[257.0]]);
        Ok(())
    }
}
