//! The kernels on a GPU against the same kernels on the SIMT host, and the decode loop on the GPU.
//!
//! Without a GPU (or without device code in the build) the second host is the SIMT host under another
//! schedule, so that what is compared, and how, is tested everywhere; the decode loop is skipped loudly.
//! `FLEXDRAFT_REQUIRE_GPU=1` makes a missing GPU an error.

#![cfg(all(feature = "runner", feature = "simt"))]
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
#[path = "../common/mod.rs"]
mod common;

use bench::{Bench, cuda, foreign, halves, noise, simt};
use bytemuck::Zeroable;
use common::models::Spec;
use common::runs::run;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flexdraft::acceptance::Rule;
use flexdraft::backend::simt::{Checking, Copies};
use flexdraft::backend::{Backend, SimtOptions};
use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
use flexdraft::device::gpu::Gpu;
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::glue::{
    Add, Embed, Gather, NormRopeAppend, Residual, RmsNorm, RopeTable, SiluAdd, SiluMul,
};
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{KvStrides, PagedKv, PagedKvMut, Paging, PassTables};
use flexdraft::layout::{AttentionShape, GroupSet, Pass, RowKind, SequenceRows};
use flexdraft::model::Model;
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;
use half::bf16;

/// Runs a case on the SIMT host and on the other machine.
fn compare<T>(case: impl Case<Output = T>, same: impl Fn(&T, &T)) {
    let expected = case.run(&simt(SimtOptions::default()));
    let other = SimtOptions { checking: Checking::Off, copies: Copies::Late, schedule: 3 };
    same(&expected, &case.run(&simt(other)));
    if let Some(gpu) = cuda() {
        let found = case.run(&gpu);
        same(&expected, &found);
        same(&found, &case.run(&foreign(&gpu)));
    }
}

/// What is compared, on any backend.
trait Case {
    type Output;
    fn run<B: Backend>(&self, bench: &Bench<B>) -> Self::Output;
}

/// That values differ by rounding only: relative to the largest of them, which sums are made of.
fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |most, x| most.max(x.abs())).max(1e-3);
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(error <= tolerance || found == expected, "{name}: element {i} is {found}, not {expected}");
    }
}

fn f32s(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

struct Glue;

impl Case for Glue {
    type Output = (Vec<bf16>, Vec<f32>);

    fn run<B: Backend>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let backend = kernels.backend();
        let (rows, cols) = (5, 328);
        let table = bench.memory(&halves(1, 7 * cols));
        let ids = bench.memory(&[3i32, 0, 6, 6, 1]);
        let mut out = bench.memory(&vec![bf16::ZERO; rows * cols]);
        let read = |m| backend.view(stream, m);
        kernels
            .embed(
                stream,
                &Embed {
                    ids: backend.view(stream, &ids),
                    table: read(&table),
                    out: backend.view_mut(stream, &mut out),
                    error: None,
                    cols,
                },
            )
            .unwrap();
        let mut exact = bench.host(&out, rows * cols);
        kernels
            .gather(
                stream,
                &Gather {
                    indices: backend.view(stream, &ids),
                    x: read(&table),
                    out: backend.view_mut(stream, &mut out),
                    error: None,
                    cols,
                },
            )
            .unwrap();
        exact.extend(bench.host(&out, rows * cols));
        let delta = bench.memory(&halves(2, rows * cols));
        kernels.add(stream, &Add { x: backend.view_mut(stream, &mut out), delta: read(&delta) }).unwrap();
        exact.extend(bench.host(&out, rows * cols));

        let weight = bench.memory(&noise(3, cols));
        let mut normed = bench.memory(&vec![bf16::ZERO; rows * cols]);
        kernels
            .rms_norm(
                stream,
                &RmsNorm {
                    x: Residual::Add { x: backend.view_mut(stream, &mut out), delta: read(&delta) },
                    weight: backend.view(stream, &weight),
                    out: backend.view_mut(stream, &mut normed),
                    eps: 1e-5,
                },
            )
            .unwrap();
        let mut near = f32s(&bench.host(&normed, rows * cols));
        let wide = bench.memory(&halves(4, rows * 2 * cols));
        kernels
            .silu_mul(stream, &SiluMul { x: read(&wide), out: backend.view_mut(stream, &mut normed), cols })
            .unwrap();
        near.extend(f32s(&bench.host(&normed, rows * cols)));
        kernels
            .silu_add(
                stream,
                &SiluAdd {
                    x: backend.view_mut(stream, &mut normed),
                    bonus: read(&table),
                    owner: backend.view(stream, &ids),
                    error: None,
                    cols,
                },
            )
            .unwrap();
        near.extend(f32s(&bench.host(&normed, rows * cols)));
        (exact, near)
    }
}

