//! Tests that the C interface gives the bits of the Rust wrappers, for every kernel, on random shapes and data. The C
//! interface runs on the emulator with checks of every access.

use std::ptr;

use flexdraft::kernels::{Faults, Kernels};
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft_ffi::*;

use crate::support::{attempt, versioned};

const STREAM: *mut std::ffi::c_void = ptr::null_mut();

fn simt() -> Kernels<Simt> {
    Kernels::new(Simt::new(SimtOptions::default()))
}

/// Returns the bits of elements, so that NaN is equal to itself.
fn bits<T: bytemuck::Pod>(elements: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(elements).to_vec()
}

/// Launches a function of the C interface on its operands.
macro_rules! launch {
    ($opened:expr, $function:ident, $args:expr) => {
        // A match keeps arrays that are made in place alive until the call returns.
        match $args {
            // SAFETY: the kernels are open, and operands live until the call returns, which runs the launch.
            args => attempt(|error| unsafe { $function($opened.0, STREAM, &raw const args, error) }).unwrap(),
        }
    };
}

mod acceptance;
mod attention;
mod drafts;
mod edits;
mod rows;
mod sampling;

#[test]
fn limits_and_faults() {
    let shape = versioned!(FlexdraftModelShape {
        heads: FlexdraftHeads { q_heads: 32, kv_heads: 8, head_dim: 128 },
        vocab: 151_936,
        hidden: 4096,
        intermediate: 12_288,
        rank: 512,
        hidden_chain_rank: 0,
    });
    // SAFETY: the pointers lead to variables.
    let supports =
        |shape: FlexdraftModelShape| attempt(|error| unsafe { flexdraft_supports(&raw const shape, error) });
    assert_eq!(supports(shape), Ok(()));
    assert_eq!(supports(FlexdraftModelShape { rank: 0, ..shape }), Ok(()));
    let wrong = FlexdraftModelShape { heads: FlexdraftHeads { head_dim: 96, ..shape.heads }, ..shape };
    let text = "head_dim is 96; the kernels support 64, 128".to_owned();
    assert_eq!(supports(wrong), Err((FLEXDRAFT_UNSUPPORTED, text)));
    let chained = |hidden_chain_rank| FlexdraftModelShape { hidden_chain_rank, ..shape };
    assert_eq!(supports(chained(24)), Ok(()));
    let text = "rank of the chain is 20; the kernels support multiples of 8".to_owned();
    assert_eq!(supports(chained(20)), Err((FLEXDRAFT_UNSUPPORTED, text)));
    // An older caller's struct ends before the rank of the chain.
    let older = std::mem::offset_of!(FlexdraftModelShape, hidden_chain_rank) as u64;
    assert_eq!(supports(FlexdraftModelShape { struct_size: older, ..chained(20) }), Ok(()));
    // SAFETY: the pointer leads to a variable.
    let faults = |word| attempt(|error| unsafe { flexdraft_faults(word, error) });
    assert_eq!(faults(0), Ok(()));
    let found = faults(1 | 4);
    assert_eq!(found, Err((FLEXDRAFT_FAULT, Faults::of(5).unwrap().to_string())));
    assert_eq!(flexdraft_abi_version(), FLEXDRAFT_ABI_VERSION);
    // SAFETY: the text lives as long as the library.
    let version = unsafe { std::ffi::CStr::from_ptr(flexdraft_version()) };
    assert_eq!(version.to_str(), Ok(env!("CARGO_PKG_VERSION")));
}
