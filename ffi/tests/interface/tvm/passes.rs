//! Tables of passes, rotary embedding, and attention.

use std::ffi::{c_int, c_void};
use std::ptr;

use flexdraft::kernels::acceptance::Verdict;
use flexdraft_ffi::*;

use super::Argument::{At, Value};
use super::Type::{Bf16, F16, F32, I32, U32};
use super::{
    Any, NONE, Operand, Tensor, Type, VERDICT, call, flag, float, int, number, same, value, values_of,
};
use crate::support::{ABSENT, NO_ROWS, Noise, Opened, sequence};

/// A pass of TVM-FFI. Dropping it calls the object's deleter as TVM-FFI does when the last reference goes.
pub struct Pass(pub Any);

/// The header of an object.
#[repr(C)]
pub struct Header {
    pub counts: u64,
    pub type_index: i32,
    pub padding: u32,
    pub deleter: unsafe extern "C" fn(*mut c_void, c_int),
}

impl Pass {
    pub fn new(max_batch: i64, max_pages: i64) -> Self {
        let object = call("pass_tables", &[int(1), int(0), int(max_batch), int(max_pages)]).unwrap();
        assert_eq!(object.type_index, 200);
        // SAFETY: the object is alive, and begins with a header.
        let header = unsafe { &*(object.bits as *const Header) };
        // One strong and one weak reference.
        assert_eq!((header.counts, header.type_index), (1 << 32 | 1, 200));
        Pass(object)
    }

    pub fn upload(
        &self,
        page_ids: &[i64],
        sequences: &[i64],
        pages: i64,
        page_size: i64,
    ) -> Result<Any, (String, String)> {
        let batch = sequences.len() as i64 / 6;
        let table = |elements: &[i64], shape: &[i64; 2]| Tensor {
            data: elements.as_ptr().cast_mut().cast(),
            device: [1, 0],
            dimensions: 2,
            code: 0,
            bits: 64,
            lanes: 1,
            shape: shape.as_ptr(),
            strides: ptr::null(),
            byte_offset: 0,
        };
        let (ids_shape, rows_shape) = ([batch, page_ids.len() as i64 / batch], [batch, 6]);
        let (ids, rows) = (table(page_ids, &ids_shape), table(sequences, &rows_shape));
        call("pass_upload", &[self.0, value(&ids), value(&rows), int(pages), int(page_size)])
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // SAFETY: the object is alive, and its deleter gets each flag once.
        unsafe {
            let deleter = (*(self.0.bits as *const Header)).deleter;
            deleter(self.0.bits as *mut c_void, 1);
            deleter(self.0.bits as *mut c_void, 2);
        }
    }
}

/// Returns the columns from `column` on of the rows from `row` on of a matrix, as a tensor. The shape and the strides
/// outlive the tensor.
fn part(matrix: &mut Operand, row: usize, column: usize, shape: &[i64; 2], strides: &[i64; 2]) -> Tensor {
    let first = row * strides[0] as usize + column;
    let (shape, strides) = (shape.as_ptr(), strides.as_ptr());
    Tensor { byte_offset: 2 * first as u64, shape, strides, ..matrix.tensor() }
}

#[test]
fn passes_rope_and_attention() {
    passes_rope_and_attention_of(Bf16);
    passes_rope_and_attention_of(F16);
}

