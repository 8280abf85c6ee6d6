//! The kernels around the matrix products on a GPU and on the SIMT emulator: embedding, gathering, norms and SiLU.

use flexdraft::kernels::glue::{Add, Embed, Gather, Residual, RmsNorm, SiluAdd, SiluMul};
use flexdraft::runtime::Runtime;
use half::bf16;

use crate::bench::{Bench, halves, noise};
use crate::{Case, close, compare, f32s};

struct Glue;

impl Case for Glue {
    type Output = (Vec<bf16>, Vec<f32>);

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let runtime = kernels.runtime();
        let (rows, cols) = (5, 328);
        let table = bench.memory(&halves(1, 7 * cols));
        let ids = bench.memory(&[3i32, 0, 6, 6, 1]);
        let mut out = bench.memory(&vec![bf16::ZERO; rows * cols]);
        let read = |m| runtime.view(stream, m);
        kernels
            .embed(
                stream,
                &Embed {
                    ids: runtime.view(stream, &ids),
                    table: read(&table),
                    out: runtime.view_mut(stream, &mut out),
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
                    indices: runtime.view(stream, &ids),
                    x: read(&table),
                    out: runtime.view_mut(stream, &mut out),
                    error: None,
                    cols,
                },
            )
            .unwrap();
        exact.extend(bench.host(&out, rows * cols));
        let delta = bench.memory(&halves(2, rows * cols));
        kernels.add(stream, &Add { x: runtime.view_mut(stream, &mut out), delta: read(&delta) }).unwrap();
        exact.extend(bench.host(&out, rows * cols));

        let weight = bench.memory(&noise(3, cols));
        let mut normed = bench.memory(&vec![bf16::ZERO; rows * cols]);
        kernels
            .rms_norm(
                stream,
                &RmsNorm {
                    x: Residual::Add { x: runtime.view_mut(stream, &mut out), delta: read(&delta) },
                    weight: runtime.view(stream, &weight),
                    out: runtime.view_mut(stream, &mut normed),
                    eps: 1e-5,
                },
            )
            .unwrap();
        let mut near = f32s(&bench.host(&normed, rows * cols));
        let wide = bench.memory(&halves(4, rows * 2 * cols));
        kernels
            .silu_mul(stream, &SiluMul { x: read(&wide), out: runtime.view_mut(stream, &mut normed), cols })
            .unwrap();
        near.extend(f32s(&bench.host(&normed, rows * cols)));
        kernels
            .silu_add(
                stream,
                &SiluAdd {
                    x: runtime.view_mut(stream, &mut normed),
                    bonus: read(&table),
                    owner: runtime.view(stream, &ids),
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
fn agrees_with_the_simt_host() {
    compare(Glue, |(exact, near), (other_exact, other_near)| {
        assert!(exact == other_exact, "copies and sums are exact");
        close("glue", other_near, near, 1.0 / 128.0);
    });
}
