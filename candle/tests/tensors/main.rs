//! Tests of the kernels on candle's tensors, on the CPU.

mod decode;
mod drafts;
#[path = "../../examples/decode.rs"]
mod example;
mod in_place;
#[path = "../../../tests/gpu_device/margins.rs"]
mod margins;
mod misuse;
mod passes;
// This module, which the whole workspace shares, sets the number of cases of a property test.
#[allow(dead_code)]
#[path = "../../../tests/support/properties.rs"]
mod properties;
mod reference;
mod rows;
mod sampling;
mod support;