fn passes_rope_and_attention_of(half: Type) {
    let (opened, mut noise) = (Opened::new(), Noise(7));
    let (q_heads, kv_heads, head_dim, pages, page_size) = (4, 2, 64, 3, 16);
    let ids = [[2u32, 0], [1, 1]];
    let tvm = Pass::new(2, 2);
    // The second sequence has one page, and one mask group of an accepted length far from 0.
    tvm.upload(&[2, 0, 1, 1], &[2, 18, 2, 0, 0b11, 3, 1, 0, 9, 8, 1, 3], 3, 16).unwrap();
    let second = FlexdraftSequence { first_group: 8, ..sequence(&ids[1][..1], 0, 9, 1, 3) };
    let pass = opened.pass(&[sequence(&ids[0], 18, 2, 0b11, 3), second], 3, 16);
    let rows = 2 + 9 + 6 + 3;

    let operands =
        [Operand::noise(F32, &[head_dim / 2], &mut noise), Operand::new(F32, &[rows, head_dim / 2, 2])];
    let c = c!(opened, flexdraft_rope_table, |b| versioned!(FlexdraftRopeTable {
        pass: pass.0,
        inv_freq: b[0],
        cos_sin: b[1],
        scale: 0.5,
        reserved: 0,
    }));
    let table = same("rope_table", &operands, &[Value(tvm.0), At(0), At(1), Value(float(0.5))], c);

    let (q_columns, kv_columns) = (q_heads * head_dim, kv_heads * head_dim);
    let columns = q_columns + 2 * kv_columns;
    let row_strides = [columns as i64, 1];
    let cached = [pages, page_size, kv_heads, head_dim];
    let token = (kv_heads * head_dim) as u64;
    let cache = |k, v| FlexdraftCache {
        k,
        v,
        k_page_stride: page_size as u64 * token,
        k_token_stride: token,
        k_head_stride: head_dim as u64,
        v_page_stride: page_size as u64 * token,
        v_token_stride: token,
        v_head_stride: head_dim as u64,
    };
    let heads =
        FlexdraftHeads { q_heads: q_heads as u64, kv_heads: kv_heads as u64, head_dim: head_dim as u64 };
    let mut operands = vec![
        Operand::noise(half, &[rows, columns], &mut noise),
        table[1].clone(),
        Operand::noise(F32, &[head_dim], &mut noise),
        Operand::noise(F32, &[head_dim], &mut noise),
        Operand::noise(half, &cached, &mut noise),
        Operand::noise(half, &cached, &mut noise),
        Operand::new(U32, &[1]),
    ];
    for masks in [false, true] {
        let c = c!(opened, flexdraft_norm_rope_append, |b| versioned!(FlexdraftNormRopeAppend {
            pass: pass.0,
            heads,
            qkv: b[0],
            cos_sin: b[1],
            q_norm: b[2],
            k_norm: b[3],
            cache: cache(b[4], b[5]),
            error_word: b[6],
            eps: 0.5,
            kind: u32::from(masks),
            q: NO_ROWS,
            k: NO_ROWS,
            v: NO_ROWS,
        }));
        let arguments = [
            Value(tvm.0),
            At(0),
            At(1),
            At(2),
            At(3),
            At(4),
            At(5),
            Value(int(q_heads as i64)),
            Value(float(0.5)),
            Value(flag(masks)),
            At(6),
        ];
        // The columns of q, k and v of these rows, as separate tensors, give the same.
        let mut apart = operands.clone();
        let (first, count) = if masks { (11, 9) } else { (0, 11) };
        let (q_shape, kv_shape) = ([count, q_columns as i64], [count, kv_columns as i64]);
        let parts = [(0, &q_shape), (q_columns, &kv_shape), (q_columns + kv_columns, &kv_shape)]
            .map(|(column, shape)| part(&mut apart[0], first, column, shape, &row_strides));
        let tensors: Vec<Tensor> = apart.iter_mut().map(Operand::tensor).collect();
        let mut values = values_of(&arguments, &tensors);
        values[1] = NONE;
        values.extend(parts.each_ref().map(value));
        assert_eq!(call("norm_rope_append", &values), Ok(NONE));
        operands = same("norm_rope_append", &operands, &arguments, c);
        for (index, (apart, together)) in apart.iter().zip(&operands).enumerate() {
            assert_eq!(apart.memory, together.memory, "operand {index}");
        }
    }

    let shape = [rows as i64, q_heads as i64, kv_heads as i64, head_dim as i64, 0].map(int);
    let len = number("attention_workspace_len", &[&[tvm.0][..], &shape, &[flag(true)]].concat());
    let operands = [
        operands[0].clone(),
        operands[4].clone(),
        operands[5].clone(),
        Operand::new(half, &[rows, q_heads * head_dim]),
        Operand::new(F32, &[rows, q_heads]),
        Operand::new(F32, &[len]),
        Operand::noise(F32, &[q_heads], &mut noise),
    ];
    let c = c!(opened, flexdraft_joint_attention, |b| versioned!(FlexdraftJointAttention {
        pass: pass.0,
        heads,
        qkv: b[0],
        cache: cache(b[1], b[2]),
        out: b[3],
        lse: b[4],
        workspace: b[5],
        error_word: ABSENT,
        split: 0,
        with_masks: 1,
        reserved: 0,
        q: NO_ROWS,
        mask_q: NO_ROWS,
        mask_k: NO_ROWS,
        mask_v: NO_ROWS,
        sinks: b[6],
        window: 65,
        soft_cap: 2.0,
        unused: 0,
    }));
    let arguments = [
        Value(tvm.0),
        At(0),
        At(1),
        At(2),
        At(3),
        At(4),
        At(5),
        Value(int(q_heads as i64)),
        Value(int(0)),
        Value(flag(true)),
        Value(NONE),
        Value(NONE),
        Value(NONE),
        Value(NONE),
        Value(NONE),
        At(6),
        Value(int(65)),
        Value(float(2.0)),
    ];
    let after = same("joint_attention", &operands, &arguments, c);

    // The columns of q, k and v, as separate tensors, give the same output.
    let mut apart = operands.to_vec();
    let (q_shape, mask_shape, kv_shape) =
        ([11, q_columns as i64], [9, q_columns as i64], [9, kv_columns as i64]);
    let parts = [
        (0, 0, &q_shape),
        (11, 0, &mask_shape),
        (11, q_columns, &kv_shape),
        (11, q_columns + kv_columns, &kv_shape),
    ]
    .map(|(row, column, shape)| part(&mut apart[0], row, column, shape, &row_strides));
    let tensors: Vec<Tensor> = apart.iter_mut().map(Operand::tensor).collect();
    let mut values = values_of(&arguments, &tensors);
    values[1] = NONE;
    values[11..15].copy_from_slice(&parts.each_ref().map(value));
    assert_eq!(call("joint_attention", &values), Ok(NONE));
    assert_eq!(apart[3].memory, after[3].memory);
    let short_shape = [8, kv_columns as i64];
    let short = Tensor { shape: short_shape.as_ptr(), ..parts[3] };
    values[14] = value(&short);
    let (kind, text) = call("joint_attention", &values).unwrap_err();
    assert!(kind == "ValueError" && text.contains("`mask v`"), "{kind}: {text}");

    // A cache with heads before tokens, seen as [page, token, head, dim] by its strides, gives the same output.
    let [_, page, token, _] = [0, 16 * 2 * 64, 2 * 64, 64usize];
    let turn = |from: &Operand| {
        let (from, mut to) = (from.elements::<u16>(), Operand::new(half, &cached));
        let out: &mut [u16] = bytemuck::cast_slice_mut(&mut to.memory);
        for (at, &element) in from.iter().enumerate().take(pages * page) {
            let (p, t, h, d) = (at / page, at / token % 16, at / 64 % 2, at % 64);
            out[p * page + h * 16 * 64 + t * 64 + d] = element;
        }
        to
    };
    let (mut k, mut v) = (turn(&operands[1]), turn(&operands[2]));
    let strides = [page as i64, 64, 16 * 64, 1];
    let strided = |tensor: Tensor| Tensor { strides: strides.as_ptr(), ..tensor };
    let (k, v) = (strided(k.tensor()), strided(v.tensor()));
    let mut others: Vec<Operand> = operands.to_vec();
    let tensors: Vec<Tensor> = others.iter_mut().map(Operand::tensor).collect();
    let values = [
        tvm.0,
        value(&tensors[0]),
        value(&k),
        value(&v),
        value(&tensors[3]),
        NONE,
        value(&tensors[5]),
        int(4),
        int(0),
        flag(true),
        NONE,
        NONE,
        NONE,
        NONE,
        NONE,
        value(&tensors[6]),
        int(65),
        float(2.0),
    ];
    assert_eq!(call("joint_attention", &values), Ok(NONE));
    assert_eq!(others[3].memory, after[3].memory);

    // The verdict moves the group of a drafting pass.
    let drafting = Pass::new(1, 1);
    let moved = || {
        let mut angles = Operand::new(F32, &[4, 1, 2]);
        let mut frequency = Operand::of(F32, &[1], &[1f32]);
        let (angles_tensor, frequency) = (angles.tensor(), frequency.tensor());
        let values = [drafting.0, value(&frequency), value(&angles_tensor), float(1.0)];
        assert_eq!(call("rope_table", &values), Ok(NONE));
        angles.elements::<f32>()[0]
    };
    drafting.upload(&[0], &[1, 5, 0, 3, 1, 4], 1, 16).unwrap();
    assert!((moved() - 9f32.cos()).abs() < 1e-6);
    let verdict = Verdict { accepted: 1, cached_length: 7, ..bytemuck::Zeroable::zeroed() };
    let (mut verdicts, mut sequences) =
        (Operand::of(VERDICT, &[1], &[verdict]), Operand::of(I32, &[1], &[0i32]));
    let (verdicts, sequences) = (verdicts.tensor(), sequences.tensor());
    assert_eq!(call("follow_verdicts", &[drafting.0, value(&sequences), value(&verdicts), NONE]), Ok(NONE));
    assert!((moved() - 7f32.cos()).abs() < 1e-6);
}
