//! Tests of errors in a pass that only the device can find: a page id outside the cache, and a sequence longer than a
//! captured launch was made for. The kernel sets a bit of the error word, and every output has a defined value.

use std::ops::Range;

use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::rope::NormRopeAppend;
use flexdraft::kernels::{
    Fault, Faults, Kernels, KvStrides, PagedKv, PagedKvMut, Paging, PassTables, ScoreChanges,
};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{
    Element, Launch, Limits, QueueId, Runtime, RuntimeError, Simt, SimtOptions, SimtStream, View, ViewMut,
};
use half::bf16;

use crate::support::noise::halves;

/// The SIMT emulator with corrupted page tables: before each launch, entries of a pass's tables equal to `page` become
/// `becomes`.
#[derive(Debug)]
struct Tampered {
    simt: Simt,
    page: u32,
    becomes: i32,
}

impl Runtime for Tampered {
    type Stream = SimtStream;
    type Memory<T: Element> = Vec<T>;

    fn limits(&self) -> Limits {
        self.simt.limits()
    }

    fn allocate<T: Element>(&self, stream: &SimtStream, len: usize) -> Result<Vec<T>, RuntimeError> {
        self.simt.allocate(stream, len)
    }

    fn upload<T: Element>(
        &self,
        stream: &SimtStream,
        from: &[T],
        to: &mut Vec<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.simt.upload(stream, from, to, first)
    }

    fn download<T: Element>(
        &self,
        stream: &SimtStream,
        from: &Vec<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError> {
        self.simt.download(stream, from, first, to)
    }

    fn copy<T: Element>(
        &self,
        stream: &SimtStream,
        from: &Vec<T>,
        range: Range<usize>,
        to: &mut Vec<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.simt.copy(stream, from, range, to, first)
    }

    fn view<'a, T: Element>(&self, stream: &'a SimtStream, memory: &'a Vec<T>) -> View<'a, T> {
        self.simt.view(stream, memory)
    }

    fn view_mut<'a, T: Element>(&self, stream: &'a SimtStream, memory: &'a mut Vec<T>) -> ViewMut<'a, T> {
        self.simt.view_mut(stream, memory)
    }

    fn queue(&self, stream: &SimtStream) -> QueueId {
        self.simt.queue(stream)
    }

    unsafe fn launch(&self, stream: &SimtStream, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        let tables = launch.regions.iter().find(|region| region.name == "pass").unwrap();
        let entries = tables.address as *mut i32;
        for i in 0..tables.bytes as usize / size_of::<i32>() {
            // SAFETY: the tables are the pass's memory, which is aligned to 8 bytes and stays while launches use it.
            unsafe {
                if entries.add(i).read() == self.page as i32 {
                    entries.add(i).write(self.becomes);
                }
            }
        }
        // SAFETY: the caller upholds the contract of this function.
        unsafe { self.simt.launch(stream, launch) }
    }
}

fn simt() -> Simt {
    let checking = crate::support::simt_variant::checking(Checking::Accesses);
    Simt::new(SimtOptions { checking, ..SimtOptions::default() })
}

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
const PAGING: Paging = Paging { pages: 40, page_size: 16 };
/// Number of elements of a page, and of a token, in the cache.
const PAGE: usize = 16 * TOKEN;
const TOKEN: usize = 2 * 64;
const POISON: bf16 = bf16::from_bits(0x7fbf);
/// The page id that the tests corrupt; it occurs once in the tables.
const LOST: u32 = 29;
/// Page ids outside the cache, which the tests write into the tables.
const WRONG: [i32; 4] = [-1, PAGING.pages as i32, i32::MIN, i32::MAX];

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn cache() -> (Vec<bf16>, Vec<bf16>) {
    (halves(2, PAGING.pages * PAGE), halves(3, PAGING.pages * PAGE))
}

fn strides() -> KvStrides {
    KvStrides::token_major(PAGING.page_size, SHAPE.kv_heads, SHAPE.head_dim)
}

/// The results of the append: the cached K and V, the q, k and v of the rows, and the error word.
type Appended = (Vec<u16>, Vec<u16>, Vec<u16>, u32);

fn append<R: Runtime<Stream = SimtStream>>(runtime: R, stream: SimtStream, pass: &Pass<'_>) -> Appended {
    let kernels = Kernels::new(runtime);
    let mut tables = PassTables::new(kernels.runtime(), &stream, 2, 2).unwrap();
    tables.upload(kernels.runtime(), &stream, pass, PAGING).unwrap();
    let mut qkv = halves(1, tables.rows() * SHAPE.qkv_cols());
    let cos_sin = [0.6f32, 0.8].repeat(tables.rows() * 32);
    let (mut k, mut v) = (vec![POISON; PAGING.pages * PAGE], vec![POISON; PAGING.pages * PAGE]);
    let mut error = [0];
    let args = NormRopeAppend {
        pass: &tables,
        kind: RowKind::Candidates,
        qkv: stream.view_mut(&mut qkv).into(),
        cos_sin: stream.view(&cos_sin),
        norms: None,
        eps: 1e-6,
        cache: PagedKvMut {
            k: stream.view_mut(&mut k),
            v: stream.view_mut(&mut v),
            k_strides: strides(),
            v_strides: strides(),
        },
        shape: SHAPE,
        error: Some(stream.view_mut(&mut error)),
    };
    kernels.norm_rope_append(&stream, &args).unwrap();
    drop(args);
    (bits(&k), bits(&v), bits(&qkv), error[0])
}

#[test]
fn nothing_is_appended_to_a_page_that_does_not_exist() {
    let sequences = vec![
        // Each of this sequence's pages gets two candidates.
        SequenceRows { pages: &[3, LOST], start: 14, candidates: 4, groups: vec![], slots: 0 },
        SequenceRows { pages: &[7], start: 2, candidates: 1, groups: vec![], slots: 0 },
    ];
    let pass = Pass { sequences };
    let simt = simt();
    let stream = simt.stream();
    let (k, v, qkv, error) = append(simt, stream, &pass);
    assert_eq!(error, 0);
    let unwritten = bits(&[POISON; 2 * TOKEN]);
    let lost = LOST as usize * PAGE..LOST as usize * PAGE + 2 * TOKEN;
    assert!(k[lost.clone()] != unwritten && v[lost.clone()] != unwritten);
    for becomes in WRONG {
        let simt = self::simt();
        let stream = simt.stream();
        let found = append(Tampered { simt, page: LOST, becomes }, stream, &pass);
        let (mut expected_k, mut expected_v) = (k.clone(), v.clone());
        expected_k[lost.clone()].copy_from_slice(&unwritten);
        expected_v[lost.clone()].copy_from_slice(&unwritten);
        assert!(Faults::of(found.3).unwrap().iter().eq([Fault::Page]), "page {becomes}");
        assert!(found.0 == expected_k && found.1 == expected_v && found.2 == qkv, "page {becomes}");
    }
}

/// Operands of attention, with outputs and workspace full of NaN.
struct Attention {
    qkv: Vec<bf16>,
    out: Vec<bf16>,
    lse: Vec<f32>,
    workspace: Vec<f64>,
    error: [u32; 1],
}

const SPLIT: usize = 64;

impl Attention {
    /// Returns attention operands for `rows` rows whose sequences see up to `longest` positions.
    fn new(rows: usize, longest: usize) -> Self {
        let words = attention_workspace_len(SHAPE, rows, longest, SPLIT).unwrap().div_ceil(2);
        Attention {
            qkv: halves(1, rows * SHAPE.qkv_cols()),
            out: vec![POISON; rows * SHAPE.out_cols()],
            lse: vec![f32::NAN; rows * SHAPE.q_heads],
            workspace: vec![f64::NAN; words],
            error: [0],
        }
    }

