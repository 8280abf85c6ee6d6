//! Tests that compare matrix products with sums in f64: cuBLASLt on a GPU, and its substitute on the SIMT emulator.

use std::ops::Range;

use flexdraft::device::gpu::{
    CpuProducts, CublasLt, Gpu, ProductAlgorithms, ProductMemory, ProductOut, Products, Weights,
};
use flexdraft::device::{Device, DeviceError, LinearPart};
use flexdraft::kernels::Kernels;
use flexdraft::runtime::{Cuda, Simt, SimtOptions};
use flexdraft::tensor::BlockFormat;
use half::bf16;

use crate::on_a_gpu::available;
use crate::support::bench::Bench;
use crate::support::blocks::random_blocks;
use crate::support::gpu::gpu;
use crate::support::noise::{halves, noise};

/// Returns the kernels on the GPU and the product library cuBLASLt, if the machine has both.
fn cublas() -> Option<(Bench<Cuda>, CublasLt)> {
    let gpu = gpu()?;
    let context = &gpu.context;
    let stream = context.new_stream().unwrap();
    let products = available(CublasLt::new(context, &stream))?;
    Some((Bench { kernels: Kernels::load(context).unwrap(), stream }, products))
}

/// The shape of a linear layer, and whether its output is logits.
#[derive(Clone, Copy, Debug)]
struct Layer {
    in_cols: usize,
    out_cols: usize,
    bias: bool,
    logits: bool,
}

/// Number of rows of the input; each product uses a range of them.
const ROWS: usize = 70;

/// The initial value of the output, which must remain in rows that are not multiplied.
const UNTOUCHED: f32 = 77.0;

/// Multiplies the given `rows` of the input with a layer; returns the whole output as f32, and its row stride in
/// elements.
fn multiply<P: Products>(
    bench: &Bench<P::Runtime>,
    products: &P,
    layer: Layer,
    rows: Range<usize>,
) -> (Vec<f32>, usize) {
    let (runtime, stream) = (bench.kernels.runtime(), &bench.stream);
    let Layer { in_cols, out_cols, bias, logits } = layer;
    let weights = Weights {
        weight: halves(1, out_cols * in_cols),
        bias: bias.then(|| noise(2, out_cols)),
        in_cols,
        out_cols,
    };
    let weights = products.new_layer(runtime, stream, &weights).unwrap();
    let x = bench.memory(&halves(3, ROWS * in_cols));
    let stride = if logits { out_cols.next_multiple_of(8) } else { out_cols };
    products.prepare(runtime, stream, &weights, stride, ROWS, logits).unwrap();
    if logits {
        let mut out = bench.memory(&vec![UNTOUCHED; ROWS * stride]);
        let to = ProductOut { memory: ProductMemory::F32(&mut out.memory), stride, first_row: rows.start };
        products.multiply(runtime, stream, &weights, &x.memory, rows, to).unwrap();
        (bench.host(&out), stride)
    } else {
        let mut out = bench.memory(&vec![bf16::from_f32(UNTOUCHED); ROWS * stride]);
        let to = ProductOut { memory: ProductMemory::Bf16(&mut out.memory), stride, first_row: rows.start };
        products.multiply(runtime, stream, &weights, &x.memory, rows, to).unwrap();
        (bench.host(&out).iter().map(|x| x.to_f32()).collect(), stride)
    }
}

fn check<P: Products>(bench: &Bench<P::Runtime>, products: &P, layer: Layer) {
    let Layer { in_cols, out_cols, bias, logits } = layer;
    let weight: Vec<f64> = halves(1, out_cols * in_cols).iter().map(|w| w.to_f64()).collect();
    let x: Vec<f64> = halves(3, ROWS * in_cols).iter().map(|x| x.to_f64()).collect();
    let biases = noise(2, out_cols);
    let mut first_bits = Vec::new();
    for rows in [0..1, 0..ROWS, 3..4, 5..22, 1..66, 64..70] {
        let (found, stride) = multiply(bench, products, layer, rows.clone());
        for row in 0..ROWS {
            let found = &found[row * stride..][..out_cols];
            if !rows.contains(&row) {
                assert!(found.iter().all(|&x| x == UNTOUCHED), "{layer:?}, {rows:?}: row {row} is touched");
                continue;
            }
            for (col, &found) in found.iter().enumerate() {
                let products = || {
                    let w = &weight[col * in_cols..][..in_cols];
                    w.iter().zip(&x[row * in_cols..]).map(|(w, x)| w * x)
                };
                let added = if bias { f64::from(biases[col]) } else { 0.0 };
                let exact = products().sum::<f64>() + added;
                let size = products().map(f64::abs).sum::<f64>() + added.abs();
                // The allowed error is half a unit in the last place of bf16 for the result and for the bias, and the
                // rounding of f32 sums.
                let rounding = if logits { 0.0 } else { (exact.abs() + added.abs()) / 256.0 };
                let error = (f64::from(found) - exact).abs();
                let allowed = rounding + 1e-5 * size;
                assert!(error <= allowed, "{layer:?}, {rows:?}: {row}, {col} is {found}, not {exact}");
            }
        }
        if !products.is_row_invariant() {
            continue;
        }
        // A row of a row-invariant product has the same bits whatever other rows the product has.
        let bits = |row: usize| found[row * stride..][..out_cols].iter().map(|x| x.to_bits()).collect();
        if rows.len() == ROWS {
            first_bits = (0..ROWS).map(bits).collect::<Vec<Vec<u32>>>();
        } else if !first_bits.is_empty() {
            for row in rows {
                assert!(bits(row) == first_bits[row], "{layer:?}: row {row} has other bits");
            }
        }
    }
}

