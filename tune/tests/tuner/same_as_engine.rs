//! The packed training forward computes the same mask rows as the decode engine: the same logits for the same prefix
//! and bonus token, with the exported checkpoint.

use candle_core::{DType, Device, Tensor};
use flexdraft::acceptance::Rule;
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{
    Device as _, DraftRows, DraftTables, DraftToken, SlotRows, StepTables, Verification as _, VerifyRows,
};
use flexdraft::layout::{GroupSet, Pass, Prediction, SequenceRows};
use flexdraft::model::config::Architecture;
use flexdraft::model::weights::{ChainConfig, ChainKind};
use flexdraft::model::{DrafterWeights, Model};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::chain::{ChainHeads, ChainShape, ChainSlots, export_chain};
use flexdraft_tune::drafter::{Drafter, DrafterShape};
use flexdraft_tune::export::export;
use flexdraft_tune::loss::predict;
use flexdraft_tune::shortlist::{Shortlist, UNLISTED_BIAS};
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::tune::walk::Drafting;
use flexdraft_tune::tune::{Batch, Corpus, Pick};

use crate::common;

/// Drafts a block in the engine after the tokens up to `anchor`, with the next token as the bonus token. Returns the
/// drafts of the slots after slot 0, and the logits that each was drawn from.
fn engine_block(
    model: &Model<Cpu>,
    tokens: &[u32],
    anchor: usize,
    block_size: usize,
) -> (Vec<DraftToken>, Vec<Vec<f32>>) {
    // The engine's prefill has the prefix as candidates, with a mask group after the last candidate.
    let pages: Vec<u32> = (0..8).collect();
    let rows = SequenceRows {
        pages: &pages,
        start: 0,
        candidates: anchor + 1,
        groups: vec![anchor],
        slots: block_size,
    };
    let pass = Pass { sequences: vec![rows] };
    let (mut cache, mut work, mut logits) =
        (model.new_cache(8, 16).unwrap(), model.new_workspace(), model.new_logits());
    let (sampling, rule, seed) = (SamplingParams::GREEDY, Rule::default(), 0);
    let mut results = model.device().new_results();
    let verify = [VerifyRows {
        first_row: 0,
        draft: &[],
        draft_logits: None,
        edits: None,
        sampling: &sampling,
        rule,
        seed,
        start: anchor,
    }];
    let drafts = [DraftRows {
        sequence: 0,
        groups: GroupSet::NONE.with(0),
        first_row: pass.group_rows(0, anchor).unwrap().start,
        slots: block_size,
        prediction: Prediction::OwnPosition,
        processors: None,
        sampling: &sampling,
        rule,
        seed,
    }];
    let (rows, logits_rows) = (SlotRows::Pass { first_logits: 0 }, [anchor]);
    let drafts = DraftTables { drafts: &drafts, rows };
    let tables = StepTables {
        logits_rows: &logits_rows,
        sequences: &verify,
        drafts,
        ..StepTables::new(&pass, &tokens[..=anchor])
    };
    let tables = model.forward(tables, &mut cache, &mut work).unwrap();
    // The target's logits after the last candidate are edited so that the transcript's token becomes the bonus
    // token.
    let mut target_logits = model.new_logits();
    model.logits(&logits_rows, &mut work, &mut target_logits).unwrap();
    let bonus = tokens[anchor + 1] as usize;
    model.device().edit_row(&mut target_logits, 0, &mut |logits| logits[bonus] = 1e9).unwrap();
    let mut verification = model.device().verify(tables, &mut target_logits, &mut results).unwrap();
    model.draft(drafts, &mut verification, &mut work, &mut logits).unwrap();
    let found = verification.read().unwrap();
    assert_eq!(found.verdicts[0].bonus as usize, bonus);
    let drafted = found.drafts[0].clone();
    let rows = (0..drafted.len()).map(|row| logits.row(row).unwrap().to_vec()).collect();
    (drafted, rows)
}