    fn launch<R: Runtime<Stream = SimtStream>>(
        &mut self,
        kernels: &Kernels<R>,
        stream: SimtStream,
        pass: &PassTables<R>,
        (k, v): &(Vec<bf16>, Vec<bf16>),
    ) {
        let args = JointAttention {
            pass,
            masks: true,
            qkv: stream.view(&self.qkv).into(),
            cache: PagedKv {
                k: stream.view(k),
                v: stream.view(v),
                k_strides: strides(),
                v_strides: strides(),
            },
            out: stream.view_mut(&mut self.out),
            lse: Some(stream.view_mut(&mut self.lse)),
            workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut self.workspace)),
            shape: SHAPE,
            split: SPLIT,
            scores: ScoreChanges::default(),
            error: Some(stream.view_mut(&mut self.error)),
        };
        kernels.joint_attention(&stream, &args).unwrap();
    }

    /// Returns the bits of some rows of the output and the log-sum-exps.
    fn of_rows(&self, rows: Range<usize>) -> (Vec<u16>, Vec<u32>) {
        let (cols, heads) = (SHAPE.out_cols(), SHAPE.q_heads);
        let lse = self.lse[rows.start * heads..rows.end * heads].iter().map(|x| x.to_bits()).collect();
        (bits(&self.out[rows.start * cols..rows.end * cols]), lse)
    }
}

