//! Tests that the C example compiles as it stands, runs, and prints what the Rust wrappers compute on the same data.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::activation::SiluAdd;
use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups, SelectDrafts};
use flexdraft::kernels::{
    KernelError, Kernels, KvStrides, PagedKv, PagedKvMut, Paging, PassTables, ScoreChanges,
};
use flexdraft::layout::{AttentionShape, GroupSet, Pass, RowKind, SequenceRows};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::{Simt, SimtOptions, SimtStream};
use flexdraft::sampling::SamplingParams;
use half::bf16;

const START: usize = 20;
const DRAFTS: usize = 2;
const CANDIDATES: usize = DRAFTS + 1;
const SLOTS: usize = 4;
const ROWS: usize = CANDIDATES + CANDIDATES * SLOTS;
const NEXT: usize = SLOTS - 1;
const HIDDEN: usize = 128;
const VOCAB: usize = 50;
const STRIDE: usize = 56;
const RANK: usize = 8;

/// The example's generator of numbers.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((self.0 >> 24) as i32 - 128) as f32 / 64.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    fn bf16s(&mut self, len: usize) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f32(self.next())).collect()
    }
}

fn product(x: &[bf16], weight: &[bf16], depth: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.len() / depth * stride];
    for (x, out) in x.chunks(depth).zip(out.chunks_mut(stride)) {
        for (weight, out) in weight.chunks(depth).zip(out) {
            let mut sum = 0f32;
            for (x, weight) in x.iter().zip(weight) {
                sum += x.to_f32() * weight.to_f32();
            }
            *out = sum / 8.0;
        }
    }
    out
}

