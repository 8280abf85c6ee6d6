//! Tests of errors in the tensors of a GGUF file: their shapes, types and offsets.

use flexdraft::model::inspect::Report;

use super::target;
use crate::support::bounds::within;
use crate::support::gguf::{File, TensorInfo, Value};

#[test]
fn tensors_that_do_not_fit() {
    let edit = |name: &str, edit: &dyn Fn(&mut TensorInfo)| {
        let mut file = File::llama();
        edit(file.tensor(name));
        target(&file)
    };
    let invalid = |reason: &str| format!("is not a valid GGUF file: tensor `blk.0.ffn_up.weight` {reason}");
    let up = "blk.0.ffn_up.weight";
    assert_eq!(
        edit(up, &|t| t.shape = vec![8, 12]),
        "tensor `blk.0.ffn_up.weight` has shape [8, 12], expected [12, 8]"
    );
    assert_eq!(edit(up, &|t| t.shape = vec![1; 5]), invalid("has 5 dimensions, expected at most 4"));
    let beyond = invalid("goes beyond the end of the file; it may be truncated");
    assert_eq!(edit(up, &|t| t.shape = vec![1 << 30, 8]), beyond);
    assert_eq!(edit(up, &|t| t.offset = 1 << 40), beyond);
    assert_eq!(edit(up, &|t| t.offset = u64::MAX - 31), beyond);
    let too_large = invalid("has more elements than fit into memory");
    assert_eq!(edit(up, &|t| t.shape = vec![u64::MAX, 8]), too_large);
    assert_eq!(edit(up, &|t| t.shape = vec![1 << 40, 1 << 40, 8]), too_large);
    assert_eq!(edit(up, &|t| t.offset = 33), invalid("begins at byte 33, expected a multiple of 32"));
    assert_eq!(edit(up, &|t| t.kind = 8), invalid("has rows of 8 elements, expected whole blocks"));
    let overlap = "is not a valid GGUF file: tensors `token_embd.weight` and `blk.0.ffn_up.weight` overlap";
    assert_eq!(edit(up, &|t| t.offset = 0), overlap);

    let supported = "supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS";
    for (kind, name) in [
        (9, "Q8_1"),
        (16, "IQ2_XXS"),
        (39, "MXFP4"),
        (26, "I32"),
        (4, "number 4"),
        (u32::MAX, "number 4294967295"),
    ] {
        let expected = format!("tensor `blk.0.ffn_up.weight` has type {name}; {supported}");
        assert_eq!(edit(up, &|t| t.kind = kind), expected);
    }

    assert_eq!(
        edit(up, &|t| t.name = "blk.0.ffn_gate.weight".into()),
        "tensor `blk.0.ffn_gate.weight` occurs more than once"
    );
    assert_eq!(edit(up, &|t| t.name = "up".into()), "tensor `blk.0.ffn_up.weight` is missing");
    assert_eq!(edit("token_embd.weight", &|t| t.name = "e".into()), "tensor `token_embd.weight` is missing");
    assert_eq!(
        edit("token_embd.weight", &|t| t.shape = vec![32]),
        "is not a valid GGUF file: tensor `token_embd.weight` has shape [32], expected [vocabulary, hidden size]"
    );
    for extra in ["blk.0.attn_output.bias", "blk.0.ffn_gate_inp.weight", "blk.1.attn_q.weight"] {
        let mut file = File::llama();
        file.add(extra, &[8]);
        assert_eq!(
            target(&file),
            format!("tensor `{extra}` is not part of a llama model, which the metadata declares")
        );
    }
}

/// Loading ends with the first error; the inspection report lists all errors.
#[test]
fn a_report_names_everything_that_is_wrong() {
    let mut file = File::llama();
    file.tensor("blk.0.ffn_up.weight").shape = vec![8, 12];
    file.tensor("blk.0.attn_k.weight").kind = 16;
    file.tensors.retain(|tensor| tensor.name != "output_norm.weight");
    file.add("blk.7.extra.weight", &[2]);
    let offset = file.tensor("blk.0.attn_norm.weight").offset as usize;
    file.data[offset + 4..offset + 8].copy_from_slice(&f32::NAN.to_le_bytes());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let report = Report::read(&path, None).unwrap();
    assert!(!report.is_sound());
    let problems: Vec<String> = report.target.problems.iter().map(ToString::to_string).collect();
    let named = [
        "`blk.0.attn_k.weight` has type IQ2_XXS",
        "`blk.0.ffn_up.weight` has shape [8, 12], expected [12, 8]",
        "`output_norm.weight` is missing",
        "`blk.7.extra.weight`",
    ];
    assert_eq!(problems.len(), named.len(), "{problems:#?}");
    for (problem, named) in problems.iter().zip(named) {
        assert!(problem.contains(named), "{problem}");
    }
    assert_eq!(report.target.non_finite, [("blk.0.attn_norm.weight".to_owned(), 1)]);
    assert_eq!(report.target.unused, ["blk.7.extra.weight"]);
    // SAFETY: no process writes to the file while it is mapped.
    let mapped = unsafe { Report::map(&path, None) }.unwrap();
    assert_eq!(mapped.to_string(), report.to_string());
}

/// A report counts the elements that are not finite block by block: no allocation comes near the size of a tensor's
/// elements, whether a device computes with the blocks (Q4_0) or not (IQ4_NL).
#[test]
fn a_report_dequantises_no_whole_tensor() {
    const INTERMEDIATE: u64 = 1 << 17;
    const ELEMENTS: usize = 32 * INTERMEDIATE as usize;
    for kind in [2, 20] {
        let whole = File::llama();
        let mut file = File { tensors: Vec::new(), data: Vec::new(), ..whole.clone() };
        file.set("llama.embedding_length", Value::U32(32));
        file.set("llama.feed_forward_length", Value::U32(INTERMEDIATE as u32));
        for TensorInfo { name, shape, .. } in whole.tensors {
            let size = |&len: &u64| match len {
                8 => 32,
                4 if !name.starts_with("token_embd") => 16,
                12 => INTERMEDIATE,
                other => other,
            };
            let shape: Vec<u64> = shape.iter().map(size).collect();
            if shape.contains(&INTERMEDIATE) || name.contains("attn_q") {
                // Both formats have blocks of 32 elements in 18 bytes, which begin with the scale in f16.
                let mut blocks = vec![0; shape.iter().product::<u64>() as usize / 32 * 18];
                if name.contains("ffn_up") {
                    blocks[18 * 1000..][..2].copy_from_slice(&[0x00, 0x7e]);
                }
                file.add_bytes(&name, &shape, kind, &blocks);
            } else {
                file.add(&name, &shape);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        within(file.data.len(), ELEMENTS / 2, move || {
            // SAFETY: no process writes to the file while it is mapped.
            let report = unsafe { Report::map(&path, None) }.unwrap();
            assert!(report.target.problems.is_empty(), "{report}");
            assert!(report.target.parameters() > 3 * ELEMENTS);
            assert_eq!(report.target.non_finite, [("blk.0.ffn_up.weight".to_owned(), 32)]);
        });
    }
}