#[test]
fn keys_of_a_page_that_does_not_exist_are_zeros() {
    // With 3 pages one work item has all keys, and with 20 pages the keys have several splits.
    for page_count in [3, 20] {
        let mut pages: Vec<u32> = (0..page_count).collect();
        pages[1] = LOST;
        let start = 16 * pages.len() - 5;
        let sequences = vec![
            SequenceRows { pages: &pages, start, candidates: 3, groups: vec![0, 2], slots: 2 },
            SequenceRows { pages: &[30, 31], start: 20, candidates: 1, groups: vec![], slots: 0 },
        ];
        let pass = Pass { sequences };
        fn run<R: Runtime<Stream = SimtStream>>(
            runtime: R,
            stream: SimtStream,
            pass: &Pass<'_>,
            lost: bf16,
        ) -> Attention {
            let kernels = Kernels::new(runtime);
            let mut tables = PassTables::new(kernels.runtime(), &stream, 2, 20).unwrap();
            tables.upload(kernels.runtime(), &stream, pass, PAGING).unwrap();
            let mut cache = cache();
            for values in [&mut cache.0, &mut cache.1] {
                values[LOST as usize * PAGE..][..PAGE].fill(lost);
            }
            let mut attention = Attention::new(tables.rows(), tables.longest());
            attention.launch(&kernels, stream, &tables, &cache);
            attention
        }
        let simt = simt();
        let stream = simt.stream();
        let expected = run(simt, stream, &pass, bf16::ZERO);
        assert_eq!(expected.error, [0]);
        for becomes in WRONG {
            let simt = self::simt();
            let stream = simt.stream();
            // Page `LOST` is full of NaN here, which must not influence the result, because no entry of the tables
            // names the page any more.
            let found = run(Tampered { simt, page: LOST, becomes }, stream, &pass, POISON);
            assert!(Faults::of(found.error[0]).unwrap().iter().eq([Fault::Page]), "page {becomes}");
            assert!(found.of_rows(0..8) == expected.of_rows(0..8), "page {becomes}, {page_count} pages");
        }
    }
}

/// A launch that was captured for one pass is replayed with another pass, in which a sequence has become longer. The
/// rows of that sequence are zeros, and the other rows are as in a pass without it. The contents of the workspace have
/// no influence.
#[test]
fn a_sequence_that_a_captured_launch_has_no_room_for_is_left_out() {
    let pages: Vec<u32> = (0..30).collect();
    let long = |start| SequenceRows { pages: &pages, start, candidates: 3, groups: vec![0, 2], slots: 20 };
    let short = SequenceRows { pages: &[30, 31], start: 20, candidates: 1, groups: vec![0], slots: 2 };
    // The launches are captured for one state per sequence, where nothing is merged, and for three states.
    for (made_for, longer) in [(40, 300), (40, 400), (150, 400)] {
        for padding in [0, 2] {
            for long_first in [true, false] {
                let pass = |start| match long_first {
                    true => Pass { sequences: vec![long(start), short.clone()] },
                    false => Pass { sequences: vec![short.clone(), long(start)] },
                };
                let kernels = Kernels::new(simt());
                let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
                let mut tables = PassTables::new(simt, &stream, 2, 30).unwrap();
                tables.upload(simt, &stream, &pass(made_for), PAGING).unwrap();
                let rows = tables.rows();
                let cache = cache();
                let mut attention = Attention::new(rows + padding, tables.longest());
                simt.record();
                attention.launch(&kernels, stream, &tables, &cache);
                let recording = simt.take_recording();
                let before = (attention.of_rows(0..rows), attention.error);
                assert_eq!(before.1, [0]);

                tables.upload(simt, &stream, &pass(longer), PAGING).unwrap();
                attention.out.fill(POISON);
                attention.lse.fill(f32::NAN);
                attention.workspace.fill(f64::NAN);
                // SAFETY: the operands are at the recorded addresses and borrowed by nothing.
                unsafe { simt.replay(&recording) }.unwrap();

                let name = format!("{made_for}, then {longer}, {padding} rows of padding, {long_first}");
                assert!(Faults::of(attention.error[0]).unwrap().iter().eq([Fault::Plan]), "{name}");
                let zeros = |rows: usize| {
                    let lse = vec![f32::NEG_INFINITY.to_bits(); rows * SHAPE.q_heads];
                    (vec![0u16; rows * SHAPE.out_cols()], lse)
                };
                // The rows are in the order of a pass: candidates of both sequences, then mask rows of both sequences.
                let (of_long, of_short) = match long_first {
                    true => ([0..3, 4..44], [3..4, 44..46]),
                    false => ([1..4, 6..46], [0..1, 4..6]),
                };
                for range in of_long {
                    assert!(attention.of_rows(range.clone()) == zeros(range.len()), "{name}: rows {range:?}");
                }
                assert!(attention.of_rows(rows..rows + padding) == zeros(padding), "{name}: padding");
                let mut alone = Attention::new(rows + padding, 2 * longer);
                alone.launch(&kernels, stream, &tables, &cache);
                assert_eq!(alone.error, [0]);
                for range in of_short {
                    assert!(
                        attention.of_rows(range.clone()) == alone.of_rows(range.clone()),
                        "{name}: rows {range:?}"
                    );
                }

                // The captured launches still serve the pass that they were captured for.
                tables.upload(simt, &stream, &pass(made_for), PAGING).unwrap();
                attention.error = [0];
                // SAFETY: as above.
                unsafe { simt.replay(&recording) }.unwrap();
                assert!((attention.of_rows(0..rows), attention.error) == before, "{name}");
            }
        }
    }
}
