//! Edits of logits, and sampling of edited rows.

use std::ptr;
use std::sync::Arc;

use bytemuck::Zeroable;
use flexdraft::kernels::sampling::{
    EditTables, Edits, LogitEdit, LogitRows, RowEdits, RowSampling, RowStats, Sample, workspace_len,
};
use flexdraft::processors::{History, LogitProcessors};
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::sampling::sampling_row;
use super::{STREAM, bits, simt};
use crate::support::{Noise, Opened, Stored, attempt, read, versioned, write};

/// The tables of a step in the caller's memory, with more room than the step needs.
struct Tables {
    rows: Vec<RowEdits>,
    offsets: Vec<i32>,
    edits: Vec<LogitEdit>,
    masks: Vec<u32>,
    /// The numbers of used entries of the last three tables.
    used: [usize; 3],
}

impl Tables {
    fn new(rows: usize) -> Self {
        let (offsets, masks) = (vec![-7; 20], vec![7; 300]);
        let edits = vec![LogitEdit::zeroed(); 90];
        Tables { rows: vec![RowEdits::zeroed(); rows], offsets, edits, masks, used: [0; 3] }
    }

    /// Adds the edits of a sequence.
    fn push(&mut self, rows: &FlexdraftEditedRows) {
        let [offset_count, edit_count, mask_count] = self.used.map(|count| count as u64);
        let mut tables = versioned!(FlexdraftEditTables {
            row_edits: self.rows.as_mut_ptr().cast(),
            row_count: self.rows.len() as u64,
            offsets: self.offsets.as_mut_ptr(),
            offset_room: self.offsets.len() as u64,
            offset_count,
            edits: self.edits.as_mut_ptr().cast(),
            edit_room: self.edits.len() as u64,
            edit_count,
            masks: self.masks.as_mut_ptr(),
            mask_room: self.masks.len() as u64,
            mask_count,
        });
        // SAFETY: the pointers lead to variables and to tables of the stated sizes.
        attempt(|error| unsafe { flexdraft_edit_rows(rows, &raw mut tables, error) }).unwrap();
        self.used = [tables.offset_count, tables.edit_count, tables.mask_count].map(|count| count as usize);
    }
}

/// Checks that the tables of both interfaces have the same bits, and that memory behind the used entries did not change.
fn assert_same(found: &Tables, expected: &EditTables) {
    let [offsets, edits, masks] = found.used;
    assert_eq!(bits(&found.rows), bits(&expected.rows));
    assert_eq!(found.offsets[..offsets], expected.offsets);
    assert_eq!(bits(&found.edits[..edits]), bits(&expected.edits));
    assert_eq!(found.masks[..masks], expected.masks);
    assert!(found.offsets[offsets..].iter().all(|&place| place == -7));
    assert!(found.masks[masks..].iter().all(|&word| word == 7));
}

/// Samples edited rows through both interfaces, and compares logits and statistics.
fn sample_both<L: Stored>(logits: &[L], vocab: usize, rows: &[RowSampling], tables: &EditTables) {
    let (opened, kernels) = (Opened::new(), simt());
    let stream = kernels.runtime().stream();
    let stride = logits.len() / rows.len();
    let (mut expected, mut found) = (logits.to_vec(), logits.to_vec());
    let mut workspace = vec![0f32; workspace_len(rows.len(), vocab, false).unwrap()];
    let mut stats = vec![RowStats::zeroed(); rows.len()];
    let mut found_stats = stats.clone();
    let edits = Edits {
        rows: stream.view(&tables.rows),
        offsets: stream.view(&tables.offsets),
        edits: stream.view(&tables.edits),
        masks: stream.view(&tables.masks),
    };
    kernels
        .sample(
            &stream,
            Sample {
                vocab,
                stride,
                logits: LogitRows::Edit(stream.view_mut(&mut expected), edits),
                logit_index: None,
                sampling: stream.view(rows),
                starts: None,
                draft: None,
                calibration: None,
                workspace: stream.view_mut(&mut workspace),
                stats: stream.view_mut(&mut stats),
                error: None,
            },
        )
        .unwrap();
    for update in [0, 1] {
        found.copy_from_slice(logits);
        launch!(
            opened,
            flexdraft_sample,
            versioned!(FlexdraftSample {
                vocab: vocab as u64,
                stride: stride as u64,
                logits: write(&mut found),
                sampling: read(rows),
                rank: 0,
                workspace: write(&mut workspace),
                stats: write(&mut found_stats),
                update,
                row_edits: read(&tables.rows),
                edit_offsets: read(&tables.offsets),
                edits: read(&tables.edits),
                masks: read(&tables.masks),
                ..
            })
        );
        assert_ne!(bits(&found), bits(logits));
        assert_eq!((bits(&found), bits(&found_stats)), (bits(&expected), bits(&stats)));
    }
}

