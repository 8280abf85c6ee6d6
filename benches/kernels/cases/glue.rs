//! Benchmark cases of the kernels around the matrix products of a layer.

use std::marker::PhantomData;

use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{KernelError, KvStrides, PagedKvMut, Paging, PassTables};
use flexdraft::layout::{AttentionShape, Pass, RowKind, SequenceRows};
use flexdraft::runtime::Runtime;
use half::bf16;
use serde::Serialize;

use super::{Case, Half, Prepared};
use crate::floor::{self, Floor, Heads};
use crate::machine::Machine;

/// Numbers of rows that a pass of a decode step may have.
const ROWS: [usize; 4] = [1, 16, 85, 1024];

/// Number of slots of a drafted block, whose rows share one bonus token.
const SLOTS: usize = 15;

/// A benchmark case of an elementwise kernel whose output has `rows` rows of `cols` elements.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Elementwise<T = bf16> {
    #[serde(skip)]
    pub kernel: &'static str,
    pub rows: usize,
    pub cols: usize,
    #[serde(skip)]
    pub half: PhantomData<T>,
}

impl Elementwise {
    /// Returns the cases for Qwen3-8B: hidden size 4096, intermediate size 12288, and the calibrator's rank 512.
    pub fn all() -> Vec<Self> {
        let kernels = [
            ("embed", 4096),
            ("gather", 4096),
            ("add", 4096),
            ("rms_norm", 4096),
            ("silu_mul", 12_288),
            ("silu_add", 512),
        ];
        let over_rows =
            |(kernel, cols)| ROWS.map(|rows| Elementwise { kernel, rows, cols, half: PhantomData });
        kernels.into_iter().flat_map(over_rows).collect()
    }
}

struct ElementwiseOperands<'a, R: Runtime, T: Half> {
    machine: &'a Machine<R>,
    case: Elementwise<T>,
    /// The kernel's input: an embedding table, the residual stream, gate and up projections, or the hidden rows of the
    /// slots.
    x: R::Memory<T>,
    pristine: R::Memory<T>,
    delta: R::Memory<T>,
    weight: R::Memory<f32>,
    ids: R::Memory<i32>,
    owners: R::Memory<i32>,
    out: R::Memory<T>,
}

impl<T: Half> Case for Elementwise<T> {
    fn kernel(&self) -> &'static str {
        self.kernel
    }

    fn floor(&self) -> Floor {
        let (rows, cols) = (self.rows as u64, self.cols as u64);
        match self.kernel {
            "embed" | "gather" => floor::embed(rows, cols),
            "add" => floor::add(rows, cols),
            "rms_norm" => floor::rms_norm(rows, cols),
            "silu_add" => floor::silu_add(rows, rows.div_ceil(SLOTS as u64), cols),
            _ => floor::silu_mul(rows, cols),
        }
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let Elementwise { kernel, rows, cols, .. } = *self;
        let elements = if kernel == "silu_mul" { 2 * rows * cols } else { rows * cols };
        let ids: Vec<i32> = (0..rows as i32).rev().collect();
        let owners: Vec<i32> = (0..rows).map(|row| (row / SLOTS) as i32).collect();
        Ok(Box::new(ElementwiseOperands {
            machine,
            case: *self,
            x: machine.noise(1, elements, T::from_f32)?,
            pristine: machine.noise(1, elements, T::from_f32)?,
            delta: machine.noise(2, rows * cols, T::from_f32)?,
            weight: machine.f32_noise(3, cols)?,
            ids: machine.memory(&ids)?,
            owners: machine.memory(&owners)?,
            out: machine.zeros(rows * cols)?,
        }))
    }
}

impl<R: Runtime, T: Half> Prepared for ElementwiseOperands<'_, R, T> {
    fn restore(&mut self) -> Result<(), KernelError> {
        if ["rms_norm", "add", "silu_add"].contains(&self.case.kernel) {
            let len = self.case.rows * self.case.cols;
            self.machine.kernels.runtime().copy(
                &self.machine.stream,
                &self.pristine,
                0..len,
                &mut self.x,
                0,
            )?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<(), KernelError> {
        let (kernels, stream) = (&self.machine.kernels, &self.machine.stream);
        let (runtime, cols) = (kernels.runtime(), self.case.cols);
        let out = runtime.view_mut(stream, &mut self.out);
        match self.case.kernel {
            "embed" => {
                let (ids, table) = (runtime.view(stream, &self.ids), runtime.view(stream, &self.x));
                kernels.embed(stream, &Embed { ids, table, out, error: None, cols })
            }
            "gather" => {
                let (indices, x) = (runtime.view(stream, &self.ids), runtime.view(stream, &self.x));
                kernels.gather(stream, &Gather { indices, x, out, error: None, cols })
            }
            "add" => {
                let (x, delta) = (runtime.view_mut(stream, &mut self.x), runtime.view(stream, &self.delta));
                kernels.add(stream, &Add { x, delta })
            }
            "silu_add" => {
                // The rows of `bonus` are the first rows of `delta`, which this kernel needs for nothing else.
                let owner = runtime.view(stream, &self.owners);
                let x = runtime.view_mut(stream, &mut self.x);
                let bonus = runtime.view(stream, &self.delta);
                kernels.silu_add(stream, &SiluAdd { x, bonus, owner, error: None, cols })
            }
            "rms_norm" => {
                let x = Residual::Add {
                    x: runtime.view_mut(stream, &mut self.x),
                    delta: runtime.view(stream, &self.delta),
                };
                let weight = runtime.view(stream, &self.weight);
                kernels.rms_norm(stream, &RmsNorm { x, weight, out, eps: 1e-6 })
            }
            _ => kernels.silu_mul(stream, &SiluMul { x: runtime.view(stream, &self.x), out, cols }),
        }
    }
}

/// A benchmark case of the kernel that norms and rotates queries and keys and appends keys and values to the cache:
/// `rows` sequences with one candidate each, after `context` positions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Append<T = bf16> {
    pub rows: usize,
    pub context: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_size: usize,
    #[serde(skip)]
    pub half: PhantomData<T>,
}

