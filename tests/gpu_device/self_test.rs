//! Tests of the self-test that a device must pass before it is chosen automatically: a device that agrees with the CPU
//! device passes, and devices with planted faults fail.

use std::ops::Range;

use flexdraft::device::DeviceError;
use flexdraft::device::gpu::{CpuProducts, Gpu, ProductMemory, ProductOut, Products, Weights};
use flexdraft::device_selection::{Chosen, SelfTestError, choose, self_test};
use flexdraft::kernels::Kernels;
use flexdraft::runtime::simt::SimtStream;
use flexdraft::runtime::{Simt, SimtOptions};
use half::bf16;

/// A fault that the test plants in a library of matrix products.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The fault makes all results a tenth too large.
    Scaled,
    /// The fault makes a row's result depend on the number of rows.
    RowsMatter,
    /// The fault leaves the first row of a product out.
    RowMissing,
    /// The fault lets every product fail with an error.
    Fails,
}

struct Faulty {
    products: CpuProducts,
    fault: Fault,
}

impl Products for Faulty {
    type Runtime = Simt;
    type Layer = (<CpuProducts as Products>::Layer, usize);

    fn new_layer(
        &self,
        runtime: &Simt,
        stream: &SimtStream,
        weights: &Weights,
    ) -> Result<Self::Layer, DeviceError> {
        Ok((self.products.new_layer(runtime, stream, weights)?, weights.out_cols))
    }

    fn weight<'a>(&self, layer: &'a Self::Layer) -> &'a Vec<bf16> {
        self.products.weight(&layer.0)
    }

    fn multiply(
        &self,
        runtime: &Simt,
        stream: &SimtStream,
        (layer, cols): &Self::Layer,
        x: &Vec<bf16>,
        rows: Range<usize>,
        out: ProductOut<'_, Simt>,
    ) -> Result<(), DeviceError> {
        let ProductOut { memory, stride, first_row } = out;
        let changed = match self.fault {
            Fault::None => None,
            Fault::Scaled => Some((first_row..first_row + rows.len(), 1.1)),
            // This planted fault changes the results by a hundredth if the product has more than two rows.
            Fault::RowsMatter if rows.len() > 2 => Some((first_row..first_row + rows.len(), 1.01)),
            Fault::RowsMatter => None,
            Fault::RowMissing => Some((first_row..first_row + 1, 0.0)),
            Fault::Fails => {
                return Err(DeviceError::OutOfMemory { what: "a product", bytes: 1 });
            }
        };
        let places = changed.into_iter().flat_map(|(rows, factor)| {
            rows.flat_map(move |row| row * stride..row * stride + cols).map(move |place| (place, factor))
        });
        match memory {
            ProductMemory::Bf16(memory) => {
                let out = ProductOut { memory: ProductMemory::Bf16(&mut *memory), stride, first_row };
                self.products.multiply(runtime, stream, layer, x, rows, out)?;
                places.for_each(|(place, factor)| {
                    memory[place] = bf16::from_f32(memory[place].to_f32() * factor);
                });
            }
            ProductMemory::F32(memory) => {
                let out = ProductOut { memory: ProductMemory::F32(&mut *memory), stride, first_row };
                self.products.multiply(runtime, stream, layer, x, rows, out)?;
                places.for_each(|(place, factor)| memory[place] *= factor);
            }
        }
        Ok(())
    }
}

fn gpu(fault: Fault) -> Gpu<Faulty> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    Gpu::new(kernels, stream, Faulty { products: CpuProducts::new(1).unwrap(), fault })
}

#[test]
fn a_device_that_computes_what_it_should_passes() {
    let chosen = choose(|| Ok(Some(gpu(Fault::None))));
    assert!(matches!(chosen, Chosen::Device(_)), "{}", reason(chosen));
}

fn reason<D>(chosen: Chosen<D>) -> String {
    match chosen {
        Chosen::Refused(reason) => reason,
        Chosen::Device(_) | Chosen::Missing => String::new(),
    }
}

#[test]
fn a_device_that_cannot_be_opened_is_no_error() {
    let missing = choose(|| Ok(None::<Gpu<Faulty>>));
    assert!(matches!(missing, Chosen::Missing));
    let why = "compute capability 7.5; the kernels need 8.0".to_string();
    let unavailable = DeviceError::Unavailable { requested: "cuda:0".into(), reason: why.clone() };
    assert_eq!(reason(choose(|| Err::<Option<Gpu<Faulty>>, _>(unavailable))), why);
}

#[test]
fn a_broken_device_does_not() {
    for fault in [Fault::Scaled, Fault::RowsMatter, Fault::RowMissing, Fault::Fails] {
        let error = self_test(gpu(fault)).map(drop).unwrap_err();
        let expected = match fault {
            Fault::Fails => matches!(error, SelfTestError::Decode(_)),
            _ => matches!(error, SelfTestError::Differs { .. }),
        };
        assert!(expected && error.to_string().starts_with("its self-test failed"), "{fault:?}: {error}");
        if fault == Fault::RowMissing {
            assert_eq!(reason(choose(|| Ok(Some(gpu(fault))))), error.to_string());
        }
    }
}