#[test]
fn glue() {
    compare(Glue, |(exact, near), (other_exact, other_near)| {
        assert!(exact == other_exact, "copies and sums are exact");
        close("glue", other_near, near, 1.0 / 128.0);
    });
}

struct Attention {
    shape: AttentionShape,
    page_size: usize,
    split: usize,
    head_major: bool,
}

impl Case for Attention {
    /// q and k after the rotation, the cache, the attention's output and its log-sum-exp.
    type Output = [Vec<f32>; 4];

    fn run<B: Backend>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let backend = kernels.backend();
        let Attention { shape, page_size, split, head_major } = *self;
        let sequences = [(300usize, 4usize, vec![0, 2, 3], 5usize), (63, 1, vec![], 0), (17, 0, vec![2], 16)];
        let mut next = 0u32;
        let pages: Vec<Vec<u32>> = sequences
            .iter()
            .map(|(start, ..)| {
                (0..(start + 8).div_ceil(page_size))
                    .map(|_| {
                        next += 1;
                        next
                    })
                    .collect()
            })
            .collect();
        let page_count = next as usize + 1;
        let layout = Pass {
            sequences: sequences
                .iter()
                .zip(&pages)
                .map(|((start, candidates, groups, slots), pages)| SequenceRows {
                    pages,
                    start: *start,
                    candidates: *candidates,
                    groups: groups.clone(),
                    slots: *slots,
                })
                .collect(),
        };
        let mut tables = PassTables::new(backend, stream, 3, pages[0].len()).unwrap();
        tables.upload(backend, stream, &layout, Paging { pages: page_count, page_size }).unwrap();
        let rows = tables.rows() + 1;
        let head_dim = shape.head_dim;
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let inv_freq = bench.memory(&inv_freq);
        let mut turns = bench.memory(&vec![0f32; rows * head_dim]);
        kernels
            .rope_table(
                stream,
                &RopeTable {
                    pass: &tables,
                    inv_freq: backend.view(stream, &inv_freq),
                    scale: 1.0,
                    turns: backend.view_mut(stream, &mut turns),
                },
            )
            .unwrap();
        let strides = match head_major {
            true => KvStrides::head_major(page_size, shape.kv_heads, head_dim),
            false => KvStrides::token_major(page_size, shape.kv_heads, head_dim),
        };
        let cached = page_count * page_size * shape.kv_heads * head_dim;
        let (mut k, mut v) = (bench.memory(&halves(1, cached)), bench.memory(&halves(2, cached)));
        let mut qkv = bench.memory(&halves(3, rows * shape.qkv_cols()));
        let (q_norm, k_norm) = (bench.memory(&noise(4, head_dim)), bench.memory(&noise(5, head_dim)));
        for kind in [RowKind::Candidates, RowKind::Masks] {
            kernels
                .norm_rope_append(
                    stream,
                    &NormRopeAppend {
                        pass: &tables,
                        kind,
                        qkv: backend.view_mut(stream, &mut qkv),
                        turns: backend.view(stream, &turns),
                        norms: Some((backend.view(stream, &q_norm), backend.view(stream, &k_norm))),
                        eps: 1e-6,
                        cache: PagedKvMut {
                            k: backend.view_mut(stream, &mut k),
                            v: backend.view_mut(stream, &mut v),
                            k_strides: strides,
                            v_strides: strides,
                        },
                        shape,
                        error: None,
                    },
                )
                .unwrap();
        }
        let mut out = bench.memory(&vec![bf16::ONE; rows * shape.out_cols()]);
        let mut lse = bench.memory(&vec![0f32; rows * shape.q_heads]);
        let needed = attention_workspace_len(shape, rows, tables.longest(), split).unwrap();
        let mut workspace = bench.memory(&vec![f32::NAN; needed]);
        kernels
            .joint_attention(
                stream,
                &JointAttention {
                    pass: &tables,
                    masks: true,
                    qkv: backend.view(stream, &qkv),
                    cache: PagedKv {
                        k: backend.view(stream, &k),
                        v: backend.view(stream, &v),
                        k_strides: strides,
                        v_strides: strides,
                    },
                    out: backend.view_mut(stream, &mut out),
                    lse: Some(backend.view_mut(stream, &mut lse)),
                    workspace: backend.view_mut(stream, &mut workspace),
                    shape,
                    split,
                    error: None,
                },
            )
            .unwrap();
        let last = (rows - 1) * shape.q_heads;
        let mut lse = bench.host(&lse, rows * shape.q_heads);
        assert!(lse.split_off(last).iter().all(|&x| x == f32::NEG_INFINITY), "the padded row");
        [
            f32s(&bench.host(&qkv, rows * shape.qkv_cols())),
            f32s(&[bench.host(&k, cached), bench.host(&v, cached)].concat()),
            f32s(&bench.host(&out, rows * shape.out_cols())),
            lse,
        ]
    }
}

