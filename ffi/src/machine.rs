//! The kernels on the SIMT emulator or on a GPU, behind one trait.

use std::any::Any;

use flexdraft::kernels::acceptance::{Accept, DraftDistributions, MAX_COMMITTED, SampledRows};
use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention};
use flexdraft::kernels::sampling::{Calibration, LogitRows, Sample};
use flexdraft::kernels::{Kernels, KvStrides, PagedKv, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft::runtime::{
    Cuda, Element, RawCuda, RawStream, Runtime, Simt, SimtOptions, SimtStream, View, ViewMut,
};

use crate::Outcome;
use crate::operands::{AcceptOperands, AttentionOperands, PassLayout, SampleOperands};

/// The operations behind the C interface. Their safety conditions are the conditions of the interface's functions.
pub trait Machine {
    /// Uploads the tables of a forward pass; see [`flexdraft_pass`](crate::flexdraft_pass).
    unsafe fn pass(&self, stream: u64, layout: &PassLayout) -> Outcome<Box<dyn Any>>;
    /// Launches attention; see [`flexdraft_attention`](crate::flexdraft_attention).
    unsafe fn attention(&self, stream: u64, pass: &dyn Any, operands: &AttentionOperands) -> Outcome<()>;
    /// Launches sampling; see [`flexdraft_sample`](crate::flexdraft_sample).
    unsafe fn sample(&self, stream: u64, operands: &SampleOperands) -> Outcome<()>;
    /// Launches acceptance; see [`flexdraft_accept`](crate::flexdraft_accept).
    unsafe fn accept(&self, stream: u64, operands: &AcceptOperands) -> Outcome<()>;
}

/// A function that returns the runtime's stream for the address of a stream.
type Streams<R> = Box<dyn Fn(&R, u64) -> <R as Runtime>::Stream>;

/// The kernels on one runtime, and the way to find its streams.
pub struct On<R: Runtime> {
    kernels: Kernels<R>,
    stream: Streams<R>,
}

impl On<Simt> {
    pub fn simt() -> Self {
        let stream = |simt: &Simt, _| -> SimtStream { simt.stream() };
        On { kernels: Kernels::new(Simt::new(SimtOptions::default())), stream: Box::new(stream) }
    }
}

impl On<RawCuda> {
    pub fn gpu(ordinal: usize) -> Outcome<Self> {
        let context = Cuda::context(ordinal)?;
        let kernels = Kernels::new(RawCuda::new(&context)?);
        // SAFETY: callers of the interface promise that streams belong to the primary context and are alive.
        let stream = move |_: &RawCuda, address| unsafe { RawStream::new(&context, address) };
        Ok(On { kernels, stream: Box::new(stream) })
    }
}

/// A pass on the device, and the sizes of its tensors.
struct OnDevice<R: Runtime> {
    tables: PassTables<R>,
    page_size: usize,
    cached: usize,
}

/// Makes views of device memory from addresses, for launches on one stream.
struct Views<'a, R: Runtime>(&'a R, &'a R::Stream);

impl<'a, R: Runtime> Views<'a, R> {
    /// # Safety
    ///
    /// The conditions of [`View::from_raw`].
    unsafe fn read<T: Element>(&self, address: u64, len: usize) -> View<'a, T> {
        // SAFETY: the caller's promise.
        unsafe { View::from_raw(address, len, self.0.queue(self.1)) }
    }

    /// # Safety
    ///
    /// The conditions of [`ViewMut::from_raw`].
    unsafe fn write<T: Element>(&self, address: u64, len: usize) -> ViewMut<'a, T> {
        // SAFETY: the caller's promise.
        unsafe { ViewMut::from_raw(address, len, self.0.queue(self.1)) }
    }
}

impl<R: Runtime> On<R> {
    fn stream(&self, address: u64) -> R::Stream {
        (self.stream)(self.kernels.runtime(), address)
    }
}

impl<R: Runtime> Machine for On<R> {
    unsafe fn pass(&self, stream: u64, layout: &PassLayout) -> Outcome<Box<dyn Any>> {
        let (stream, runtime) = (self.stream(stream), self.kernels.runtime());
        let size = |value: u64| usize::try_from(value);
        let (batch, each) = (size(layout.batch)?, size(layout.pages_each)?);
        // SAFETY: the caller's promise about `page_ids`.
        let ids = unsafe { std::slice::from_raw_parts(layout.page_ids, batch * each) };
        let groups = size(layout.groups)?;
        let (start, candidates) = (size(layout.start)?, size(layout.candidates)?);
        let slots = if groups > 0 { size(layout.slots)? } else { 0 };
        let rows = |pages| SequenceRows { pages, start, candidates, groups: (0..groups).collect(), slots };
        let pass = Pass { sequences: ids.chunks(each.max(1)).map(rows).collect() };
        let paging = Paging { pages: size(layout.pages)?, page_size: size(layout.page_size)? };
        let mut tables = PassTables::new(runtime, &stream, batch, each)?;
        tables.upload(runtime, &stream, &pass, paging)?;
        let (page_size, cached) = (paging.page_size, paging.pages * paging.page_size);
        Ok(Box::new(OnDevice::<R> { tables, page_size, cached }))
    }

