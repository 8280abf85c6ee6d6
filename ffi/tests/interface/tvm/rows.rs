//! Embedding, gather, norm, addition and activations.

use std::ptr;

use flexdraft_ffi::*;

use super::Argument::{At, Value};
use super::Type::{Bf16, F16, F32, I32, U32};
use super::{NONE, Operand, Type, float, same};
use crate::support::{ABSENT, Noise, Opened};

#[test]
fn rows() {
    rows_of(Bf16);
    rows_of(F16);
}

fn rows_of(half: Type) {
    let opened = Opened::new();
    let mut noise = Noise(5);
    let (rows, cols, vocab) = (3, 24, 4);
    let halves = |shape: [usize; 2], noise: &mut Noise| Operand::noise(half, &shape, noise);
    let ids = Operand::of(I32, &[rows], &[2i32, -1, 3]);
    let table = halves([vocab, cols], &mut noise);
    let (out, word) = (Operand::new(half, &[rows, cols]), Operand::new(U32, &[1]));
    let operands = [ids, table, out, word];
    let arguments = [At(0), At(1), At(2), At(3)];
    let c = c!(opened, flexdraft_embed, |b| versioned!(FlexdraftEmbed {
        cols: cols as u64,
        ids: b[0],
        table: b[1],
        out: b[2],
        error_word: b[3],
    }));
    let after = same("embed", &operands, &arguments, c);
    assert_eq!(after[3].elements::<u32>()[0], 2);
    let c = c!(opened, flexdraft_gather, |b| versioned!(FlexdraftGather {
        cols: cols as u64,
        indices: b[0],
        x: b[1],
        out: b[2],
        error_word: ABSENT,
    }));
    same("gather", &operands[..3], &[At(0), At(1), At(2), Value(NONE)], c);

    let (x, delta) = (halves([rows, cols], &mut noise), halves([rows, cols], &mut noise));
    let (weight, out) = (Operand::noise(F32, &[cols], &mut noise), Operand::new(half, &[rows, cols]));
    let operands = [x, delta, weight, out];
    for with_delta in [false, true] {
        let c = c!(opened, flexdraft_rms_norm, |b| versioned!(FlexdraftRmsNorm {
            x: b[0],
            delta: if with_delta { b[1] } else { ABSENT },
            weight: b[2],
            out: b[3],
            eps: 1e-5,
            reserved: 0,
        }));
        let delta = if with_delta { At(1) } else { Value(NONE) };
        same("rms_norm", &operands, &[At(0), delta, At(2), At(3), Value(float(f64::from(1e-5f32)))], c);
    }
    let c = c!(opened, flexdraft_add, |b| versioned!(FlexdraftAdd { x: b[0], delta: b[1] }));
    same("add", &operands[..2], &[At(0), At(1)], c);

    let operands = [halves([rows, 2 * cols], &mut noise), Operand::new(half, &[rows, cols])];
    let c = c!(opened, flexdraft_silu_mul, |b| versioned!(FlexdraftSiluMul {
        cols: cols as u64,
        x: b[0],
        out: b[1]
    }));
    same("silu_mul", &operands, &[At(0), At(1)], c);
    let owner = Operand::of(I32, &[rows], &[1i32, -1, 9]);
    let operands =
        [halves([rows, cols], &mut noise), halves([2, cols], &mut noise), owner, Operand::new(I32, &[1])];
    let c = c!(opened, flexdraft_silu_add, |b| versioned!(FlexdraftSiluAdd {
        cols: cols as u64,
        x: b[0],
        bonus: b[1],
        owner: b[2],
        error_word: FlexdraftBuffer { dtype: FLEXDRAFT_U32, ..b[3] },
    }));
    let after = same("silu_add", &operands, &[At(0), At(1), At(2), At(3)], c);
    assert_eq!(after[3].elements::<i32>()[0], 16);
}