#[test]
fn attention() {
    for (head_dim, kv_heads, ratio, page_size, split, head_major) in [
        (64, 1, 3, 16, 64, false),
        (64, 2, 1, 64, 128, true),
        (128, 1, 8, 32, 64, false),
        (128, 2, 2, 128, 512, true),
    ] {
        let shape = AttentionShape { q_heads: kv_heads * ratio, kv_heads, head_dim };
        compare(Attention { shape, page_size, split, head_major }, |expected, found| {
            for (name, (found, expected)) in
                ["qkv", "cache", "out", "lse"].iter().zip(found.iter().zip(expected))
            {
                close(name, found, expected, 1.0 / 64.0);
            }
        });
    }
}

struct Sampling {
    vocab: usize,
}

impl Case for Sampling {
    /// Statistics of plain and calibrated rows, and the verdicts over them.
    type Output = (Vec<RowStats>, Vec<Verdict>);

    fn run<B: Backend>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let backend = kernels.backend();
        let (vocab, rank, drafts) = (self.vocab, 24, 3);
        let stride = vocab.next_multiple_of(8);
        let params = |temperature, top_k, top_p| SamplingParams { temperature, top_k, top_p, min_p: 0.0 };
        let kinds = [params(0.0, 0, 1.0), params(1.0, 0, 1.0), params(0.8, 40, 1.0), params(1.0, 0, 0.9)];
        let rows = kinds.len() * (drafts + 1);
        let target_host = noise(1, rows * stride);
        let target = bench.memory(&target_host);
        // The draft's logits are the target's, before the calibrator changes them.
        let mut draft = bench.memory(&target_host);
        let way = |row: usize, purpose| {
            let numbers = Stream::new(9, purpose, row, 100);
            let params = &kinds[row / (drafts + 1)];
            RowSampling::new(params, (params.temperature > 0.0).then_some(numbers)).unwrap()
        };
        let ways = |purpose| (0..rows).map(|row| way(row, purpose)).collect::<Vec<_>>();
        let (target_ways, draft_ways) =
            (bench.memory(&ways(Purpose::TargetDraw)), bench.memory(&ways(Purpose::DraftDraw)));
        let workspace = || bench.memory(&vec![0f32; workspace_len(rows, vocab, true).unwrap()]);
        let (mut target_workspace, mut draft_workspace) = (workspace(), workspace());
        let mut target_stats = bench.memory(&vec![RowStats::zeroed(); rows]);
        let mut draft_stats = bench.memory(&vec![RowStats::zeroed(); rows]);
        let (hidden, weight, bias) = (
            bench.memory(&halves(2, rows * rank)),
            bench.memory(&halves(3, vocab * rank)),
            bench.memory(&noise(4, vocab)),
        );
        let sample = |logits, sampling, calibration, workspace, stats| {
            let sample = Sample {
                vocab,
                stride,
                logits,
                logit_index: None,
                sampling,
                starts: None,
                draft: None,
                calibration,
                workspace,
                stats,
                error: None,
            };
            kernels.sample(stream, sample).unwrap();
        };
        sample(
            LogitRows::Read(backend.view(stream, &target)),
            backend.view(stream, &target_ways),
            None,
            backend.view_mut(stream, &mut target_workspace),
            backend.view_mut(stream, &mut target_stats),
        );
        let calibration = Calibration {
            rank,
            hidden: backend.view(stream, &hidden),
            weight: backend.view(stream, &weight),
            bias: Some(backend.view(stream, &bias)),
        };
        sample(
            LogitRows::Update(backend.view_mut(stream, &mut draft)),
            backend.view(stream, &draft_ways),
            Some(calibration),
            backend.view_mut(stream, &mut draft_workspace),
            backend.view_mut(stream, &mut draft_stats),
        );
        let mut stats = bench.host(&target_stats, rows);
        stats.extend(bench.host(&draft_stats, rows));

