//! The memory of tensors: no copies, shared storages, and tensors that are dropped.

use std::thread;

use candle_core::{DType, Device, IndexOp, Storage, Tensor};
use flexdraft_candle::{Error, Kernels};
use half::bf16;

use crate::support::tensor;

fn address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(candle_core::CpuStorage::BF16(elements)) => elements.as_ptr().addr(),
        _ => panic!("not bf16 on the CPU"),
    }
}

fn zeros(rows: usize) -> Tensor {
    Tensor::zeros((rows, 16), DType::BF16, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A kernel changes the tensor's own memory, which clones and views of the tensor share.
#[test]
fn kernels_write_the_memory_of_the_tensor() {
    let kernels = Kernels::new(&Device::Cpu).unwrap();
    let x = zeros(4);
    let (before, view) = (address(&x), x.i(1..3).unwrap());
    let ones = tensor(&[bf16::ONE; 2 * 16], &[2, 16]);
    kernels.add(&view, &ones).unwrap();
    assert_eq!(address(&x), before);
    let expected: Vec<f32> = [0.0, 1.0, 1.0, 0.0].iter().flat_map(|&value| [value; 16]).collect();
    assert_eq!(values(&x), expected);
}

/// Operands may be parts of one storage. Where a kernel writes a part, other operands must not overlap with it.
#[test]
fn operands_share_a_storage_if_they_do_not_overlap() {
    let kernels = Kernels::new(&Device::Cpu).unwrap();
    let both = tensor(&[[bf16::ONE; 32], [bf16::from_f32(2.0); 32]].concat(), &[4, 16]);
    let (first, second) = (both.i(0..2).unwrap(), both.i(2..4).unwrap());
    kernels.add(&first, &second).unwrap();
    assert_eq!(values(&first), [3.0; 32]);
    assert_eq!(values(&second), [2.0; 32]);

    let overlapping = both.i(1..3).unwrap();
    let refused = kernels.add(&first, &overlapping).unwrap_err();
    let expected = Error::Shared { kernel: "add", operand: "x", other: "delta" };
    assert_eq!(Error::of(&refused), Some(&expected));
    assert!(refused.to_string().contains("`x` and `delta` share memory"), "{refused}");
    assert_eq!(values(&first), [3.0; 32]);
    // Operands that are only read may be the same tensor.
    let ids = tensor(&[0i32, 1], &[2]);
    kernels.gather(&ids, &first).unwrap();
    let same = kernels.silu_mul(&first.reshape((1, 32)).unwrap()).unwrap();
    assert_eq!(same.dims(), [1, 16]);
}

/// On the CPU a launch has ended when the call returns, so its result does not depend on the operands any more.
#[test]
fn results_outlive_their_operands() {
    let kernels = Kernels::new(&Device::Cpu).unwrap();
    let out = {
        let table = tensor(&[bf16::from_f32(3.0); 32], &[2, 16]);
        kernels.embed(&tensor(&[1u32], &[1]), &table).unwrap()
    };
    drop(kernels);
    assert_eq!(values(&out), [3.0; 16]);
}

/// Threads that use the same tensors in opposite roles take the locks in one order, so they do not wait for each other.
#[test]
fn threads_share_tensors() {
    let kernels = Kernels::new(&Device::Cpu).unwrap();
    let (one, other) = (zeros(2), zeros(2));
    thread::scope(|scope| {
        for (x, delta) in [(&one, &other), (&other, &one)] {
            let kernels = &kernels;
            scope.spawn(move || (0..200).for_each(|_| kernels.add(x, delta).unwrap()));
        }
    });
    assert_eq!(values(&one), [0.0; 32]);
}