fn hash<T: bytemuck::Pod>(data: &[T]) -> u64 {
    let bytes: &[u8] = bytemuck::cast_slice(data);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Returns the sampling of rows with these slots and positions, for one purpose.
fn samplings(purpose: Purpose, rows: impl Iterator<Item = (usize, usize)>) -> Vec<RowSampling> {
    let params = SamplingParams { temperature: 0.9, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let row =
        |(slot, position)| RowSampling::new(&params, Some(Stream::new(7, purpose, slot, position))).unwrap();
    rows.map(row).collect()
}

/// Samples rows of logits, which the calibrated logits replace if there is a calibrator.
fn sample(
    kernels: &Kernels<Simt>,
    stream: &SimtStream,
    logits: &mut [f32],
    rows: &[RowSampling],
    calibration: Option<Calibration<'_>>,
) -> Result<Vec<RowStats>, KernelError> {
    let mut workspace = vec![0f32; workspace_len(rows.len(), VOCAB, calibration.is_some())?];
    let mut stats = vec![RowStats::zeroed(); rows.len()];
    kernels.sample(
        stream,
        Sample {
            vocab: VOCAB,
            stride: STRIDE,
            logits: LogitRows::Update(stream.view_mut(logits)),
            logit_index: None,
            sampling: stream.view(rows),
            starts: None,
            draft: None,
            calibration,
            workspace: stream.view_mut(&mut workspace),
            stats: stream.view_mut(&mut stats),
            error: None,
        },
    )?;
    Ok(stats)
}

/// Returns what the example prints, computed by the Rust wrappers.
pub fn expected() -> Result<String, KernelError> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let (runtime, stream) = (kernels.runtime(), kernels.runtime().stream());
    let mut numbers = Numbers(1);
    let mut text = String::new();
    let shape = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 };
    let paging = Paging { pages: 3, page_size: 16 };
    let rows = SequenceRows {
        pages: &[2, 0],
        start: START,
        candidates: CANDIDATES,
        groups: (0..CANDIDATES).collect(),
        slots: SLOTS,
    };
    let mut pass = PassTables::new(runtime, &stream, 1, 2)?;
    pass.upload(runtime, &stream, &Pass { sequences: vec![rows] }, paging)?;

    let cached = paging.pages * paging.page_size * 64;
    let mut qkv = numbers.bf16s(ROWS * shape.qkv_cols());
    let (mut k, mut v) = (numbers.bf16s(cached), numbers.bf16s(cached));
    let inv_freq: Vec<f32> = (0..32).map(|i| 1.0 / (1 + i) as f32).collect();
    let mut cos_sin = vec![0f32; ROWS * 64];
    kernels.rope_table(
        &stream,
        &RopeTable {
            pass: &pass,
            inv_freq: stream.view(&inv_freq),
            scale: 1.0,
            cos_sin: stream.view_mut(&mut cos_sin),
        },
    )?;
    let strides = KvStrides::token_major(16, 1, 64);
    for kind in [RowKind::Candidates, RowKind::Masks] {
        kernels.norm_rope_append(
            &stream,
            &NormRopeAppend {
                pass: &pass,
                kind,
                qkv: stream.view_mut(&mut qkv).into(),
                cos_sin: stream.view(&cos_sin),
                norms: None,
                eps: 1e-6,
                cache: PagedKvMut {
                    k: stream.view_mut(&mut k),
                    v: stream.view_mut(&mut v),
                    k_strides: strides,
                    v_strides: strides,
                },
                shape,
                error: None,
            },
        )?;
    }
    let needed = kernels.attention_workspace_len(&pass, true, ROWS, shape, DEFAULT_SPLIT).unwrap();
    let (mut workspace, mut out) = (vec![0u64; needed.div_ceil(2)], vec![bf16::ZERO; ROWS * HIDDEN]);
    kernels.joint_attention(
        &stream,
        &JointAttention {
            pass: &pass,
            masks: true,
            qkv: stream.view(&qkv).into(),
            cache: PagedKv { k: stream.view(&k), v: stream.view(&v), k_strides: strides, v_strides: strides },
            out: stream.view_mut(&mut out),
            lse: None,
            workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
            shape,
            split: DEFAULT_SPLIT,
            scores: ScoreChanges::default(),
            error: None,
        },
    )?;
    writeln!(text, "attention {:016x}", hash(&out)).unwrap();

    let head = numbers.bf16s(VOCAB * HIDDEN);
    let mut draft = numbers.floats(DRAFTS * STRIDE);
    let draft_rows = samplings(Purpose::DraftDraw, (1..=DRAFTS).map(|slot| (slot, START)));
    let draft_stats = sample(&kernels, &stream, &mut draft, &draft_rows, None)?;
    let tokens: Vec<i32> = draft_stats.iter().map(|row| row.token).collect();
    let mut target = product(&out[..CANDIDATES * HIDDEN], &head, HIDDEN, STRIDE);
    let target_rows = samplings(Purpose::TargetDraw, (0..CANDIDATES).map(|i| (0, START + i + 1)));
    let target_stats = sample(&kernels, &stream, &mut target, &target_rows, None)?;
    let groups = GroupSet::all(DRAFTS);
    let verify = Verify::new(&VerifySequence {
        rule: Rule::Rejection,
        seed: 7,
        position: START,
        drafts: DRAFTS,
        first_target: 0,
        first_draft: Some(0),
        first_token: 0,
        groups,
    })?;
    let mut workspace = vec![0u64; accept_workspace_len(1, VOCAB).unwrap()];
    let (mut verdicts, mut committed) = ([Verdict::zeroed()], [0; MAX_COMMITTED]);
    kernels.accept(
        &stream,
        &Accept {
            vocab: VOCAB,
            stride: STRIDE,
            sequences: stream.view(&[verify]),
            any_block: false,
            tokens: stream.view(&tokens),
            target: SampledRows { logits: stream.view(&target), stats: stream.view(&target_stats) },
            target_partials: None,
            draft: Some(DraftDistributions {
                logits: Some(stream.view(&draft)),
                chosen: None,
                stats: stream.view(&draft_stats),
            }),
            workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
            arrived: stream.view_mut(&mut [0]),
            verdicts: stream.view_mut(&mut verdicts),
            committed: stream.view_mut(&mut committed),
            error: None,
        },
    )?;
    let Verdict { accepted, bonus, cached_length, .. } = verdicts[0];
    writeln!(text, "accepted {accepted} of {DRAFTS}, bonus {bonus}, cached {cached_length}").unwrap();
    let list = |tokens: &[i32]| tokens.iter().map(|token| format!(" {token}")).collect::<String>();
    writeln!(text, "committed{}", list(&committed[..=accepted as usize])).unwrap();

    let (first_slot, first_draft) = (CANDIDATES, 0);
    let next_draft = Draft::new(&DraftGroups { sequence: 0, groups, first_slot, slots: SLOTS, first_draft })?;
    let (mut bonus, mut starts, mut sources, mut draft_rows) = ([0], [0], [0; NEXT], [0; NEXT]);
    kernels.select_drafts(
        &stream,
        &SelectDrafts {
            drafts: stream.view(&[next_draft]),
            verdicts: stream.view(&verdicts),
            bonus: stream.view_mut(&mut bonus),
            starts: stream.view_mut(&mut starts),
            sources: stream.view_mut(&mut sources),
            draft_rows: stream.view_mut(&mut draft_rows),
            error: None,
        },
    )?;
    let (mut slots, mut embedding) = (vec![bf16::ZERO; NEXT * HIDDEN], vec![bf16::ZERO; HIDDEN]);
    kernels.gather(
        &stream,
        &Gather {
            indices: stream.view(&sources),
            x: stream.view(&out),
            out: stream.view_mut(&mut slots),
            error: None,
            cols: HIDDEN,
        },
    )?;
    kernels.embed(
        &stream,
        &Embed {
            ids: stream.view(&bonus),
            table: stream.view(&head),
            out: stream.view_mut(&mut embedding),
            error: None,
            cols: HIDDEN,
        },
    )?;
    let (w1, w2) = (numbers.bf16s(2 * RANK * HIDDEN), numbers.bf16s(VOCAB * RANK));
    let b2 = numbers.floats(VOCAB);
    let rounded = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (of_bonus, of_slots) = w1.split_at(RANK * HIDDEN);
    let bonus_half = rounded(product(&embedding, of_bonus, HIDDEN, RANK));
    let mut hidden = rounded(product(&slots, of_slots, HIDDEN, RANK));
    kernels.silu_add(
        &stream,
        &SiluAdd {
            x: stream.view_mut(&mut hidden),
            bonus: stream.view(&bonus_half),
            owner: stream.view(&[0; NEXT]),
            error: None,
            cols: RANK,
        },
    )?;
    let mut next = product(&slots, &head, HIDDEN, STRIDE);
    let next_rows = samplings(Purpose::DraftDraw, (1..=NEXT).map(|slot| (slot, starts[0] as usize)));
    let calibration = Calibration {
        rank: RANK,
        hidden: stream.view(&hidden).into(),
        weight: stream.view(&w2).into(),
        bias: Some(stream.view(&b2)),
    };
    let next_stats = sample(&kernels, &stream, &mut next, &next_rows, Some(calibration))?;
    writeln!(text, "calibrated {:016x}", hash(&next)).unwrap();
    let tokens: Vec<i32> = next_stats.iter().map(|row| row.token).collect();
    writeln!(text, "next draft{}", list(&tokens)).unwrap();
    Ok(text)
}

#[test]
fn the_c_example_computes_a_step() {
    let program = crate::support::folder("example").join("step");
    // Cargo puts the library beside the test programs.
    let libraries = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(libraries.join("libflexdraft_ffi.so").exists(), "no library in {}", libraries.display());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/step.c");
    let (libraries, out) = (libraries.display(), program.display());
    let arguments = [
        &format!("-L{libraries}"),
        "-lflexdraft_ffi",
        &format!("-Wl,-rpath,{libraries}"),
        "-o",
        &out.to_string(),
    ];
    crate::support::compile("CC", "cc", &[&["-std=c11"][..], &arguments].concat(), &source).unwrap();
    let output = Command::new(&program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, expected().unwrap());
    assert_eq!(printed.lines().count(), 5);
}