/// Numbers of input and output columns of layers, which are no multiples of the kernels' tile sizes.
const LAYERS: [(usize, usize); 4] = [(8, 8), (72, 24), (200, 136), (136, 1001)];

fn layers(widths: &[(usize, usize)]) -> Vec<Layer> {
    let layer = |&(in_cols, out_cols): &(usize, usize)| {
        let layer = move |bias, logits| Layer { in_cols, out_cols, bias, logits };
        [layer(false, false), layer(true, false), layer(false, true), layer(true, true)]
    };
    // Rows of activations must have a multiple of eight elements, so layers with other widths are tested as logits
    // only.
    widths.iter().flat_map(layer).filter(|layer| layer.logits || layer.out_cols % 8 == 0).collect()
}

#[test]
fn are_the_sums() {
    let host = Bench::emulator(SimtOptions::default());
    let products = CpuProducts::new(1).unwrap();
    layers(&LAYERS).into_iter().for_each(|layer| check(&host, &products, layer));
    let Some((gpu, products)) = cublas() else { return };
    // The GPU also multiplies layers with the widths of released models.
    let widths = [LAYERS.as_slice(), &[(576, 1536), (1536, 576), (1024, 3072)]].concat();
    layers(&widths).into_iter().for_each(|layer| check(&gpu, &products, layer));
    let any = CublasLt::new(gpu.stream.context(), &gpu.stream).unwrap();
    let any = any.with_algorithms(ProductAlgorithms::Any);
    assert!(!any.is_row_invariant() && products.is_row_invariant());
    layers(&LAYERS).into_iter().for_each(|layer| check(&gpu, &any, layer));
}

/// A row keeps its bits in a product with more rows than the device prepared algorithms for, and in a product that is
/// computed in parts.
#[test]
fn rows_beyond_what_was_prepared_have_the_same_bits() {
    let Some((gpu, _)) = cublas() else { return };
    let (runtime, stream) = (gpu.kernels.runtime(), &gpu.stream);
    for (in_cols, out_cols) in [(576, 1536), (4096, 1024)] {
        let products = CublasLt::new(stream.context(), stream).unwrap();
        let weights = Weights { weight: halves(1, out_cols * in_cols), bias: None, in_cols, out_cols };
        let layer = products.new_layer(runtime, stream, &weights).unwrap();
        // A product of 4100 rows is computed in parts; the rows of x repeat with a period of 97, and equal rows must
        // give equal bits.
        let (most, period) = (4100, 97);
        let rows = halves(3, period * in_cols);
        let x: Vec<bf16> = rows.iter().copied().cycle().take(most * in_cols).collect();
        let x = gpu.memory(&x);
        let multiply = |count: usize| {
            let mut out = gpu.memory(&vec![bf16::ZERO; count * out_cols]);
            let to =
                ProductOut { memory: ProductMemory::Bf16(&mut out.memory), stride: out_cols, first_row: 0 };
            products.multiply(runtime, stream, &layer, &x.memory, 0..count, to).unwrap();
            gpu.host(&out).iter().map(|x| x.to_bits()).collect::<Vec<u16>>()
        };
        assert_eq!(products.seconds(&layer, 1, false), None);
        products.prepare(runtime, stream, &layer, out_cols, 1, false).unwrap();
        let mut expected = vec![multiply(1)];
        products.prepare(runtime, stream, &layer, out_cols, 16, false).unwrap();
        let sixteen = multiply(16);
        assert!(products.seconds(&layer, 16, false).is_none_or(|seconds| seconds > 0.0));
        expected.extend(sixteen.chunks(out_cols).skip(1).map(<[u16]>::to_vec));
        for count in [1, 5, 16, 17, 64, 65, 97, 256, 300, 2048, 2049, most] {
            let found = multiply(count);
            for (row, bits) in found.chunks(out_cols).enumerate() {
                match expected.get(row % period) {
                    Some(expected) => assert!(bits == expected, "{count} rows: row {row} has other bits"),
                    None => expected.push(bits.to_vec()),
                }
            }
        }
    }
}

/// A GPU's products read bf16; blocks of quantised weights are refused with their format.
#[test]
fn quantised_blocks_are_refused() {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    let device = Gpu::new(kernels, stream, CpuProducts::new(1).unwrap());
    for format in BlockFormat::ALL {
        let weight = random_blocks(format, [2, 256], 1.0, 1);
        let error = device.new_linear(&[LinearPart::new(&weight, None)]).unwrap_err();
        assert!(matches!(error, DeviceError::Contract { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            format!(
                "new_linear: weight is blocks of {format}, expected f32, f16 or bf16; a loader converts blocks to bf16"
            )
        );
    }
}
