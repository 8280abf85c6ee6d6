//! The functions of cuBLASLt, as `cublasLt.h` declares them.

use std::sync::Arc;

use cudarc::cublaslt::sys::{
    cublasLtMatmulAlgo_t, cublasLtMatmulHeuristicResult_t, cublasStatus_t as Status,
};

use flexdraft::runtime::Region;

use super::algorithms::Algorithm;
use super::descriptors::{Description, Layout, Preference, Value, find};
use super::product::{Addresses, Product, Shape};
use crate::driver::{Driver, cublas_call};
use crate::foreign::{In, Out};
use crate::refusal::{Outcome, unsupported};
use crate::work::Work;

/// The alignment that a workspace must have, in bytes.
const WORKSPACE_ALIGNMENT: u64 = 256;

#[unsafe(no_mangle)]
extern "C" fn cublasLtCreate(handle: Out<u64>) -> u32 {
    cublas_call("cublasLtCreate", |driver| {
        if driver.bound().is_err() {
            return unsupported(Status::CUBLAS_STATUS_NOT_INITIALIZED, "no context is bound to this thread");
        }
        let id = driver.next_handle();
        driver.cublas.handles.push(id);
        handle.set(id)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(handle: u64) -> u32 {
    cublas_call("cublasLtDestroy", |driver| {
        driver.cublas.check_handle(handle)?;
        driver.cublas.handles.retain(|&live| live != handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescCreate(description: Out<u64>, compute: u32, scale: u32) -> u32 {
    cublas_call("cublasLtMatmulDescCreate", |driver| {
        let id = driver.next_handle();
        let (transposes_a, transposes_b, has_bias) = Default::default();
        let made = Description { compute, scale, transposes_a, transposes_b, has_bias, bias: 0 };
        driver.cublas.descriptions.insert(id, made);
        description.set(id)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescSetAttribute(
    description: u64,
    attribute: u32,
    value: In<u8>,
    bytes: usize,
) -> u32 {
    cublas_call("cublasLtMatmulDescSetAttribute", |driver| {
        let description = find(&mut driver.cublas.descriptions, description, "description")?;
        description.set(attribute, &Value { from: &value, bytes })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescDestroy(description: u64) -> u32 {
    cublas_call("cublasLtMatmulDescDestroy", |driver| {
        find(&mut driver.cublas.descriptions, description, "description")?;
        driver.cublas.descriptions.remove(&description);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutCreate(
    layout: Out<u64>,
    kind: u32,
    rows: u64,
    cols: u64,
    stride: i64,
) -> u32 {
    cublas_call("cublasLtMatrixLayoutCreate", |driver| {
        let id = driver.next_handle();
        driver.cublas.layouts.insert(id, Layout { kind, rows, cols, stride });
        layout.set(id)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutSetAttribute(
    layout: u64,
    attribute: u32,
    value: In<u8>,
    bytes: usize,
) -> u32 {
    cublas_call("cublasLtMatrixLayoutSetAttribute", |driver| {
        find(&mut driver.cublas.layouts, layout, "layout")?.set(attribute, &Value { from: &value, bytes })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutDestroy(layout: u64) -> u32 {
    cublas_call("cublasLtMatrixLayoutDestroy", |driver| {
        find(&mut driver.cublas.layouts, layout, "layout")?;
        driver.cublas.layouts.remove(&layout);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceCreate(preference: Out<u64>) -> u32 {
    cublas_call("cublasLtMatmulPreferenceCreate", |driver| {
        let id = driver.next_handle();
        driver.cublas.preferences.insert(id, Preference { workspace: 0, may_split: true, alignment: 256 });
        preference.set(id)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: u64,
    attribute: u32,
    value: In<u8>,
    bytes: usize,
) -> u32 {
    cublas_call("cublasLtMatmulPreferenceSetAttribute", |driver| {
        let preference = find(&mut driver.cublas.preferences, preference, "preference")?;
        preference.set(attribute, &Value { from: &value, bytes })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceDestroy(preference: u64) -> u32 {
    cublas_call("cublasLtMatmulPreferenceDestroy", |driver| {
        find(&mut driver.cublas.preferences, preference, "preference")?;
        driver.cublas.preferences.remove(&preference);
        Ok(())
    })
}

/// Returns the operation and the shape of a matrix product, from the descriptors that a call names.
fn described(driver: &mut Driver, description: u64, layouts: [u64; 4]) -> Outcome<(Description, Shape)> {
    let description = *find(&mut driver.cublas.descriptions, description, "description")?;
    let mut found = [Layout { kind: 0, rows: 0, cols: 0, stride: 0 }; 4];
    for (layout, to) in layouts.into_iter().zip(&mut found) {
        *to = *find(&mut driver.cublas.layouts, layout, "layout")?;
    }
    Ok((description, Shape::new(&description, found)?))
}

fn result_of(algorithm: Algorithm) -> cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulHeuristicResult_t {
        algo: cublasLtMatmulAlgo_t { data: algorithm.data() },
        workspaceSize: algorithm.workspace() as usize,
        state: Status::CUBLAS_STATUS_SUCCESS,
        wavesCount: 1.0,
        reserved: [0; 4],
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: u64,
    description: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    preference: u64,
    asked: i32,
    results: *mut cublasLtMatmulHeuristicResult_t,
    count: Out<i32>,
) -> u32 {
    cublas_call("cublasLtMatmulAlgoGetHeuristic", |driver| {
        driver.cublas.check_handle(handle)?;
        described(driver, description, [a, b, c, d])?;
        let preference = *find(&mut driver.cublas.preferences, preference, "preference")?;
        let asked = usize::try_from(asked).unwrap_or_default();
        let mut proposed = Algorithm::proposed(driver.policy.proposals, preference.may_split);
        proposed.truncate(asked);
        if results.is_null() || proposed.is_empty() {
            return unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, "no room for results");
        }
        for (index, algorithm) in proposed.iter().enumerate() {
            // SAFETY: the caller has room for as many results as it asked for.
            unsafe { results.add(index).write(result_of(*algorithm)) };
        }
        count.set(i32::try_from(proposed.len()).unwrap_or_default())
    })
}

fn known(algorithm: &In<[u64; 8]>) -> Outcome<Algorithm> {
    let data = algorithm.get(0)?;
    match Algorithm::from_data(&data) {
        Some(algorithm) => Ok(algorithm),
        None => unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, "an algorithm that was not proposed"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulAlgoCheck(
    handle: u64,
    description: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    algorithm: In<[u64; 8]>,
    result: Out<cublasLtMatmulHeuristicResult_t>,
) -> u32 {
    cublas_call("cublasLtMatmulAlgoCheck", |driver| {
        driver.cublas.check_handle(handle)?;
        described(driver, description, [a, b, c, d])?;
        result.set(result_of(known(&algorithm)?))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmul(
    handle: u64,
    description: u64,
    alpha: In<f32>,
    a: u64,
    a_layout: u64,
    b: u64,
    b_layout: u64,
    beta: In<f32>,
    c: u64,
    c_layout: u64,
    d: u64,
    d_layout: u64,
    algorithm: In<[u64; 8]>,
    workspace: u64,
    workspace_bytes: usize,
    stream: u64,
) -> u32 {
    cublas_call("cublasLtMatmul", |driver| {
        driver.cublas.check_handle(handle)?;
        let (description, shape) = described(driver, description, [a_layout, b_layout, c_layout, d_layout])?;
        if (alpha.get(0)?, beta.get(0)?) != (1.0, 0.0) || c != d {
            return unsupported(Status::CUBLAS_STATUS_NOT_SUPPORTED, "the stand-in neither scales nor adds");
        }
        let algorithm = known(&algorithm)?;
        let needed = algorithm.workspace();
        let offered = if workspace.is_multiple_of(WORKSPACE_ALIGNMENT) { workspace_bytes as u64 } else { 0 };
        if needed > offered || (needed > 0 && driver.memory()?.containing(workspace, needed).is_err()) {
            let reason =
                format!("the workspace at {workspace:#x} has {offered} usable bytes, expected {needed}");
            return unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, reason);
        }
        let at = Addresses { weight: a, x: b, out: d, bias: description.bias };
        let product = Product { shape, at, algorithm };
        for Region { address, bytes, .. } in product.regions() {
            // Operands are aligned to 16 bytes, as the callers' preferences say.
            let found = driver.memory().and_then(|memory| memory.containing(address, bytes));
            if let Err(refusal) = found.and(if address.is_multiple_of(16) {
                Ok(())
            } else {
                unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, format!("{address:#x} is no multiple of 16"))
            }) {
                return unsupported(Status::CUBLAS_STATUS_INVALID_VALUE, refusal.reason);
            }
        }
        if algorithm.fails(shape.rows) {
            return unsupported(Status::CUBLAS_STATUS_EXECUTION_FAILED, "this algorithm fails by a policy");
        }
        let put = driver.bound().and_then(|()| driver.enqueue(stream, Work::Product(Arc::new(product))));
        put.or_else(|refusal| unsupported(Status::CUBLAS_STATUS_EXECUTION_FAILED, refusal.reason))
    })
}
