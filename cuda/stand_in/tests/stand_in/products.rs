//! Tests cuBLASLt's products on the stand-in: the emulator's bits, and proposals that the trial must refuse.

use cudarc::driver::CudaStream;
use flexdraft::device::gpu::{
    CpuProducts, CublasLt, ProductAlgorithms, ProductMemory, ProductOut, Products, Weights,
};
use flexdraft::runtime::{Cuda, Runtime, Simt, SimtOptions};
use half::bf16;
use std::sync::Arc;

use crate::process::{device, succeeds, this_test};

const IN: usize = 72;
const OUT: usize = 136;

fn halves(seed: u32, len: usize) -> Vec<bf16> {
    let number =
        |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..len as u32).map(|i| bf16::from_f32(number(i))).collect()
}

fn weights(bias: bool) -> Weights {
    // The bias is exact in bf16, because a GPU adds it as bf16.
    let bias = bias.then(|| halves(9, OUT).iter().map(|x| x.to_f32()).collect());
    Weights { weight: halves(1, IN * OUT), bias, in_cols: IN, out_cols: OUT }
}

/// Returns the results of a product with `rows` rows, as the bits of f32.
fn multiplied<P: Products>(
    products: &P,
    runtime: &P::Runtime,
    stream: &<P::Runtime as Runtime>::Stream,
    rows: usize,
    (bias, logits): (bool, bool),
) -> Vec<u32> {
    let layer = products.new_layer(runtime, stream, &weights(bias)).unwrap();
    let mut x = runtime.allocate(stream, rows * IN).unwrap();
    runtime.upload(stream, &halves(5, rows * IN), &mut x, 0).unwrap();
    products.prepare(runtime, stream, &layer, OUT, rows, logits).unwrap();
    if logits {
        let mut out = runtime.allocate::<f32>(stream, rows * OUT).unwrap();
        let to = ProductOut { memory: ProductMemory::F32(&mut out), stride: OUT, first_row: 0 };
        products.multiply(runtime, stream, &layer, &x, 0..rows, to).unwrap();
        let mut host = vec![0f32; rows * OUT];
        runtime.download(stream, &out, 0, &mut host).unwrap();
        host.iter().map(|x| x.to_bits()).collect()
    } else {
        let mut out = runtime.allocate::<bf16>(stream, rows * OUT).unwrap();
        let to = ProductOut { memory: ProductMemory::Bf16(&mut out), stride: OUT, first_row: 0 };
        products.multiply(runtime, stream, &layer, &x, 0..rows, to).unwrap();
        let mut host = vec![bf16::ZERO; rows * OUT];
        runtime.download(stream, &out, 0, &mut host).unwrap();
        host.iter().map(|x| x.to_f32().to_bits()).collect()
    }
}

fn expected(rows: usize, kind: (bool, bool)) -> Vec<u32> {
    let simt = Simt::new(SimtOptions::default());
    let stream = simt.stream();
    multiplied(&CpuProducts::new(1).unwrap(), &simt, &stream, rows, kind)
}

fn on_the_stand_in(check: impl FnOnce(&Cuda, &Arc<CudaStream>, CublasLt)) {
    let (context, stream) = device();
    let runtime = Cuda::new(&context).unwrap();
    let products = CublasLt::new(&context, &stream).unwrap();
    check(&runtime, &stream, products);
}

/// Whatever the stand-in proposes, the selected algorithms give a row the bits of the row-invariant algorithm.
#[test]
fn the_trial_refuses_what_depends_on_the_rows() {
    for proposals in ["invariant", "hostile"] {
        succeeds(this_test!(), proposals, &[("PRODUCTS", proposals), ("STREAMS", "late")], || {
            on_the_stand_in(|runtime, stream, products| {
                assert!(products.is_row_invariant());
                for kind in [(false, false), (true, false), (false, true), (true, true)] {
                    // The product with most rows comes first: if one row is prepared alone, the trial may select an
                    // algorithm whose larger products are computed in parts.
                    for rows in [70, 17, 16, 2, 1] {
                        let found = multiplied(&products, runtime, stream, rows, kind);
                        assert!(found == expected(rows, kind), "{rows} rows, {kind:?}");
                    }
                }
            });
        });
    }
}

/// Without the trial of algorithms, hostile proposals are used, and rows do not have the same bits.
#[test]
fn the_fastest_proposal_depends_on_the_rows() {
    succeeds(this_test!(), "", &[("PRODUCTS", "hostile")], || {
        on_the_stand_in(|runtime, stream, products| {
            let products = products.with_algorithms(ProductAlgorithms::Any);
            let kind = (false, true);
            let (one, many) = (multiplied(&products, runtime, stream, 1, kind), expected(1, kind));
            assert_ne!(one, many);
        });
    });
}

/// Without a row-invariant algorithm, rows still have the same bits: products are padded to one number of rows.
#[test]
fn products_are_padded_if_no_algorithm_is_invariant() {
    succeeds(this_test!(), "", &[("PRODUCTS", "varying")], || {
        on_the_stand_in(|runtime, stream, products| {
            let kind = (false, true);
            let all = multiplied(&products, runtime, stream, 70, kind);
            for rows in [1, 3, 16, 33, 64] {
                let found = multiplied(&products, runtime, stream, rows, kind);
                assert!(found == all[..rows * OUT], "{rows} rows");
            }
            assert_ne!(all, expected(70, kind));
        });
    });
}

#[test]
fn failures_of_the_library_are_errors_that_leak_nothing() {
    let calls = [
        "cublasLtCreate:1",
        "cublasLtMatmulDescCreate:1",
        "cublasLtMatrixLayoutCreate:3",
        "cublasLtMatmulDescSetAttribute:2",
        "cublasLtMatmulPreferenceCreate:1",
        "cublasLtMatmulAlgoGetHeuristic:1",
    ];
    for call in calls {
        succeeds(this_test!(), call, &[("FAIL", call)], || {
            let (context, stream) = device();
            let runtime = Cuda::new(&context).unwrap();
            let error = CublasLt::new(&context, &stream).and_then(|products| {
                let layer = products.new_layer(&runtime, &stream, &weights(true))?;
                products.prepare(&runtime, &stream, &layer, OUT, 4, false)
            });
            assert!(error.is_err_and(|error| error.to_string().contains("CUBLAS_STATUS")), "{call}");
        });
    }
}
