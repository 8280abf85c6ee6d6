//! Tests of the C interface on the SIMT emulator, called as from C.

#![allow(missing_docs)]

use std::ffi::CStr;
use std::ptr;

use flexdraft_ffi::*;
use half::bf16;

fn simt() -> *mut Bridge {
    // SAFETY: with zero bytes of room for an error, nothing is written.
    let bridge = unsafe { flexdraft_open(-1, ptr::null_mut(), 0) };
    assert!(!bridge.is_null());
    bridge
}

fn error(bridge: *const Bridge) -> String {
    // SAFETY: the bridge is open.
    unsafe { CStr::from_ptr(flexdraft_error(bridge)) }.to_string_lossy().into_owned()
}

fn layout(page_ids: &[u32]) -> PassLayout {
    PassLayout {
        page_ids: page_ids.as_ptr(),
        batch: 1,
        pages_each: page_ids.len() as u64,
        pages: 1,
        page_size: 16,
        start: 0,
        candidates: 1,
        groups: 0,
        slots: 0,
    }
}

#[test]
fn a_candidate_at_position_0_sees_itself() {
    let bridge = simt();
    let (qkv, cache) = (vec![bf16::ONE; 3 * 64], vec![bf16::from_f32(0.5); 16 * 64]);
    let mut out = vec![bf16::ZERO; 64];
    let elements = flexdraft_attention_workspace(1, 64, 1, 1);
    let mut workspace = vec![0u64; elements as usize / 2 + 1];
    // SAFETY: all memory has the stated sizes, and lives until the end.
    unsafe {
        let pass = flexdraft_pass(bridge, 0, &layout(&[0]));
        assert!(!pass.is_null(), "{}", error(bridge));
        let operands = AttentionOperands {
            qkv: qkv.as_ptr() as u64,
            k: cache.as_ptr() as u64,
            v: cache.as_ptr() as u64,
            out: out.as_mut_ptr() as u64,
            workspace: workspace.as_mut_ptr() as u64,
            workspace_len: elements,
            q_heads: 1,
            kv_heads: 1,
            head_dim: 64,
        };
        assert_eq!(flexdraft_attention(bridge, 0, pass, &operands), 0, "{}", error(bridge));
        assert_eq!(out, [bf16::from_f32(0.5); 64]);

        let wrong = AttentionOperands { workspace_len: 1, ..operands };
        assert_ne!(flexdraft_attention(bridge, 0, pass, &wrong), 0);
        assert!(error(bridge).contains("workspace"), "{}", error(bridge));
        flexdraft_pass_free(pass);
        flexdraft_close(bridge);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let bridge = simt();
    // SAFETY: the layout's page ids exist, and the text has room.
    unsafe {
        assert!(flexdraft_pass(bridge, 0, &layout(&[1])).is_null());
        assert!(error(bridge).contains("page id"), "{}", error(bridge));
        flexdraft_close(bridge);
        // No machine has a CUDA device with the number `i32::MAX`.
        let mut text = [1; 32];
        assert!(flexdraft_open(i32::MAX, text.as_mut_ptr(), text.len()).is_null());
        assert!(text.contains(&0) && text[0] != 0);
    }
}

#[test]
fn sampled_and_accepted() {
    const VOCAB: usize = 64;
    let bridge = simt();
    // The logits make the target draw tokens 3 and 5; the draft token is 3, so it is accepted.
    let mut target = vec![0f32; 2 * VOCAB];
    (target[3], target[VOCAB + 5]) = (200.0, 200.0);
    let mut draft = vec![0f32; VOCAB];
    draft[3] = 1.0;
    let bytes = |what| flexdraft_bytes(what) as usize;
    let words = |bytes: usize| vec![0u64; bytes.div_ceil(8)];
    let rule = SamplingRule { seed: 1, position: 7, temperature: 1.0, top_p: 1.0, top_k: 0 };
    // SAFETY: all memory has the stated sizes, and lives until the end.
    unsafe {
        let sample = |logits: &mut [f32]| {
            let rows = logits.len() / VOCAB;
            let (mut sampling, mut stats) = (words(rows * bytes(0)), words(rows * bytes(1)));
            let status = flexdraft_row_sampling(bridge, &rule, rows as u64, sampling.as_mut_ptr().cast());
            assert_eq!(status, 0, "{}", error(bridge));
            let elements = flexdraft_sample_workspace(rows as u64, VOCAB as u64, 0);
            let mut workspace = vec![0f32; elements as usize];
            let operands = SampleOperands {
                logits: logits.as_mut_ptr() as u64,
                sampling: sampling.as_ptr() as u64,
                hidden: 0,
                weight: 0,
                bias: 0,
                workspace: workspace.as_mut_ptr() as u64,
                workspace_len: elements,
                stats: stats.as_mut_ptr() as u64,
                rows: rows as u64,
                vocab: VOCAB as u64,
                stride: VOCAB as u64,
                rank: 0,
            };
            assert_eq!(flexdraft_sample(bridge, 0, &operands), 0, "{}", error(bridge));
            stats
        };
        let (target_stats, draft_stats) = (sample(&mut target), sample(&mut draft));
        let mut sequences = words(bytes(2));
        let verify = VerifyRule { rule: 1, seed: 1, position: 7, drafts: 1 };
        assert_eq!(flexdraft_verify(bridge, &verify, 1, sequences.as_mut_ptr().cast()), 0);
        let elements = flexdraft_accept_workspace(1, VOCAB as u64);
        let mut workspace = words(4 * elements as usize);
        let (tokens, mut arrived, mut verdicts) = ([3i32], [0u32], words(bytes(3)));
        let mut committed = [0i32; 64];
        let operands = AcceptOperands {
            sequences: sequences.as_ptr() as u64,
            tokens: tokens.as_ptr() as u64,
            target: target.as_ptr() as u64,
            target_stats: target_stats.as_ptr() as u64,
            draft: draft.as_ptr() as u64,
            draft_stats: draft_stats.as_ptr() as u64,
            workspace: workspace.as_mut_ptr() as u64,
            workspace_len: elements,
            arrived: arrived.as_mut_ptr() as u64,
            verdicts: verdicts.as_mut_ptr() as u64,
            committed: committed.as_mut_ptr() as u64,
            batch: 1,
            drafts: 1,
            vocab: VOCAB as u64,
            stride: VOCAB as u64,
            block: 0,
        };
        assert_eq!(flexdraft_accept(bridge, 0, &operands), 0, "{}", error(bridge));
        assert_eq!(committed[..3], [3, 5, -1]);
        flexdraft_close(bridge);
    }
}
