//! Wrong arguments raise errors of TVM-FFI.

use std::ffi::{c_int, c_void};
use std::ptr;

use super::Type::Bf16;
use super::passes::{Header, Pass};
use super::{Any, NONE, Operand, Tensor, call, flag, float, int, value};

#[track_caller]
fn refused(found: Result<Any, (String, String)>, kind: &str, words: &[&str]) {
    let (found, text) = found.unwrap_err();
    assert_eq!(found, kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

#[test]
fn misuse_raises_errors() {
    let mut operands = [Operand::new(Bf16, &[2, 8]), Operand::new(Bf16, &[2, 8])];
    let [x, delta] = operands.each_mut().map(Operand::tensor);
    let add = |x: &Tensor, delta: Any| call("add", &[value(x), delta]);
    assert_eq!(add(&x, value(&delta)), Ok(NONE));
    refused(call("add", &[]), "TypeError", &["add", "`x`", "0 arguments"]);
    refused(call("add", &[value(&x), value(&delta), NONE]), "TypeError", &["takes 2 arguments", "got 3"]);
    refused(add(&x, NONE), "TypeError", &["`delta` is None", "expected a tensor"]);
    refused(add(&x, float(1.0)), "TypeError", &["`delta` is a number"]);
    let wide = Tensor { code: 2, bits: 32, ..x };
    refused(add(&wide, value(&delta)), "TypeError", &["`x`", "f32", "expected bf16 or f16"]);
    // f16 beside bf16.
    let f16 = Tensor { code: 2, ..x };
    refused(add(&f16, value(&delta)), "TypeError", &["`delta`", "type bf16", "expected f16"]);
    refused(add(&x, value(&f16)), "TypeError", &["`delta`", "type f16", "expected bf16"]);
    let lanes = Tensor { lanes: 2, ..x };
    refused(add(&lanes, value(&delta)), "TypeError", &["bf16x2"]);
    let shape = [2, 9i64];
    refused(
        add(&Tensor { shape: shape.as_ptr(), ..x }, value(&delta)),
        "ValueError",
        &["`delta`", "[2, 8]", "[2, 9]"],
    );
    refused(add(&Tensor { dimensions: 1, ..x }, value(&delta)), "ValueError", &["`x`", "[2]", "[any, any]"]);
    let strides = [16, 1i64];
    let strided = Tensor { strides: strides.as_ptr(), ..x };
    refused(add(&strided, value(&delta)), "ValueError", &["`x`", "[16, 1]", "contiguous"]);
    refused(
        add(&Tensor { device: [2, 0], ..x }, value(&delta)),
        "ValueError",
        &["`delta`", "the host", "CUDA device 0"],
    );
    refused(
        add(&Tensor { device: [8, 0], ..x }, value(&delta)),
        "ValueError",
        &["`x`", "type 8", "expected CUDA"],
    );
    let negative = [2, -8i64];
    refused(add(&Tensor { shape: negative.as_ptr(), ..x }, value(&delta)), "ValueError", &["[2, -8]"]);
    let huge = [i64::MAX, 8];
    refused(add(&Tensor { shape: huge.as_ptr(), ..x }, value(&delta)), "ValueError", &["`x`", "too large"]);
    let unaligned = Tensor { byte_offset: 2, ..x };
    refused(add(&unaligned, value(&delta)), "ValueError", &["`x`", "16 bytes"]);
    // A size of 1 may have any stride.
    let (one, strides) = ([1, 8i64], [77, 1i64]);
    let one = Tensor { shape: one.as_ptr(), strides: strides.as_ptr(), ..x };
    assert_eq!(add(&one, value(&Tensor { shape: one.shape, ..delta })), Ok(NONE));

    refused(call("sample_workspace_len", &[int(-1), int(8), flag(false)]), "ValueError", &["`rows` is -1"]);
    refused(
        call("sample_workspace_len", &[int(i64::MAX), int(1 << 40), flag(false)]),
        "ValueError",
        &["workspace"],
    );
    refused(
        call("sample_workspace_len", &[int(1), int(8), int(2)]),
        "TypeError",
        &["`calibrated`", "a boolean"],
    );
    refused(call("pass_tables", &[int(3), int(0), int(1), int(1)]), "ValueError", &["`device_type` is 3"]);
    let shape = [32, 8, 96, 100, 64, 64, 0].map(int);
    refused(call("supports", &shape), "ValueError", &["head_dim is 96", "64, 128"]);
    assert_eq!(call("supports", &[32, 8, 128, 100, 64, 64, 0].map(int)), Ok(flag(true)));
    let chained = |rank| call("supports", &[32, 8, 128, 100, 64, 64, 0, rank].map(int));
    assert_eq!(chained(24), Ok(flag(true)));
    refused(chained(20), "ValueError", &["rank of the chain is 20", "multiples of 8"]);

    let pass = Pass::new(1, 2);
    let upload = |ids: &[i64], rows: &[i64; 6]| pass.upload(ids, rows, 2, 16);
    assert!(upload(&[0, 1], &[2, 3, 2, 0, 1, 4]).is_ok());
    refused(upload(&[0, 7], &[2, 3, 2, 0, 1, 4]), "ValueError", &["page id 7"]);
    refused(upload(&[0, -1], &[2, 3, 2, 0, 1, 4]), "ValueError", &["`page_ids` is -1"]);
    refused(upload(&[0, 1], &[3, 3, 2, 0, 1, 4]), "ValueError", &["3 pages", "at most 2"]);
    refused(upload(&[0, 1], &[2, -3, 2, 0, 1, 4]), "ValueError", &["`sequences` is -3"]);
    // A tensor, and an object of another type, are no pass.
    let foreign = Header { counts: 1, type_index: 200, padding: 0, deleter: no_deleter };
    let foreign = Any { type_index: 200, padding: 0, bits: ptr::from_ref(&foreign) as u64 };
    for wrong in [value(&x), foreign, NONE, int(5)] {
        let found = call("attention_workspace_len", &[wrong]);
        refused(found, "TypeError", &["`pass`", "an object of pass_tables"]);
    }
}

unsafe extern "C" fn no_deleter(_: *mut c_void, _: c_int) {}