fn compare(architecture: Architecture, bias: bool, rank: usize, listed: usize) {
    let config = common::config(architecture, bias);
    let weights = common::target(&config);
    let target = FrozenTarget::new(&weights, DType::F32, &Device::Cpu).unwrap();
    let shape = DrafterShape { rank, ..common::SHAPE };
    let shortlist = Shortlist::most_frequent(listed, config.vocab_size, (0..31u32).rev());
    let drafter = common::drafter(&weights, &target, shape, &shortlist);

    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), &config, shape, &shortlist, &common::parameters(&drafter).unwrap()).unwrap();
    let exported = DrafterWeights::read(dir.path(), &config).unwrap();
    let read_back = Drafter::from_weights(&weights, &target, &exported).unwrap();
    let model = Model::new(Cpu::new(CpuOptions::default()).unwrap(), &weights, Some(&exported)).unwrap();

    let transcripts = common::transcripts(config.vocab_size);
    let mut corpus = Corpus::new(transcripts.clone(), shape.tail_layers, 1.0, &target);
    let picks = vec![
        Pick { transcript: 0, anchors: vec![4, 9, 18] },
        Pick { transcript: 1, anchors: vec![0, 10] },
        Pick { transcript: 2, anchors: vec![2] },
    ];
    let batch = Batch::new(&mut corpus, &target, picks.clone()).unwrap();
    let slots = drafter.forward(&target, &batch.rows(shape.block_size)).unwrap();
    let (head, calibration) = drafter.factors(&slots);
    let product = |x: &Tensor, w: &Tensor| x.detach().matmul(&w.detach().t().unwrap()).unwrap();
    let mut logits = product(head.x, head.w);
    if let Some(calibration) = calibration {
        logits = (logits + product(calibration.x, calibration.w)).unwrap();
    }
    let mut packed = logits.to_vec2::<f32>().unwrap().into_iter();
    let factors: Vec<_> = std::iter::once(head).chain(calibration).collect();
    let mut predictions = predict(&factors).unwrap().into_iter();

    // The exported drafter, read from its files, gives the same predictions over the whole vocabulary as the
    // trained drafter over its shortlist.
    let slots = read_back.forward(&target, &batch.rows(shape.block_size)).unwrap();
    let (head, calibration) = read_back.factors(&slots);
    let factors: Vec<_> = std::iter::once(head).chain(calibration).collect();
    for (whole, listed) in predict(&factors).unwrap().into_iter().zip(predictions.clone()) {
        assert_eq!(whole.token, shortlist.id(listed.token));
        assert!((whole.confidence - listed.confidence).abs() < 1e-4);
    }

    for pick in &picks {
        let tokens = transcripts[pick.transcript].tokens();
        for &anchor in &pick.anchors {
            let (drafted, rows) = engine_block(&model, &tokens, anchor, shape.block_size);
            for (row, drafted) in drafted.iter().enumerate() {
                let (engine, packed) = (&rows[row], packed.next().unwrap());
                for (id, &engine) in engine.iter().enumerate() {
                    match shortlist.place(id as u32) {
                        Some(place) => {
                            let packed = packed[place as usize];
                            assert!(
                                (engine - packed).abs() < 2e-4,
                                "{architecture:?} {anchor} {row} {id}: {engine} {packed}"
                            );
                        }
                        None => assert!(engine < 0.5 * UNLISTED_BIAS),
                    }
                }
                let prediction = predictions.next().unwrap();
                assert_eq!(drafted.token, shortlist.id(prediction.token));
                assert!((drafted.confidence - prediction.confidence).abs() < 1e-4);
            }
        }
    }
    assert!(packed.next().is_none());
}

#[test]
fn qwen3() {
    compare(Architecture::Qwen3, false, 5, 0);
}

#[test]
fn llama_with_biases() {
    compare(Architecture::Llama, true, 5, 0);
}

#[test]
fn without_a_calibrator() {
    compare(Architecture::Llama, false, 0, 0);
}

#[test]
fn tuned_on_a_shortlist() {
    compare(Architecture::Qwen3, false, 5, 12);
}