#[test]
fn edited_logits() {
    let mut noise = Noise(12);
    for case in 0..4 {
        // Two chunks of 1024 ids in some cases, and one in others.
        let (vocab, drafts, draft_rows) = (1000 + noise.below(90), noise.below(3), 2);
        let (words, rows) = (vocab.div_ceil(32), drafts + 1 + draft_rows);
        let ids =
            |noise: &mut Noise, len| -> Vec<u32> { (0..len).map(|_| noise.below(vocab) as u32).collect() };
        let (tokens, draft, stop_ids) = (ids(&mut noise, 6), ids(&mut noise, drafts), ids(&mut noise, 2));
        let allowed: Vec<u32> = (0..words).map(|_| noise.next() as u32 | 1).collect();
        let by_row: Vec<u32> = (0..draft_rows * words).map(|_| noise.next() as u32 | 1).collect();
        let processors = LogitProcessors {
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            presence_penalty: 0.1,
            logit_bias: ids(&mut noise, 3).into_iter().zip([0.5, -1.0, 2.0]).collect(),
            min_tokens: 5,
            bad_words: vec![ids(&mut noise, 1), vec![tokens[5], 17]],
            allowed: (case % 2 == 0).then(|| Arc::from(allowed.clone())),
        };
        let history = History { tokens: &tokens, prompt_len: 2, draft: &draft, stop_ids: &stop_ids };
        let mut expected = EditTables::new(rows);
        expected.push(0, drafts + 1, &processors.edits(history, vocab), vocab).unwrap();
        let mut of_draft = processors.draft_edits();
        of_draft.allow_by_row(by_row.clone(), vocab);
        expected.push(drafts + 1, draft_rows, &of_draft, vocab).unwrap();

        let (bias_ids, bias): (Vec<u32>, Vec<f32>) = processors.logit_bias.iter().unzip();
        let (bad_words, lens) = (processors.bad_words.concat(), [1u64, 2]);
        let of_target = versioned!(FlexdraftEditedRows {
            vocab: vocab as u64,
            first_row: 0,
            draft_rows: 0,
            tokens: tokens.as_ptr(),
            token_count: tokens.len() as u64,
            prompt_len: 2,
            draft: draft.as_ptr(),
            draft_count: drafts as u64,
            stop_ids: stop_ids.as_ptr(),
            stop_count: stop_ids.len() as u64,
            min_tokens: 5,
            bias_ids: bias_ids.as_ptr(),
            bias: bias.as_ptr(),
            bias_count: bias.len() as u64,
            bad_words: bad_words.as_ptr(),
            bad_word_lens: lens.as_ptr(),
            bad_word_count: 2,
            allowed: if case % 2 == 0 { allowed.as_ptr() } else { ptr::null() },
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            presence_penalty: 0.1,
            ..
        });
        let mut found = Tables::new(rows);
        found.push(&of_target);
        found.push(&FlexdraftEditedRows {
            first_row: drafts as u64 + 1,
            draft_rows: draft_rows as u64,
            allowed_by_row: by_row.as_ptr(),
            ..of_target
        });
        assert_same(&found, &expected);

        let sampling: Vec<_> =
            (0..rows).map(|slot| sampling_row(FLEXDRAFT_DRAFT_DRAW, slot as u64 + 1, 0.8).0).collect();
        sample_both(&noise.floats(rows * 1096), vocab, &sampling, &expected);
        sample_both(&noise.rounded::<bf16>(rows * 1096), vocab, &sampling, &expected);
        sample_both(&noise.rounded::<f16>(rows * 1096), vocab, &sampling, &expected);
    }
}