        let rules = [Rule::Match, Rule::Rejection, Rule::Block, Rule::Rejection];
        let requests: Vec<Verify> = (0..kinds.len())
            .map(|i| {
                Verify::new(&VerifySequence {
                    rule: rules[i],
                    seed: 9,
                    position: 100,
                    drafts,
                    first_target: i * (drafts + 1),
                    first_draft: Some(i * (drafts + 1)),
                    first_token: i * drafts,
                    groups: GroupSet::all(2),
                })
                .unwrap()
            })
            .collect();
        // Tokens that both hosts draw alike, whatever rounding does: the target's most likely.
        let tokens: Vec<i32> = (0..kinds.len() * drafts)
            .map(|i| {
                let row = &target_host[(i / drafts * (drafts + 1) + i % drafts) * stride..][..vocab];
                (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i32
            })
            .collect();
        let (requests, tokens) = (bench.memory(&requests), bench.memory(&tokens));
        let batch = kinds.len();
        let mut workspace = bench.memory(&vec![0f32; accept_workspace_len(batch, vocab).unwrap()]);
        let mut arrived = bench.memory(&vec![0u32; batch]);
        let mut verdicts = bench.memory(&vec![Verdict::zeroed(); batch]);
        let mut committed = bench.memory(&vec![0i32; batch * MAX_COMMITTED]);
        kernels
            .accept(
                stream,
                &Accept {
                    vocab,
                    stride,
                    sequences: backend.view(stream, &requests),
                    any_block: true,
                    tokens: backend.view(stream, &tokens),
                    target: SampledRows {
                        logits: backend.view(stream, &target),
                        stats: backend.view(stream, &target_stats),
                    },
                    draft: Some(SampledRows {
                        logits: backend.view(stream, &draft),
                        stats: backend.view(stream, &draft_stats),
                    }),
                    workspace: backend.view_mut(stream, &mut workspace),
                    arrived: backend.view_mut(stream, &mut arrived),
                    verdicts: backend.view_mut(stream, &mut verdicts),
                    committed: backend.view_mut(stream, &mut committed),
                    error: None,
                },
            )
            .unwrap();
        assert!(bench.host(&arrived, batch).iter().all(|&count| count == 0));
        (stats, bench.host(&verdicts, batch))
    }
}

