//! An example of a kernel on memory and a stream that another framework owns: it takes addresses, and writes results in
//! place.
//!
//! Needs an NVIDIA GPU and a build with nvcc; without either the example says so and ends.
//!
//!     cargo run --release --example raw_pointers_and_stream

use std::error::Error;
use std::mem::size_of_val;

use cudarc::driver::result;
use flexdraft::kernels::Kernels;
use flexdraft::kernels::norm::{Residual, RmsNorm};
use flexdraft::runtime::{Cuda, RawCuda, RawStream, View, ViewMut};
use half::bf16;

/// Runs the example of a kernel on foreign memory.
pub fn main() -> Result<(), Box<dyn Error>> {
    let context = match Cuda::context(0) {
        Ok(context) => context,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let kernels = match RawCuda::new(&context) {
        Ok(runtime) => Kernels::new(runtime),
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };

    // These stand-ins for the framework's objects are a stream and three tensors, known by their addresses alone.
    let owner = context.new_stream()?;
    let (x, weight) = ([bf16::from_f32(3.0); 8], [0.5f32; 8]);
    let mut out = [bf16::ZERO; 8];
    context.bind_to_thread()?;
    // SAFETY: each address is of fresh memory of the size that the copy after it writes.
    let (x_address, weight_address, out_address) = unsafe {
        let x_address = result::malloc_sync(size_of_val(&x))?;
        let weight_address = result::malloc_sync(size_of_val(&weight))?;
        result::memcpy_htod_sync(x_address, &x)?;
        result::memcpy_htod_sync(weight_address, &weight)?;
        (x_address, weight_address, result::malloc_sync(size_of_val(&out))?)
    };

    // SAFETY: the stream belongs to `context`, and `owner` outlives this use of it.
    let stream = unsafe { RawStream::new(&context, owner.cu_stream() as u64) };
    // SAFETY: the three views cover memory that lives, and that nothing else touches, until the stream was waited for.
    let args = unsafe {
        RmsNorm {
            x: Residual::Is(View::<bf16>::from_raw(x_address, 8, stream.queue())),
            weight: View::from_raw(weight_address, 8, stream.queue()),
            out: ViewMut::from_raw(out_address, 8, stream.queue()),
            eps: 0.0,
        }
    };
    kernels.rms_norm(&stream, &args)?;
    owner.synchronize()?;

    // SAFETY: the launch has run; the addresses are freed once and not used afterwards.
    unsafe {
        result::memcpy_dtoh_sync(&mut out, out_address)?;
        for address in [x_address, weight_address, out_address] {
            result::free_sync(address)?;
        }
    }
    assert_eq!(out, [bf16::from_f32(0.5); 8]);
    println!("rms_norm on raw pointers: {out:?}");
    Ok(())
}