/// A chain scores the same ids in training as in the engine, with the same chained logits, drafts and confidences.
#[test]
fn chained() {
    for (architecture, kind, listed, top_k) in [
        (Architecture::Qwen3, ChainKind::Pair, 0, 6),
        (Architecture::Llama, ChainKind::Hidden, 0, 31),
        (Architecture::Qwen3, ChainKind::Hidden, 20, 4),
        (Architecture::Llama, ChainKind::Pair, 20, 1),
    ] {
        let config = common::config(architecture, false);
        let weights = common::target(&config);
        let target = FrozenTarget::new(&weights, DType::F32, &Device::Cpu).unwrap();
        let shortlist = Shortlist::most_frequent(listed, config.vocab_size, (0..31u32).rev());
        let drafter = common::drafter(&weights, &target, common::SHAPE, &shortlist);
        let chain = common::chain(&target, ChainShape { config: ChainConfig { kind, top_k }, rank: 3 });

        let (plain, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let parameters = common::parameters(&drafter).unwrap();
        export(plain.path(), &config, common::SHAPE, &shortlist, &parameters).unwrap();
        export_chain(plain.path(), dir.path(), &chain).unwrap();
        let exported = DrafterWeights::read(dir.path(), &config).unwrap();
        let read_back = ChainHeads::from_weights(&target, exported.chain.as_ref().unwrap()).unwrap();
        let model = Model::new(Cpu::new(CpuOptions::default()).unwrap(), &weights, Some(&exported)).unwrap();

        let transcripts = common::transcripts(config.vocab_size);
        let mut corpus = Corpus::new(transcripts.clone(), 2, 1.0, &target);
        let anchors = vec![4, 9, 18];
        let pick = Pick { transcript: 0, anchors: anchors.clone() };
        let batch = Batch::new(&mut corpus, &target, vec![pick]).unwrap();
        let rows = batch.rows(4);
        let slots = drafter.forward(&target, &rows).unwrap();
        let slots = ChainSlots::new(&drafter, &slots, &rows.bonuses, &shortlist, top_k, true).unwrap();
        let drafts = chain.draft(&target, &slots).unwrap();
        assert_eq!(read_back.draft(&target, &slots).unwrap(), drafts);
        let drafting =
            Drafting { target: &target, drafter: &drafter, chain: Some(&chain), shortlist: &shortlist };
        assert_eq!(drafting.draft(&batch).unwrap(), drafts);
        // The token before each slot: the bonus token, or the draft of the slot before.
        let tokens = transcripts[0].tokens();
        let before: Vec<u32> = (0..drafts.len())
            .map(|row| if row % 3 == 0 { tokens[anchors[row / 3] + 1] } else { drafts[row - 1].token })
            .collect();
        let hidden = slots.hidden.as_ref();
        let chained = chain.logits(&target, &before, &slots.likeliest, hidden).unwrap();
        let chained = chained.to_vec2::<f32>().unwrap();

        let mut row = 0;
        for &anchor in &anchors {
            let (drafted, engine) = engine_block(&model, &tokens, anchor, 4);
            for (drafted, engine) in drafted.iter().zip(&engine) {
                let (ids, _) = slots.likeliest.row(row, top_k);
                let finite = |id: &u32| engine[*id as usize] > f32::NEG_INFINITY;
                let mut sorted = ids.to_vec();
                sorted.sort_unstable();
                assert_eq!((0..31).filter(finite).collect::<Vec<u32>>(), sorted);
                for (&id, packed) in ids.iter().zip(&chained[row]) {
                    let engine = engine[id as usize];
                    assert!(
                        (engine - packed).abs() < 2e-4,
                        "{kind:?} {anchor} {row} {id}: {engine} {packed}"
                    );
                }
                assert_eq!(drafted.token, drafts[row].token);
                assert!((drafted.confidence - drafts[row].confidence).abs() < 1e-4);
                row += 1;
            }
        }
        assert_eq!(row, drafts.len());
    }
}

#[test]
fn anchors_outside_the_transcripts_are_named() {
    let config = common::config(Architecture::Qwen3, false);
    let target = FrozenTarget::new(&common::target(&config), DType::F32, &Device::Cpu).unwrap();
    let mut corpus = Corpus::new(common::transcripts(config.vocab_size), 2, 1.0, &target);
    let mut refused = |transcript, anchors: &[usize]| {
        let picks = vec![Pick { transcript, anchors: anchors.to_vec() }];
        Batch::new(&mut corpus, &target, picks).unwrap_err().to_string()
    };
    assert_eq!(
        refused(3, &[0]),
        "cannot make mask rows for transcript 3: the index must be below 3, the number of transcripts"
    );
    // The last of 13 tokens cannot be an anchor: no bonus token follows it.
    assert!(refused(1, &[11, 12]).ends_with("anchor 12 must be below 12, the position of the last token"));
    assert!(refused(1, &[usize::MAX]).ends_with("the position of the last token"));
}