#[test]
fn sampling_and_acceptance() {
    for vocab in [100, 5001] {
        compare(Sampling { vocab }, |(stats, verdicts), (other_stats, other_verdicts)| {
            for (row, (found, expected)) in other_stats.iter().zip(stats).enumerate() {
                let token = (found.token, found.kept);
                assert_eq!(token, (expected.token, expected.kept), "row {row} of {vocab} ids");
                let numbers = |s: &RowStats| [s.max, s.log_sum, s.probability, s.confidence, s.token_logit];
                close("statistics", &numbers(found), &numbers(expected), 1e-3);
            }
            for (found, expected) in other_verdicts.iter().zip(verdicts) {
                let decision = |v: &Verdict| (v.accepted, v.bonus, v.group, v.cached_length);
                assert_eq!(decision(found), decision(expected), "{vocab} ids");
                assert!((found.probability - expected.probability).abs() < 1e-3);
            }
        });
    }
}

/// The decode loop on the GPU: in every mode the tokens of autoregressive decoding.
struct Selection;

impl Case for Selection {
    /// The tables of `select_drafts` one after the other, and the turns of a pass that followed its verdicts.
    type Output = (Vec<i32>, Vec<f32>);

    fn run<B: Backend>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let backend = kernels.backend();
        // (n, a, slots) of each sequence; the last has no verdict.
        let sequences = [(3, 0, 4), (20, 2, 2), (9, 1, 5), (30, -1, 3)];
        let verdicts: Vec<Verdict> = sequences
            .iter()
            .map(|&(start, accepted, _)| Verdict {
                accepted,
                bonus: 7 + start,
                cached_length: i64::from(start + accepted + 1),
                ..Verdict::zeroed()
            })
            .collect();
        let (mut table, mut rows) = (Vec::new(), 0);
        for (sequence, groups) in [(2, GroupSet::all(3)), (0, GroupSet::NONE), (1, GroupSet::all(1))] {
            let slots = sequences[sequence].2;
            let (first_slot, first_draft) = (10 * sequence, rows);
            table
                .push(Draft::new(&DraftGroups { sequence, groups, first_slot, slots, first_draft }).unwrap());
            rows += slots - 1;
        }
        let drafts = table.len();
        let (table, verdicts) = (bench.memory(&table), bench.memory(&verdicts));
        let (mut bonus, mut starts) = (bench.memory(&vec![-7; drafts]), bench.memory(&vec![-7; drafts]));
        let (mut sources, mut draft_rows) = (bench.memory(&vec![-7; rows]), bench.memory(&vec![-7; rows]));
        let args = SelectDrafts {
            drafts: backend.view(stream, &table),
            verdicts: backend.view(stream, &verdicts),
            bonus: backend.view_mut(stream, &mut bonus),
            starts: backend.view_mut(stream, &mut starts),
            sources: backend.view_mut(stream, &mut sources),
            draft_rows: backend.view_mut(stream, &mut draft_rows),
            error: None,
        };
        kernels.select_drafts(stream, &args).unwrap();
        drop(args);
        let selected = [(&bonus, drafts), (&starts, drafts), (&sources, rows), (&draft_rows, rows)];
        let selected = selected.map(|(memory, len)| bench.host(memory, len)).concat();

        let pages: Vec<u32> = (0..3).collect();
        let laid_out = |&(start, _, slots): &(i32, i32, usize)| {
            let start = start as usize;
            SequenceRows { pages: &pages, start, candidates: 0, groups: vec![3], slots }
        };
        let pass = Pass { sequences: sequences.iter().map(laid_out).collect() };
        let mut tables = PassTables::new(backend, stream, sequences.len(), pages.len()).unwrap();
        tables.upload(backend, stream, &pass, Paging { pages: pages.len(), page_size: 16 }).unwrap();
        let (of, mut error) = (bench.memory(&[0, 1, 2, 3]), bench.memory(&[0u32]));
        let args = FollowVerdicts {
            pass: &mut tables,
            sequences: backend.view(stream, &of),
            verdicts: backend.view(stream, &verdicts),
            error: Some(backend.view_mut(stream, &mut error)),
        };
        kernels.follow_verdicts(stream, args).unwrap();
        assert_eq!(bench.host(&error, 1), [16]);
        let (inv_freq, mut turns) = (bench.memory(&[0.01f32]), bench.memory(&vec![0f32; 2 * tables.rows()]));
        let args = RopeTable {
            pass: &tables,
            inv_freq: backend.view(stream, &inv_freq),
            scale: 1.0,
            turns: backend.view_mut(stream, &mut turns),
        };
        kernels.rope_table(stream, &args).unwrap();
        drop(args);
        (selected, bench.host(&turns, 2 * tables.rows()))
    }
}

