//! Embedding, gather, norm, addition and activations.

use flexdraft::kernels::{activation, embedding, norm};
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::{STREAM, bits, simt};
use crate::support::{ABSENT, Half, Noise, Opened, attempt, read, versioned, write};

#[test]
fn rows() {
    rows_of::<bf16>();
    rows_of::<f16>();
}

fn rows_of<T: Half>() {
    let (opened, kernels) = (Opened::new(), simt());
    let stream = kernels.runtime().stream();
    let mut noise = Noise(1);
    for _ in 0..2 {
        let (rows, cols, vocab) = (1 + noise.below(5), 8 * (1 + noise.below(20)), 1 + noise.below(9));
        let table = noise.rounded::<T>(vocab * cols);
        let ids: Vec<i32> = (0..rows).map(|_| noise.below(vocab + 2) as i32 - 1).collect();
        let (mut expected, mut found) = (vec![T::ONE; rows * cols], vec![T::ONE; rows * cols]);
        let (mut word, mut found_word) = ([0u32], [0u32]);
        kernels
            .embed(
                &stream,
                &embedding::Embed {
                    ids: stream.view(&ids),
                    table: stream.view(&table),
                    out: stream.view_mut(&mut expected),
                    error: Some(stream.view_mut(&mut word)),
                    cols,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_embed,
            versioned!(FlexdraftEmbed {
                cols: cols as u64,
                ids: read(&ids),
                table: read(&table),
                out: write(&mut found),
                error_word: write(&mut found_word),
            })
        );
        assert_eq!((bits(&found), found_word), (bits(&expected), word));

        found.fill(T::ONE);
        kernels
            .gather(
                &stream,
                &embedding::Gather {
                    indices: stream.view(&ids),
                    x: stream.view(&table),
                    out: stream.view_mut(&mut expected),
                    error: None,
                    cols,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_gather,
            versioned!(FlexdraftGather {
                cols: cols as u64,
                indices: read(&ids),
                x: read(&table),
                out: write(&mut found),
                ..
            })
        );
        assert_eq!(bits(&found), bits(&expected));

        let (x, delta, weight) =
            (noise.rounded::<T>(rows * cols), noise.rounded::<T>(rows * cols), noise.floats(cols));
        for with_delta in [false, true] {
            let (mut sum, mut found_sum) = (x.clone(), x.clone());
            let residual = match with_delta {
                false => norm::Residual::Is(stream.view(&x)),
                true => norm::Residual::Add { x: stream.view_mut(&mut sum), delta: stream.view(&delta) },
            };
            kernels
                .rms_norm(
                    &stream,
                    &norm::RmsNorm {
                        x: residual,
                        weight: stream.view(&weight),
                        out: stream.view_mut(&mut expected),
                        eps: 1e-6,
                    },
                )
                .unwrap();
            launch!(
                opened,
                flexdraft_rms_norm,
                versioned!(FlexdraftRmsNorm {
                    x: write(&mut found_sum),
                    delta: if with_delta { read(&delta) } else { ABSENT },
                    weight: read(&weight),
                    out: write(&mut found),
                    eps: 1e-6,
                    ..
                })
            );
            assert_eq!((bits(&found), bits(&found_sum)), (bits(&expected), bits(&sum)));
        }

        let (mut sum, mut found_sum) = (x.clone(), x.clone());
        kernels
            .add(&stream, &norm::Add { x: stream.view_mut(&mut sum), delta: stream.view(&delta) })
            .unwrap();
        launch!(
            opened,
            flexdraft_add,
            versioned!(FlexdraftAdd { x: write(&mut found_sum), delta: read(&delta) })
        );
        assert_eq!(bits(&found_sum), bits(&sum));
        assert_ne!(bits(&sum), bits(&x));

        let both = noise.rounded::<T>(2 * rows * cols);
        let out = stream.view_mut(&mut expected);
        kernels.silu_mul(&stream, &activation::SiluMul { x: stream.view(&both), out, cols }).unwrap();
        launch!(
            opened,
            flexdraft_silu_mul,
            versioned!(FlexdraftSiluMul { cols: cols as u64, x: read(&both), out: write(&mut found) })
        );
        assert_eq!(bits(&found), bits(&expected));

        let (mut hidden, mut found_hidden) = (x.clone(), x.clone());
        kernels
            .silu_add(
                &stream,
                &activation::SiluAdd {
                    x: stream.view_mut(&mut hidden),
                    bonus: stream.view(&table),
                    owner: stream.view(&ids),
                    error: Some(stream.view_mut(&mut word)),
                    cols,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_silu_add,
            versioned!(FlexdraftSiluAdd {
                cols: cols as u64,
                x: write(&mut found_hidden),
                bonus: read(&table),
                owner: read(&ids),
                error_word: write(&mut found_word),
            })
        );
        assert_eq!((bits(&found_hidden), found_word), (bits(&hidden), word));
    }
}
