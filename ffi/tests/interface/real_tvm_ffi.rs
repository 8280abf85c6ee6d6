//! Tests with the real TVM-FFI: a Python with the packages apache-tvm-ffi and numpy, which the environment variable
//! `FLEXDRAFT_TVM_FFI` names. Without the variable they are skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{compile, folder};

/// Runs the Python with arguments in the folder of this package. Returns what it printed, or `None` without a Python.
fn python(arguments: &[&str]) -> Option<String> {
    let Some(python) = std::env::var_os("FLEXDRAFT_TVM_FFI") else {
        eprintln!("SKIPPED: FLEXDRAFT_TVM_FFI names no Python with apache-tvm-ffi and numpy");
        return None;
    };
    let output =
        Command::new(python).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn library() -> String {
    let beside: PathBuf = std::env::current_exe().unwrap().parent().unwrap().join("libflexdraft_ffi.so");
    beside.to_str().unwrap().to_owned()
}

#[test]
fn a_step_on_numpy_arrays() {
    if let Some(printed) = python(&["examples/step.py", &library()]) {
        assert_eq!(printed, crate::example::expected().unwrap());
    }
}

#[test]
fn errors_are_those_of_python() {
    let expected = "\
ValueError: head_dim is 96; the kernels support 64, 128
TypeError: supports takes `head_dim` after its 2 arguments
TypeError: add: `x` is an integer, expected a tensor
ValueError: sample_workspace_len: `rows` is -1, expected 0 or more
TypeError: rms_norm: `x` has elements of f32, expected bf16 or f16
TypeError: rope_table: `pass` is a tensor, expected an object of pass_tables
ValueError: rope_table: `inv_freq` has the shape [2, 8], expected [any]
ValueError: `device_type` is 3 with the id 0, expected 1 (host) with 0, or 2 (CUDA)
";
    if let Some(printed) = python(&["tests/interface/tvm_ffi_errors.py", &library()]) {
        assert_eq!(printed, expected);
    }
}

/// The library declares the structs of TVM-FFI by hand; these are the offsets that its declarations have.
const LAYOUT: &str = "\
#include <assert.h>
#include <stddef.h>
#include <tvm/ffi/c_api.h>
static_assert(sizeof(TVMFFIAny) == 16 && offsetof(TVMFFIAny, v_int64) == 8, \"\");
static_assert(sizeof(TVMFFIObject) == 24 && offsetof(TVMFFIObject, type_index) == 8, \"\");
static_assert(offsetof(TVMFFIObject, combined_ref_count) == 0 && offsetof(TVMFFIObject, deleter) == 16, \"\");
static_assert(sizeof(TVMFFIByteArray) == 16 && offsetof(TVMFFIByteArray, size) == 8, \"\");
static_assert(sizeof(DLTensor) == 48 && offsetof(DLTensor, device) == 8 && offsetof(DLTensor, ndim) == 16, \"\");
static_assert(offsetof(DLTensor, dtype) == 20 && offsetof(DLTensor, shape) == 24, \"\");
static_assert(offsetof(DLTensor, strides) == 32 && offsetof(DLTensor, byte_offset) == 40, \"\");
static_assert(offsetof(DLDataType, bits) == 1 && offsetof(DLDataType, lanes) == 2, \"\");
static_assert(kTVMFFINone == 0 && kTVMFFIInt == 1 && kTVMFFIBool == 2 && kTVMFFIFloat == 3, \"\");
static_assert(kTVMFFIDLTensorPtr == 7 && kTVMFFIObject == 64 && kTVMFFITensor == 70, \"\");
static_assert(kDLCPU == 1 && kDLCUDA == 2, \"\");
static_assert(kDLInt == 0 && kDLUInt == 1 && kDLFloat == 2 && kDLBfloat == 4, \"\");
static_assert(kTVMFFIObjectDeleterFlagBitMaskStrong == 1 && kTVMFFIObjectDeleterFlagBitMaskWeak == 2, \"\");
";

#[test]
fn the_structs_are_those_of_the_headers() {
    let paths =
        "import tvm_ffi.libinfo as info; print(info.find_include_path(), info.find_dlpack_include_path())";
    let Some(paths) = python(&["-c", paths]) else { return };
    let source: &Path = &folder("tvm").join("layout.c");
    std::fs::write(source, LAYOUT).unwrap();
    let includes: Vec<&str> = paths.split_whitespace().flat_map(|path| ["-isystem", path]).collect();
    compile("CC", "cc", &[&["-std=c11", "-fsyntax-only"][..], &includes].concat(), source).unwrap();
}
