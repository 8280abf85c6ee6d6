//! Tests that the C interface refuses misuse with a code, and with a text that names the thing, what was expected and
//! what was found.

use std::ptr;

use crate::support::{ABSENT, NO_ROWS, Opened, attempt, read, sequence, versioned, write};
use bytemuck::Zeroable;
use flexdraft::kernels::sampling::{LogitEdit, RowEdits, RowSampling, RowStats};
use flexdraft_ffi::*;
use half::{bf16, f16};

const STREAM: *mut std::ffi::c_void = ptr::null_mut();

/// Asserts the status of a failed call, and that its text contains all of `words`.
#[track_caller]
fn refused(found: Result<(), (i32, String)>, status: i32, words: &[&str]) {
    let (code, text) = found.unwrap_err();
    assert_eq!(code, status, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

#[test]
fn null_pointers() {
    // SAFETY: null is refused before anything is read.
    unsafe {
        refused(attempt(|error| flexdraft_open(-1, ptr::null_mut(), error)), FLEXDRAFT_NULL, &["`kernels`"]);
        let mut pass = ptr::null_mut();
        let opening = attempt(|error| flexdraft_pass_open(ptr::null(), STREAM, 1, 1, &raw mut pass, error));
        refused(opening, FLEXDRAFT_NULL, &["`kernels`"]);
        refused(
            attempt(|error| flexdraft_row_sampling(ptr::null(), ptr::null_mut(), error)),
            FLEXDRAFT_NULL,
            &["FlexdraftSamplingParams"],
        );
        refused(
            attempt(|error| flexdraft_supports(ptr::null(), error)),
            FLEXDRAFT_NULL,
            &["FlexdraftModelShape"],
        );
        refused(
            attempt(|error| flexdraft_edit_rows(ptr::null(), ptr::null_mut(), error)),
            FLEXDRAFT_NULL,
            &["FlexdraftEditedRows"],
        );
        refused(
            attempt(|error| flexdraft_sample_workspace_len(1, 8, 0, ptr::null_mut(), error)),
            FLEXDRAFT_NULL,
            &["`len`"],
        );
        // A caller may ask for no text.
        assert_eq!(flexdraft_open(-1, ptr::null_mut(), ptr::null_mut()), FLEXDRAFT_NULL);
        flexdraft_close(ptr::null_mut());
        flexdraft_pass_close(ptr::null_mut());
    }
    let opened = Opened::new();
    macro_rules! launches {
        ($($function:ident),*) => {$(
            // SAFETY: as above.
            unsafe {
                let found = attempt(|error| $function(opened.0, STREAM, ptr::null(), error));
                refused(found, FLEXDRAFT_NULL, &["is null"]);
                let found = attempt(|error| $function(ptr::null(), STREAM, ptr::null(), error));
                refused(found, FLEXDRAFT_NULL, &["`kernels` is null"]);
            }
        )*};
    }
    launches!(
        flexdraft_joint_attention,
        flexdraft_sample,
        flexdraft_sample_partials,
        flexdraft_accept,
        flexdraft_chain_choose,
        flexdraft_chain_score,
        flexdraft_chain_walk,
        flexdraft_follow_verdicts,
        flexdraft_select_drafts,
        flexdraft_embed,
        flexdraft_gather,
        flexdraft_rms_norm,
        flexdraft_add,
        flexdraft_silu_mul,
        flexdraft_silu_add,
        flexdraft_rope_table,
        flexdraft_norm_rope_append
    );
}

#[test]
fn devices() {
    let mut kernels = ptr::null_mut();
    // SAFETY: the pointers lead to variables.
    let mut open = |device| attempt(|error| unsafe { flexdraft_open(device, &raw mut kernels, error) });
    refused(open(-3), FLEXDRAFT_VALUE, &["`device` is -3", "-1 for the emulator"]);
    // No machine has a CUDA device with this number.
    refused(open(i32::MAX), FLEXDRAFT_NO_DEVICE, &[]);
    assert!(kernels.is_null());
}

#[test]
fn sizes_of_structs() {
    let opened = Opened::new();
    let mut x = [bf16::ONE; 8];
    let delta = [bf16::ONE; 8];
    let size = size_of::<FlexdraftAdd>() as u64;
    for wrong in [0, 8, size - 1, size + 1, u64::MAX] {
        let args = FlexdraftAdd { struct_size: wrong, x: write(&mut x), delta: read(&delta) };
        // SAFETY: the pointers lead to variables; a size that is larger than the struct is refused.
        let found = attempt(|error| unsafe { flexdraft_add(opened.0, STREAM, &raw const args, error) });
        refused(found, FLEXDRAFT_STRUCT_SIZE, &["FlexdraftAdd", &wrong.to_string(), &size.to_string()]);
    }
    assert_eq!(x, [bf16::ONE; 8]);
}

/// An older caller's struct has no tensors for q, k and v of their own, and a newer caller's struct must not have both
/// them and the fused tensor.
#[test]
fn projections() {
    let opened = Opened::new();
    let pages = [0u32];
    let pass = opened.pass(&[sequence(&pages, 0, 1, 0, 0)], 1, 16);
    let qkv = vec![bf16::ONE; 3 * 64];
    let (k, v, mut out) = (vec![bf16::ONE; 16 * 64], vec![bf16::ONE; 16 * 64], vec![bf16::ZERO; 64]);
    let mut workspace = [0u64; 64];
    let cache = |page, token, head| FlexdraftCache {
        k: read(&k),
        v: read(&v),
        k_page_stride: page,
        k_token_stride: token,
        k_head_stride: head,
        v_page_stride: page,
        v_token_stride: token,
        v_head_stride: head,
    };
    let older = std::mem::offset_of!(FlexdraftJointAttention, q) as u64;
    let mut launch_with = |struct_size, fused, q, window| {
        let args = versioned!(FlexdraftJointAttention {
            pass: pass.0,
            heads: FlexdraftHeads { q_heads: 1, kv_heads: 1, head_dim: 64 },
            qkv: if fused { read(&qkv) } else { ABSENT },
            cache: cache(16 * 64, 64, 64),
            out: write(&mut out),
            workspace: write(bytemuck::cast_slice_mut::<u64, f32>(&mut workspace)),
            with_masks: 1,
            q,
            window,
            ..
        });
        let args = FlexdraftJointAttention { struct_size, ..args };
        // SAFETY: the kernels and the pass are open, and the operands are valid.
        attempt(|error| unsafe { flexdraft_joint_attention(opened.0, STREAM, &raw const args, error) })
    };
    let newer = size_of::<FlexdraftJointAttention>() as u64;
    refused(launch_with(newer, true, NO_ROWS, 64), FLEXDRAFT_UNSUPPORTED, &["sliding window is 64", "65"]);
    let mut launch = |struct_size, fused, q| launch_with(struct_size, fused, q, 0);
    let q = FlexdraftHeadRows { rows: read(&qkv), stride: 0 };
    assert_eq!(launch(older, true, q), Ok(()));
    assert_eq!(launch(newer, false, q), Ok(()));
    refused(launch(older, false, q), FLEXDRAFT_NULL, &["`qkv`"]);
    refused(launch(older - 8, true, q), FLEXDRAFT_STRUCT_SIZE, &["FlexdraftJointAttention"]);
    refused(launch(newer, true, q), FLEXDRAFT_VALUE, &["`qkv`"]);
    // The cache's type is the type of all rows.
    let f16 = FlexdraftHeadRows { rows: FlexdraftBuffer { dtype: FLEXDRAFT_F16, ..q.rows }, ..q };
    refused(launch(newer, false, f16), FLEXDRAFT_DTYPE, &["`q`", "type f16", "expected bf16"]);
    let overlapping = FlexdraftHeadRows { stride: 8, ..q };
    refused(launch(newer, false, overlapping), FLEXDRAFT_UNSUPPORTED, &["a stride of rows is 8"]);
    assert_eq!(out, [bf16::ONE; 64]);
}

/// The operands of an embedding of two rows of eight columns from a table of three rows.
struct Embedding {
    opened: Opened,
    ids: [i32; 2],
    table: Vec<bf16>,
    out: Vec<bf16>,
    word: [u32; 2],
}

impl Embedding {
    fn new() -> Self {
        let (table, out) = (vec![bf16::ONE; 24], vec![bf16::ZERO; 16]);
        Embedding { opened: Opened::new(), ids: [0, 2], table, out, word: [0; 2] }
    }

    /// Launches the embedding after a change of its operands.
    fn launch(&mut self, change: impl FnOnce(&mut FlexdraftEmbed)) -> Result<(), (i32, String)> {
        let mut args = versioned!(FlexdraftEmbed {
            cols: 8,
            ids: read(&self.ids),
            table: read(&self.table),
            out: write(&mut self.out),
            error_word: write(&mut self.word[..1]),
        });
        change(&mut args);
        // SAFETY: the operands are valid, except for what the launch refuses.
        attempt(|error| unsafe { flexdraft_embed(self.opened.0, STREAM, &raw const args, error) })
    }
}

#[test]
fn operands() {
    let mut embedding = Embedding::new();
    assert_eq!(embedding.launch(|_| ()), Ok(()));
    let absent = embedding.launch(|args| args.table = ABSENT);
    refused(absent, FLEXDRAFT_NULL, &["`table` is null", "bf16"]);
    let null = embedding.launch(|args| args.out.data = ptr::null_mut());
    refused(null, FLEXDRAFT_NULL, &["`out` is null", "bf16"]);
    let dtype = embedding.launch(|args| args.table.dtype = FLEXDRAFT_F32);
    refused(dtype, FLEXDRAFT_DTYPE, &["`table`", "type f32", "expected bf16 or f16"]);
    let mixed = embedding.launch(|args| args.table.dtype = FLEXDRAFT_F16);
    refused(mixed, FLEXDRAFT_DTYPE, &["`out`", "type bf16", "expected f16"]);
    let mixed = embedding.launch(|args| args.out.dtype = FLEXDRAFT_F16);
    refused(mixed, FLEXDRAFT_DTYPE, &["`out`", "type f16", "expected bf16"]);
    let unknown = embedding.launch(|args| args.ids.dtype = 99);
    refused(unknown, FLEXDRAFT_DTYPE, &["`ids`", "unknown type 99", "expected i32"]);
    let short = embedding.launch(|args| args.out.len = 15);
    refused(short, FLEXDRAFT_LENGTH, &["embed", "`out`", "15", "16"]);
    let long = embedding.launch(|args| args.error_word.len = 2);
    refused(long, FLEXDRAFT_LENGTH, &["`error word`", "2 elements", "expected 1"]);
    let unaligned = embedding.launch(|args| args.table.data = args.table.data.wrapping_byte_add(2));
    refused(unaligned, FLEXDRAFT_ALIGNMENT, &["`table`", "16 bytes"]);
    for cols in [0, 7, u64::MAX] {
        refused(embedding.launch(|args| args.cols = cols), FLEXDRAFT_UNSUPPORTED, &["number of columns"]);
    }
    let huge = embedding.launch(|args| (args.ids.len, args.cols) = (1 << 62, 8));
    refused(huge, FLEXDRAFT_OVERFLOW, &["out"]);
    assert_eq!(embedding.word, [0; 2]);
}

#[test]
fn workspaces_and_calibrators() {
    let opened = Opened::new();
    let (mut logits, mut stats, mut workspace) = (vec![0f32; 8], [RowStats::zeroed()], vec![0f32; 64]);
    let sampling = [RowSampling::zeroed()];
    let mut launch = |change: &dyn Fn(&mut FlexdraftSample)| {
        let mut args = versioned!(FlexdraftSample {
            vocab: 8,
            stride: 8,
            logits: write(&mut logits),
            sampling: read(&sampling),
            rank: 0,
            workspace: write(&mut workspace),
            stats: write(&mut stats),
            update: 0,
            ..
        });
        change(&mut args);
        // SAFETY: the operands are valid, except for what the launch refuses.
        attempt(|error| unsafe { flexdraft_sample(opened.0, STREAM, &raw const args, error) })
    };
    assert_eq!(launch(&|_| ()), Ok(()));
    refused(
        launch(&|args| args.workspace.len = 1),
        FLEXDRAFT_LENGTH,
        &["`workspace` has 1 elements", "expected"],
    );
    refused(
        launch(&|args| args.logits.dtype = FLEXDRAFT_I32),
        FLEXDRAFT_DTYPE,
        &["`logits`", "i32", "f32, bf16 or f16"],
    );
    refused(launch(&|args| args.logits = ABSENT), FLEXDRAFT_NULL, &["`logits`", "f32, bf16 or f16"]);
    refused(
        launch(&|args| args.sampling.dtype = FLEXDRAFT_ROW_STATS),
        FLEXDRAFT_DTYPE,
        &["row stats", "row sampling"],
    );
    refused(launch(&|args| args.hidden = args.logits), FLEXDRAFT_VALUE, &["`rank` is 0", "`hidden`"]);
    refused(launch(&|args| args.rank = 8), FLEXDRAFT_NULL, &["`hidden`", "bf16 or f16"]);
    // Hidden layer and weight have one type, the type of logits of 16 bits.
    let (half, other) = (vec![bf16::ONE; 64], vec![f16::ONE; 64]);
    let mixed = |args: &mut FlexdraftSample| {
        (args.rank, args.hidden, args.weight) = (8, read(&half[..8]), read(&other));
    };
    refused(launch(&|args| mixed(args)), FLEXDRAFT_DTYPE, &["`weight`", "type f16, expected bf16"]);
    let mixed = |args: &mut FlexdraftSample| {
        (args.rank, args.hidden, args.weight) = (8, read(&half[..8]), read(&half));
        args.logits.dtype = FLEXDRAFT_F16;
    };
    refused(launch(&|args| mixed(args)), FLEXDRAFT_DTYPE, &["`hidden`", "type bf16, expected f16"]);
    refused(launch(&|args| args.update = 2), FLEXDRAFT_VALUE, &["`update` is 2", "0 or 1"]);
    refused(launch(&|args| args.stride = 7), FLEXDRAFT_UNSUPPORTED, &["stride"]);
    refused(launch(&|args| args.vocab = 0), FLEXDRAFT_UNSUPPORTED, &["vocabulary is 0", "2^20"]);

    // An older caller's struct has no edits.
    let (row_edits, offsets, none): (_, _, [LogitEdit; 0]) = ([RowEdits::zeroed()], [0i32; 2], []);
    let (weight, halves) = (vec![bf16::ONE; 64], [bf16::ONE; 8]);
    let edited = |args: &mut FlexdraftSample| {
        (args.row_edits, args.edit_offsets) = (read(&row_edits), read(&offsets));
        (args.edits, args.masks) = (read(&none), read(&[0u32; 0]));
    };
    assert_eq!(launch(&|args| edited(args)), Ok(()));
    let older = std::mem::offset_of!(FlexdraftSample, row_edits) as u64;
    assert_eq!(launch(&|args| (args.struct_size, args.row_edits) = (older, args.logits)), Ok(()));
    refused(launch(&|args| args.row_edits = read(&row_edits)), FLEXDRAFT_NULL, &["`edit_offsets`", "i32"]);
    refused(
        launch(&|args| args.masks = read(&[1u32])),
        FLEXDRAFT_VALUE,
        &["`row_edits` is absent", "`masks`"],
    );
    let wrong = |args: &mut FlexdraftSample| {
        edited(args);
        args.edits = read(&row_edits);
    };
    refused(launch(&|args| wrong(args)), FLEXDRAFT_DTYPE, &["`edits`", "row edits, expected logit edit"]);
    let calibrated = |args: &mut FlexdraftSample| {
        edited(args);
        (args.rank, args.hidden, args.weight) = (8, read(&halves), read(&weight));
    };
    refused(launch(&|args| calibrated(args)), FLEXDRAFT_UNSUPPORTED, &["no calibration of edited logits"]);
}

#[test]
fn parameters() {
    let params = versioned!(FlexdraftSamplingParams {
        temperature: 1.0,
        top_p: 1.0,
        min_p: 0.0,
        purpose: FLEXDRAFT_TARGET_DRAW,
        top_k: 0,
        seed: 0,
        slot: 0,
        position: 0,
        relative: 0,
        sequence: 0,
    });
    let row = |params: FlexdraftSamplingParams| {
        let mut row = FlexdraftRowSampling { words: [0; 5] };
        // SAFETY: the pointers lead to variables.
        attempt(|error| unsafe { flexdraft_row_sampling(&raw const params, &raw mut row, error) })
    };
    assert_eq!(row(params), Ok(()));
    let with = |change: &dyn Fn(&mut FlexdraftSamplingParams)| {
        let mut changed = params;
        change(&mut changed);
        row(changed)
    };
    refused(with(&|params| params.temperature = f32::NAN), FLEXDRAFT_VALUE, &["temperature", "NaN"]);
    refused(with(&|params| params.top_p = 0.0), FLEXDRAFT_VALUE, &["top-p", "0"]);
    refused(with(&|params| params.min_p = 1.5), FLEXDRAFT_VALUE, &["min-p", "1.5"]);
    refused(with(&|params| params.purpose = 9), FLEXDRAFT_VALUE, &["`purpose` is 9"]);
    refused(with(&|params| params.slot = 1 << 16), FLEXDRAFT_VALUE, &["`slot` is 65536"]);
    refused(with(&|params| params.relative = 7), FLEXDRAFT_VALUE, &["`relative` is 7"]);

    let sequence = versioned!(FlexdraftVerifySequence {
        seed: 0,
        position: 0,
        drafts: 3,
        first_target: 0,
        first_draft: 0,
        first_draft_stats: 0,
        first_token: 0,
        groups: 0,
        rule: FLEXDRAFT_BLOCK,
        draft: FLEXDRAFT_DRAFT_CHAINED,
    });
    let verify = |sequence: FlexdraftVerifySequence| {
        let mut verify = FlexdraftVerify { words: [0; 6] };
        // SAFETY: the pointers lead to variables.
        attempt(|error| unsafe { flexdraft_verify(&raw const sequence, &raw mut verify, error) })
    };
    assert_eq!(verify(sequence), Ok(()));
    refused(verify(FlexdraftVerifySequence { rule: 3, ..sequence }), FLEXDRAFT_VALUE, &["`rule` is 3"]);
    refused(verify(FlexdraftVerifySequence { draft: 3, ..sequence }), FLEXDRAFT_VALUE, &["`draft` is 3"]);
    refused(verify(FlexdraftVerifySequence { drafts: 64, ..sequence }), FLEXDRAFT_UNSUPPORTED, &["64"]);
    let far = FlexdraftVerifySequence { first_token: 1 << 31, ..sequence };
    refused(verify(far), FLEXDRAFT_OVERFLOW, &["first token"]);
}

/// An error of `flexdraft_edit_rows` leaves the tables as they were.
#[test]
fn edits() {
    let (tokens, draft, bias_ids, bias) = ([1u32, 2], [3u32], [4u32, 5], [1f32, 2.0]);
    let (bad_words, lens, allowed) = ([6u32], [1u64], [!0u32]);
    let sound = versioned!(FlexdraftEditedRows {
        vocab: 30,
        first_row: 1,
        draft_rows: 0,
        tokens: tokens.as_ptr(),
        token_count: 2,
        prompt_len: 1,
        draft: draft.as_ptr(),
        draft_count: 1,
        min_tokens: 0,
        bias_ids: bias_ids.as_ptr(),
        bias: bias.as_ptr(),
        bias_count: 2,
        bad_words: bad_words.as_ptr(),
        bad_word_lens: lens.as_ptr(),
        bad_word_count: 1,
        allowed: allowed.as_ptr(),
        repetition_penalty: 1.5,
        ..
    });
    // Two edits of bias, one penalty per id and token, and a bad word of one id in two rows.
    let (mut row_edits, mut offsets) = ([RowEdits::zeroed(); 3], [0i32; 2]);
    let (mut edits, mut masks) = ([LogitEdit::zeroed(); 7], [0u32; 1]);
    let mut push = |change: &dyn Fn(&mut FlexdraftEditedRows, &mut FlexdraftEditTables)| {
        let mut tables = versioned!(FlexdraftEditTables {
            row_edits: row_edits.as_mut_ptr().cast(),
            row_count: 3,
            offsets: offsets.as_mut_ptr(),
            offset_room: 2,
            offset_count: 0,
            edits: edits.as_mut_ptr().cast(),
            edit_room: 7,
            edit_count: 0,
            masks: masks.as_mut_ptr(),
            mask_room: 1,
            mask_count: 0,
        });
        let mut rows = sound;
        change(&mut rows, &mut tables);
        // SAFETY: the pointers lead to variables of the stated sizes, or are null.
        let pushed = attempt(|error| unsafe { flexdraft_edit_rows(&raw const rows, &raw mut tables, error) });
        let written = masks != [0];
        masks = [0];
        assert_eq!(written, pushed.is_ok());
        pushed
    };
    assert_eq!(push(&|_, _| ()), Ok(()));
    refused(push(&|rows, _| rows.vocab = 0), FLEXDRAFT_UNSUPPORTED, &["vocabulary is 0", "2^20"]);
    refused(push(&|rows, _| rows.vocab = 5), FLEXDRAFT_VALUE, &["id 5 of the logit bias", "5 ids"]);
    refused(push(&|rows, _| rows.prompt_len = 3), FLEXDRAFT_VALUE, &["`prompt_len` is 3", "at most 2"]);
    refused(push(&|rows, _| rows.draft_rows = 65), FLEXDRAFT_UNSUPPORTED, &["number of rows is 65", "64"]);
    refused(push(&|rows, _| rows.tokens = ptr::null()), FLEXDRAFT_NULL, &["`tokens`", "2 entries"]);
    refused(push(&|rows, _| rows.draft_count = u64::MAX), FLEXDRAFT_OVERFLOW, &["`draft`"]);
    refused(push(&|rows, _| rows.repetition_penalty = 0.0), FLEXDRAFT_VALUE, &["above 0, found 0"]);
    refused(push(&|rows, _| rows.presence_penalty = f32::NAN), FLEXDRAFT_VALUE, &["presence", "NaN"]);
    let twice = [4u32, 4];
    refused(
        push(&|rows, _| rows.bias_ids = twice.as_ptr()),
        FLEXDRAFT_VALUE,
        &["`bias_ids`", "each id once"],
    );
    let long = [u64::MAX, 2];
    let words = push(&|rows, _| (rows.bad_word_lens, rows.bad_word_count) = (long.as_ptr(), 2));
    refused(words, FLEXDRAFT_OVERFLOW, &["`bad_word_lens`"]);
    refused(
        push(&|rows, _| rows.first_row = 2),
        FLEXDRAFT_LENGTH,
        &["`row_edits` has room for 3", "least 4"],
    );
    refused(
        push(&|_, tables| tables.offset_count = 1),
        FLEXDRAFT_LENGTH,
        &["`offsets` has room for 2", "least 3"],
    );
    refused(push(&|_, tables| tables.edit_room = 4), FLEXDRAFT_LENGTH, &["`edits` has room for 4 entries"]);
    refused(push(&|_, tables| tables.mask_count = u64::MAX), FLEXDRAFT_OVERFLOW, &["mask"]);
    refused(push(&|_, tables| tables.masks = ptr::null_mut()), FLEXDRAFT_NULL, &["`masks`"]);
    refused(push(&|_, tables| tables.struct_size = 8), FLEXDRAFT_STRUCT_SIZE, &["FlexdraftEditTables"]);
}

#[test]
fn passes() {
    let opened = Opened::new();
    let pages = [0u32, 1];
    let pass = opened.pass(&[sequence(&pages, 3, 2, 0b1, 4)], 2, 16);
    let upload = |sequences: &[FlexdraftSequence], page_size| opened.upload(&pass, sequences, 2, page_size);
    let one = sequence(&pages, 3, 2, 0b1, 4);
    assert_eq!(upload(&[one], 16), Ok(()));
    refused(upload(&[one], 17), FLEXDRAFT_UNSUPPORTED, &["page size", "17"]);
    refused(upload(&[one, one], 16), FLEXDRAFT_PASS_ROWS, &["number of sequences is 2", "the limit is 1"]);
    refused(upload(&[sequence(&[7, 1], 3, 2, 1, 4)], 16), FLEXDRAFT_PASS_ROWS, &["page id 7", "2 pages"]);
    refused(
        upload(&[sequence(&pages, 30, 3, 0, 0)], 16),
        FLEXDRAFT_PASS_ROWS,
        &["cached positions is 33", "32"],
    );
    refused(
        upload(&[sequence(&pages, 3, 2, 0b100, 4)], 16),
        FLEXDRAFT_PASS_ROWS,
        &["group 2", "2 candidates"],
    );
    refused(upload(&[sequence(&pages, 3, 2, 0b1, 65)], 16), FLEXDRAFT_PASS_ROWS, &["number of slots is 65"]);
    let null = FlexdraftSequence { pages: ptr::null(), ..one };
    refused(upload(&[null], 16), FLEXDRAFT_NULL, &["`pages of sequence 0`", "2 entries"]);
    let endless = FlexdraftSequence { page_count: u64::MAX, ..one };
    refused(upload(&[endless], 16), FLEXDRAFT_OVERFLOW, &["pages of sequence 0"]);
    let far = FlexdraftSequence { first_group: u64::MAX, groups: 0b10, ..one };
    refused(upload(&[far], 16), FLEXDRAFT_OVERFLOW, &["first_group"]);
    let unsized_sequence = FlexdraftSequence { struct_size: 3, ..one };
    refused(upload(&[unsized_sequence], 16), FLEXDRAFT_STRUCT_SIZE, &["FlexdraftSequence", "3 bytes"]);

    // A pass of one emulator is no pass of another emulator.
    let other = Opened::new();
    let (inv_freq, mut cos_sin) = ([1f32], [0f32; 12]);
    let args = versioned!(FlexdraftRopeTable {
        pass: pass.0,
        inv_freq: read(&inv_freq),
        cos_sin: write(&mut cos_sin),
        scale: 1.0,
        ..
    });
    let launch = |opened: &Opened| {
        // SAFETY: the kernels and the pass are open, and the operands are valid.
        attempt(|error| unsafe { flexdraft_rope_table(opened.0, STREAM, &raw const args, error) })
    };
    refused(launch(&other), FLEXDRAFT_QUEUE, &["`pass`", "another processor"]);
    assert_eq!(launch(&opened), Ok(()));
    refused(other.upload(&pass, &[one], 2, 16), FLEXDRAFT_QUEUE, &["`pass`", "another processor"]);
}
