//! An example of one kernel without a GPU: rejection sampling of two draft tokens, as an engine would call it.
//!
//!     cargo run --release --features simt --example kernels_on_the_emulator

use std::error::Error;

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::Kernels;
use flexdraft::kernels::acceptance::{
    Accept, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::layout::GroupSet;
use flexdraft::random::Stream;
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;

const VOCAB: usize = 8;

/// Samples each row of `logits` `[rows, VOCAB]`; returns the statistics that acceptance needs.
fn sample(kernels: &Kernels<Simt>, logits: &[f32], drafts: &[i32]) -> Result<Vec<RowStats>, Box<dyn Error>> {
    let stream = kernels.runtime().stream();
    let rows = logits.len() / VOCAB;
    let params = SamplingParams::at_temperature(1.0);
    let sampling = (0..rows as u64)
        .map(|row| RowSampling::new(&params, Some(Stream::target_draw(7, 100 + row as usize))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut workspace = vec![0.0; workspace_len(rows, VOCAB, false)?];
    let mut stats = vec![RowStats::default(); rows];
    kernels.sample(
        &stream,
        Sample {
            vocab: VOCAB,
            stride: VOCAB,
            logits: LogitRows::Read(stream.view(logits)),
            logit_index: None,
            sampling: stream.view(&sampling),
            starts: None,
            draft: Some(stream.view(drafts)),
            calibration: None,
            workspace: stream.view_mut(&mut workspace),
            stats: stream.view_mut(&mut stats),
            error: None,
        },
    )?;
    Ok(stats)
}

/// Runs the example of a kernel on the emulator.
pub fn main() -> Result<(), Box<dyn Error>> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();

    // The draft to verify has two tokens, 5 and 2. The drafter was sure of both; the target agrees with the first only.
    let tokens = [5, 2];
    let certain_of = |id: usize| std::array::from_fn::<f32, VOCAB, _>(|x| if x == id { 20.0 } else { 0.0 });
    let draft = [certain_of(5), certain_of(2)].concat();
    let target = [certain_of(5), certain_of(7), certain_of(1)].concat();
    let draft_stats = sample(&kernels, &draft, &tokens)?;
    let target_stats = sample(&kernels, &target, &[5, 2, -1])?;

    let sequence = Verify::new(&VerifySequence {
        rule: Rule::Rejection,
        seed: 7,
        position: 100,
        drafts: tokens.len(),
        first_target: 0,
        first_draft: Some(0),
        first_token: 0,
        groups: GroupSet::all(tokens.len()),
    })?;
    let mut workspace = vec![0.0; accept_workspace_len(1, VOCAB).ok_or("the workspace is too large")?];
    let (mut arrived, mut verdicts, mut committed) = ([0], [Verdict::zeroed()], [0; MAX_COMMITTED]);
    kernels.accept(
        &stream,
        &Accept {
            vocab: VOCAB,
            stride: VOCAB,
            sequences: stream.view(&[sequence]),
            any_block: false,
            tokens: stream.view(&tokens),
            target: SampledRows { logits: stream.view(&target), stats: stream.view(&target_stats) },
            target_partials: None,
            draft: Some(DraftDistributions {
                logits: Some(stream.view(&draft)),
                chosen: None,
                stats: stream.view(&draft_stats),
            }),
            workspace: stream.view_mut(&mut workspace),
            arrived: stream.view_mut(&mut arrived),
            verdicts: stream.view_mut(&mut verdicts),
            committed: stream.view_mut(&mut committed),
            error: None,
        },
    )?;
    println!("{:?}, committed {:?}", verdicts[0], &committed[..3]);
    assert_eq!((verdicts[0].accepted, &committed[..3]), (1, &[5, 7, -1][..]));
    Ok(())
}