impl Append {
    /// Returns benchmark cases with the heads of Qwen3-8B.
    pub fn all() -> Vec<Self> {
        ROWS.map(|rows| Append {
            rows,
            context: 1024,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 128,
            page_size: 64,
            half: PhantomData,
        })
        .to_vec()
    }
}

impl<T> Append<T> {
    fn shape(&self) -> AttentionShape {
        AttentionShape { q_heads: self.q_heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

struct AppendOperands<'a, R: Runtime, T: Half> {
    machine: &'a Machine<R>,
    shape: AttentionShape,
    strides: KvStrides,
    pass: PassTables<R>,
    len: usize,
    qkv: R::Memory<T>,
    pristine: R::Memory<T>,
    cos_sin: R::Memory<f32>,
    norms: (R::Memory<f32>, R::Memory<f32>),
    k: R::Memory<T>,
    v: R::Memory<T>,
}

impl<T: Half> Case for Append<T> {
    fn kernel(&self) -> &'static str {
        "norm_rope_append"
    }

    fn floor(&self) -> Floor {
        let heads = Heads {
            q_heads: self.q_heads as u64,
            kv_heads: self.kv_heads as u64,
            head_dim: self.head_dim as u64,
        };
        floor::norm_rope_append(self.rows as u64, heads)
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let (runtime, stream) = (machine.kernels.runtime(), &machine.stream);
        let (shape, rows) = (self.shape(), self.rows);
        // The kernel does not read earlier positions, so all sequences share their pages.
        let each = self.context.div_ceil(self.page_size) + 1;
        let last = each - 1;
        let ids: Vec<Vec<u32>> =
            (0..rows).map(|row| (0..last).chain([last + row]).map(|page| page as u32).collect()).collect();
        let layout = Pass {
            sequences: ids
                .iter()
                .map(|pages| SequenceRows {
                    pages,
                    start: last * self.page_size,
                    candidates: 1,
                    groups: vec![],
                    slots: 0,
                })
                .collect(),
        };
        let pages = last + rows;
        let mut pass = PassTables::new(runtime, stream, rows, each)?;
        pass.upload(runtime, stream, &layout, Paging { pages, page_size: self.page_size })?;
        let inv_freq: Vec<f32> =
            (0..self.head_dim / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / self.head_dim as f32)).collect();
        let inv_freq = machine.memory(&inv_freq)?;
        let mut cos_sin = machine.zeros(rows * self.head_dim)?;
        machine.kernels.rope_table(
            stream,
            &RopeTable {
                pass: &pass,
                inv_freq: runtime.view(stream, &inv_freq),
                scale: 1.0,
                cos_sin: runtime.view_mut(stream, &mut cos_sin),
            },
        )?;
        let (len, cached) = (rows * shape.qkv_cols(), pages * self.page_size * self.kv_heads * self.head_dim);
        Ok(Box::new(AppendOperands {
            machine,
            shape,
            strides: KvStrides::token_major(self.page_size, self.kv_heads, self.head_dim),
            pass,
            len,
            qkv: machine.noise(1, len, T::from_f32)?,
            pristine: machine.noise(1, len, T::from_f32)?,
            cos_sin,
            norms: (machine.f32_noise(2, self.head_dim)?, machine.f32_noise(3, self.head_dim)?),
            k: machine.zeros(cached)?,
            v: machine.zeros(cached)?,
        }))
    }
}

impl<R: Runtime, T: Half> Prepared for AppendOperands<'_, R, T> {
    fn restore(&mut self) -> Result<(), KernelError> {
        let runtime = self.machine.kernels.runtime();
        runtime.copy(&self.machine.stream, &self.pristine, 0..self.len, &mut self.qkv, 0)?;
        Ok(())
    }

    fn launch(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        self.machine.kernels.norm_rope_append(
            stream,
            &NormRopeAppend {
                pass: &self.pass,
                kind: RowKind::Candidates,
                qkv: runtime.view_mut(stream, &mut self.qkv).into(),
                cos_sin: runtime.view(stream, &self.cos_sin),
                norms: Some((runtime.view(stream, &self.norms.0), runtime.view(stream, &self.norms.1))),
                eps: 1e-6,
                cache: PagedKvMut {
                    k: runtime.view_mut(stream, &mut self.k),
                    v: runtime.view_mut(stream, &mut self.v),
                    k_strides: self.strides,
                    v_strides: self.strides,
                },
                shape: self.shape,
                error: None,
            },
        )
    }
}
