//! What the device can do, by the clock that times the kernels: a copy in its memory, a large bf16 product by
//! cuBLASLt, and nothing at all.

use std::sync::Arc;

use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig, result::CublasError};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use flexdraft::backend::BackendError;
use flexdraft::device::gpu::cublas_is_present;
use flexdraft::kernels::KernelError;
use half::bf16;

use crate::cases::Prepared;
use crate::record::Device;
use crate::timing::{Timer, driver};

/// Bytes of the copy.
const COPIED: usize = 1 << 30;

/// Rows, columns and depth of the product.
const PRODUCT: usize = 8192;

/// Launches of each.
const LAUNCHES: usize = 32;

struct Copy {
    stream: Arc<CudaStream>,
    from: CudaSlice<u8>,
    to: CudaSlice<u8>,
}

impl Prepared for Copy {
    fn launch(&mut self) -> Result<(), KernelError> {
        self.stream.memcpy_dtod(&self.from, &mut self.to).map_err(driver)
    }
}

struct Product {
    library: CudaBlasLT,
    a: CudaSlice<bf16>,
    b: CudaSlice<bf16>,
    out: CudaSlice<bf16>,
}

impl Prepared for Product {
    fn launch(&mut self) -> Result<(), KernelError> {
        let side = PRODUCT as u64;
        let config = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: side,
            n: side,
            k: side,
            alpha: 1.0,
            lda: PRODUCT as i64,
            ldb: PRODUCT as i64,
            beta: 0.0,
            ldc: PRODUCT as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        // SAFETY: the three matrices have `PRODUCT`² elements each.
        unsafe { self.library.matmul(config, &self.a, &self.b, &mut self.out, None, None) }.map_err(cublas)
    }
}

struct Nothing;

impl Prepared for Nothing {
    fn launch(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

fn cublas(error: CublasError) -> KernelError {
    BackendError::Driver(format!("cuBLASLt: {error}")).into()
}

/// Measures the ceilings of `context`'s device.
pub fn measure(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    timer: &mut Timer,
) -> Result<Device, KernelError> {
    if !cublas_is_present() {
        return Err(BackendError::Unavailable("cuBLASLt (libcublasLt.so) cannot be found".into()).into());
    }
    let mut median = |work: &mut dyn Prepared| {
        timer.seconds(LAUNCHES, work)?;
        let mut seconds = timer.seconds(LAUNCHES, work)?;
        seconds.sort_by(f64::total_cmp);
        Ok::<f64, KernelError>(seconds[LAUNCHES / 2])
    };
    let zeros = || stream.alloc_zeros(COPIED).map_err(driver);
    let copy = median(&mut Copy { stream: stream.clone(), from: zeros()?, to: zeros()? })?;

    // Powers and sign alternate, so that the matrix units toggle as with real weights.
    let values: Vec<bf16> = (0..PRODUCT * PRODUCT)
        .map(|i| bf16::from_f32(((i * 0x9e37) >> 4 & 0xff) as f32 / 128.0 - 1.0))
        .collect();
    let matrix = || stream.clone_htod(&values).map_err(driver);
    let product = median(&mut Product {
        library: CudaBlasLT::new(stream.clone()).map_err(cublas)?,
        a: matrix()?,
        b: matrix()?,
        out: stream.alloc_zeros(PRODUCT * PRODUCT).map_err(driver)?,
    })?;
    Ok(Device {
        device: context.name().map_err(driver)?,
        copy_bytes_per_second: 2.0 * COPIED as f64 / copy,
        product_flops_per_second: 2.0 * (PRODUCT as f64).powi(3) / product,
        seconds_of_nothing: median(&mut Nothing)?,
    })
}