    unsafe fn attention(&self, stream: u64, pass: &dyn Any, args: &AttentionOperands) -> Outcome<()> {
        let pass = pass.downcast_ref::<OnDevice<R>>().ok_or("the pass was made on another runtime")?;
        let stream = self.stream(stream);
        let views = Views(self.kernels.runtime(), &stream);
        let shape = AttentionShape {
            q_heads: usize::try_from(args.q_heads)?,
            kv_heads: usize::try_from(args.kv_heads)?,
            head_dim: usize::try_from(args.head_dim)?,
        };
        let strides = KvStrides::token_major(pass.page_size, shape.kv_heads, shape.head_dim);
        let (rows, cached) = (pass.tables.rows(), pass.cached * shape.kv_heads * shape.head_dim);
        // SAFETY: the caller's promise about addresses.
        let args = unsafe {
            JointAttention {
                pass: &pass.tables,
                masks: true,
                qkv: views.read(args.qkv, rows * shape.qkv_cols()),
                cache: PagedKv {
                    k: views.read(args.k, cached),
                    v: views.read(args.v, cached),
                    k_strides: strides,
                    v_strides: strides,
                },
                out: views.write(args.out, rows * shape.out_cols()),
                lse: None,
                workspace: views.write(args.workspace, usize::try_from(args.workspace_len)?),
                shape,
                split: DEFAULT_SPLIT,
                error: None,
            }
        };
        Ok(self.kernels.joint_attention(&stream, &args)?)
    }

    unsafe fn sample(&self, stream: u64, args: &SampleOperands) -> Outcome<()> {
        let stream = self.stream(stream);
        let views = Views(self.kernels.runtime(), &stream);
        let (rows, vocab) = (usize::try_from(args.rows)?, usize::try_from(args.vocab)?);
        let (stride, rank) = (usize::try_from(args.stride)?, usize::try_from(args.rank)?);
        // SAFETY: the caller's promise about addresses.
        let sample = unsafe {
            let calibration = (rank > 0).then(|| Calibration {
                rank,
                hidden: views.read(args.hidden, rows * rank),
                weight: views.read(args.weight, vocab * rank),
                bias: Some(views.read(args.bias, vocab)),
            });
            Sample::<f32> {
                vocab,
                stride,
                logits: match rank {
                    0 => LogitRows::Read(views.read(args.logits, rows * stride)),
                    _ => LogitRows::Update(views.write(args.logits, rows * stride)),
                },
                logit_index: None,
                sampling: views.read(args.sampling, rows),
                starts: None,
                draft: None,
                calibration,
                workspace: views.write(args.workspace, usize::try_from(args.workspace_len)?),
                stats: views.write(args.stats, rows),
                error: None,
            }
        };
        Ok(self.kernels.sample(&stream, sample)?)
    }

    unsafe fn accept(&self, stream: u64, args: &AcceptOperands) -> Outcome<()> {
        let stream = self.stream(stream);
        let views = Views(self.kernels.runtime(), &stream);
        let (batch, drafts) = (usize::try_from(args.batch)?, usize::try_from(args.drafts)?);
        let (vocab, stride) = (usize::try_from(args.vocab)?, usize::try_from(args.stride)?);
        let (targets, drawn) = (batch * (drafts + 1), batch * drafts);
        // SAFETY: the caller's promise about addresses.
        let accept = unsafe {
            Accept::<f32> {
                vocab,
                stride,
                sequences: views.read(args.sequences, batch),
                target_partials: None,
                any_block: args.block != 0,
                tokens: views.read(args.tokens, drawn),
                target: SampledRows {
                    logits: views.read(args.target, targets * stride),
                    stats: views.read(args.target_stats, targets),
                },
                draft: Some(DraftDistributions {
                    logits: Some(views.read(args.draft, drawn * stride)),
                    chosen: None,
                    stats: views.read(args.draft_stats, drawn),
                }),
                workspace: views.write(args.workspace, usize::try_from(args.workspace_len)?),
                arrived: views.write(args.arrived, batch),
                verdicts: views.write(args.verdicts, batch),
                committed: views.write(args.committed, batch * MAX_COMMITTED),
                error: None,
            }
        };
        Ok(self.kernels.accept(&stream, &accept)?)
    }
}