#[test]
fn selection() {
    compare(Selection, |expected, found| {
        assert_eq!(expected.0, found.0);
        close("turns", &found.1, &expected.1, 1e-5);
    });
}

#[test]
fn decoding() {
    if cuda().is_none() {
        return;
    }
    for (head_dim, seed) in [(64, 1), (128, 2), (64, 3)] {
        let spec = Spec {
            head_dim,
            hidden: 256,
            vocab: 1000,
            rank: Some(32),
            dtype: DType::Bf16,
            layers: 4,
            tail: 2,
            seed,
            ..Spec::default()
        };
        let (target, drafter) = spec.weights();
        let decode = |mode, batch: usize, rule, temperature| {
            let model = Model::new(Gpu::cuda(0).unwrap(), &target, Some(&drafter)).unwrap();
            let options = EngineOptions { cache_tokens: 8192, ..EngineOptions::default() };
            let mut engine = Engine::new(model, mode, options).unwrap();
            let request = |i: usize| Request {
                sampling: SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0 },
                rule,
                seed: i as u64,
                ..Request::new((0..10 + 37 * i as u32).map(|id| id * 7 % 1000).collect(), 64)
            };
            let outputs = run(&mut engine, (0..batch).map(request).collect());
            outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>()
        };
        for (rule, temperature) in [(Rule::Match, 0.0), (Rule::Match, 1.0)] {
            let ar = decode(Mode::Autoregressive, 1, rule, temperature);
            for batch in [1, 5] {
                for mode in [Mode::Parallel, Mode::Sequential, Mode::Autoregressive] {
                    let found = decode(mode, batch, rule, temperature);
                    assert_eq!(found[0], ar[0], "{mode:?} at batch {batch} and temperature {temperature}");
                }
            }
        }
        let parallel = decode(Mode::Parallel, 3, Rule::Rejection, 1.0);
        assert_eq!(parallel, decode(Mode::Sequential, 3, Rule::Rejection, 1.0));
    }
}

/// Launches in a CUDA graph read what their operands hold when it runs. The context's memory is made without cudarc's
/// events, which a capture must not wait for.
#[test]
fn capture() {
    let Some(gpu) = cuda() else { return };
    let Bench { kernels, stream } = &gpu;
    let backend = kernels.backend();
    let (rows, cols) = (5, 512);
    // SAFETY: all of this test's memory is used on one stream.
    unsafe { stream.context().disable_event_tracking() };
    let (mut x, weight) = (gpu.memory(&halves(1, rows * cols)), gpu.memory(&noise(2, cols)));
    let mut out = gpu.memory(&vec![bf16::ZERO; rows * cols]);
    let launch = |x: &_, out: &mut _| {
        let args = RmsNorm {
            x: Residual::Is(backend.view(stream, x)),
            weight: backend.view(stream, &weight),
            out: backend.view_mut(stream, out),
            eps: 1e-6,
        };
        kernels.rms_norm(stream, &args).unwrap();
    };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    launch(&x, &mut out);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for seed in [3, 4] {
        backend.upload(stream, &halves(seed, rows * cols), &mut x, 0).unwrap();
        graph.launch().unwrap();
        let captured = gpu.host(&out, rows * cols);
        launch(&x, &mut out);
        assert_eq!(captured, gpu.host(&out, rows * cols));
        assert_ne!(captured, halves(seed, rows * cols));
    }
}
