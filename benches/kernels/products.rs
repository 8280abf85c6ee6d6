//! The cost of row-invariance: matrix products of a layer of Qwen3-8B by the algorithms of the decode loop, which give
//! a row the same bits with any other rows, and by the algorithm that cuBLASLt prefers for each number of rows.

use std::sync::OnceLock;

use flexdraft::device::DeviceError;
use flexdraft::device::gpu::{
    CublasLayer, CublasLt, ProductAlgorithms, ProductMemory, ProductOut, Products, Weights,
};
use flexdraft::kernels::KernelError;
use flexdraft::runtime::{Cuda, CudaMemory, Runtime, RuntimeError};
use half::bf16;

use crate::cases::Prepared;
use crate::floor::Floor;
use crate::machine::Machine;
use crate::record::Measured;
use crate::timing::driver;

/// Row counts of a plain step of 1 and 16 sequences, of a step that verifies 4 draft tokens with one and five mask
/// groups at batch 1, and of larger batches.
const ROWS: [usize; 6] = [1, 5, 16, 85, 272, 1088];

/// The matrix products of a decoder layer: fused q, k and v, the output projection, gate and up, down.
const LAYERS: [(&str, usize, usize); 4] =
    [("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 24_576, 4096), ("down", 4096, 12_288)];

/// A benchmark case of a matrix product: `rows` rows of `in_cols` with weights `[out_cols, in_cols]`, in bf16.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    layer: &'static str,
    rows: usize,
    out_cols: usize,
    in_cols: usize,
    row_invariant: bool,
}

impl Product {
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (layer, out_cols, in_cols) in LAYERS {
            for rows in ROWS {
                let product = |row_invariant| Product { layer, rows, out_cols, in_cols, row_invariant };
                all.extend([true, false].map(product));
            }
        }
        all
    }

    pub fn measured(&self) -> Measured {
        let (rows, out_cols, in_cols) = (self.rows as u64, self.out_cols as u64, self.in_cols as u64);
        Measured {
            kernel: if self.row_invariant { "product_row_invariant" } else { "product_of_any_algorithm" },
            shape: serde_json::json!({
                "layer": self.layer, "rows": rows, "out_cols": out_cols, "in_cols": in_cols,
            }),
            floor: Floor {
                read: 2 * (rows + out_cols) * in_cols,
                written: 2 * rows * out_cols,
                flops: 2 * rows * out_cols * in_cols,
            },
        }
    }

    pub fn prepare<'a>(&self, machine: &'a Machine<Cuda>) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let (runtime, stream) = (machine.kernels.runtime(), &machine.stream);
        let x = machine.bf16_noise(1, self.rows * self.in_cols)?;
        let out = machine.zeros(self.rows * self.out_cols)?;
        let weight = machine.bf16_noise(2, self.out_cols * self.in_cols)?;
        let mut host = vec![bf16::ZERO; self.out_cols * self.in_cols];
        stream.memcpy_dtoh(&*weight, &mut host).map_err(driver)?;
        stream.synchronize().map_err(driver)?;
        let weights = Weights { weight: host, bias: None, in_cols: self.in_cols, out_cols: self.out_cols };
        let products = library(stream, self.row_invariant)?;
        let layer = products.new_layer(runtime, stream, &weights).map_err(kernel_error)?;
        // The layer is prepared as a model prepares it: only algorithms that give equal bits at all numbers of rows are
        // used.
        let most = ROWS.into_iter().max().unwrap_or(1);
        products.prepare(runtime, stream, &layer, self.out_cols, most, false).map_err(kernel_error)?;
        Ok(Box::new(PreparedProduct { runtime, stream, products, layer, case: *self, x, out }))
    }
}

/// Returns the products that all cases of a kind share, so that the algorithms of a layer are chosen once.
fn library(
    stream: &<Cuda as Runtime>::Stream,
    row_invariant: bool,
) -> Result<&'static CublasLt, KernelError> {
    static LIBRARIES: [OnceLock<CublasLt>; 2] = [const { OnceLock::new() }; 2];
    let [any, invariant] = &LIBRARIES;
    let (library, algorithms) = match row_invariant {
        true => (invariant, ProductAlgorithms::RowInvariant),
        false => (any, ProductAlgorithms::Any),
    };
    if let Some(library) = library.get() {
        return Ok(library);
    }
    let opened = CublasLt::new(stream.context(), stream).map_err(kernel_error)?;
    Ok(library.get_or_init(|| opened.with_algorithms(algorithms)))
}

fn kernel_error(error: DeviceError) -> KernelError {
    match error {
        DeviceError::Kernel(error) => error,
        other => RuntimeError::Library { library: "products", message: other.to_string() }.into(),
    }
}

struct PreparedProduct<'a> {
    runtime: &'a Cuda,
    stream: &'a <Cuda as Runtime>::Stream,
    products: &'static CublasLt,
    layer: CublasLayer,
    case: Product,
    x: CudaMemory<bf16>,
    out: CudaMemory<bf16>,
}

impl Prepared for PreparedProduct<'_> {
    fn launch(&mut self) -> Result<(), KernelError> {
        let memory = ProductMemory::Bf16(&mut self.out);
        let out = ProductOut { memory, stride: self.case.out_cols, first_row: 0 };
        let rows = 0..self.case.rows;
        self.products
            .multiply(self.runtime, self.stream, &self.layer, &self.x, rows, out)
            .map_err(kernel_error)
    }
}
