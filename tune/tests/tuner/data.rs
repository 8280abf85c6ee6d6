//! Transcripts depend only on the settings: not on the batch, and not on when a run was killed.

use std::fs;
use std::path::{Path, PathBuf};

use flexdraft::decode::{Engine, Mode, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{ChatTemplate, Model, TargetWeights, Tokenizer};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::data::{
    Generation, Output, Prompts, Rendering, SelfPrompt, Settings, Source, Summary, TargetName, Windows,
    generate,
};
use flexdraft_tune::transcripts::{self, Transcript};
use flexdraft_tune::{Result, TuneError};

/// Returns a template without variables of its own.
fn plain(template: &ChatTemplate) -> Rendering<'_> {
    Rendering { template, thinking: None }
}

const VOCAB: usize = 384;
const NEWLINE: u32 = 199;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny")
}

fn target() -> TargetWeights {
    TargetWeights::read(&fixtures().join("target")).unwrap()
}

fn generation(count: usize, batch: usize) -> Generation {
    Generation {
        count,
        max_response: 12,
        stop_ids: vec![NEWLINE],
        sampling: SamplingParams::at_temperature(0.8),
        seed: 5,
        batch,
    }
}

fn settings() -> Settings {
    let target = TargetName { name: "tiny".into(), vocab_size: VOCAB, hash: String::new() };
    let (temperature, top_p) = (1.0, 0.95);
    let source = Source::SelfPrompted { min_message: 1, max_message: 24, temperature, top_p, thinking: None };
    Settings {
        target,
        source,
        max_response: 12,
        temperature: 0.8,
        held_out: 0.3,
        precision: "f32".into(),
        seed: 5,
    }
}

/// Runs `data` to the end, or stops it after `steps` steps as if it were killed then.
fn run(folder: &Path, prompts: &Prompts, generation: &Generation, steps: usize) -> Result<Summary> {
    struct Killed;
    let model = Model::new(Cpu::new(CpuOptions::default())?, &target(), None)?;
    let options = generation.engine_options(&target().config, prompts.longest());
    let mut engine = Engine::new(model, Mode::Autoregressive, options)?;
    let mut output = Output::open(folder, settings())?;
    let mut taken = 0;
    let attempts = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        generate(&mut engine, prompts, generation, &mut output, &mut |_| {
            taken += 1;
            if taken == steps {
                std::panic::resume_unwind(Box::new(Killed));
            }
        })
    }));
    match attempts {
        Ok(attempts) => output.finish(attempts?),
        Err(_) => Ok(Summary::default()),
    }
}

fn sorted(folder: &Path) -> [Vec<Transcript>; 2] {
    ["train.jsonl", "heldout.jsonl"].map(|name| {
        let mut transcripts = transcripts::read(&folder.join(name), VOCAB).unwrap();
        transcripts.sort_by(|a, b| a.prompt.cmp(&b.prompt));
        transcripts
    })
}

/// Returns the contents of a run's files of transcripts and messages.
fn files(folder: &Path) -> [String; 3] {
    ["train.jsonl", "heldout.jsonl", "messages.jsonl"]
        .map(|name| fs::read_to_string(folder.join(name)).unwrap())
}

/// Returns the prompts that the tiny target writes, one per line: the newline, as Ċ, is made a special token.
fn written() -> Prompts {
    let folder = tempfile::tempdir().unwrap();
    let template = "def {{ messages[0].content }}Ċ    return ";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = fs::read_to_string(fixtures().join("target/tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let mut newline = tokenizer["added_tokens"][0].clone();
    newline["content"] = "Ċ".into();
    newline["id"] = NEWLINE.into();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(newline);
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let tokenizer = Tokenizer::read(folder.path(), VOCAB).unwrap();
    let template = ChatTemplate::read(folder.path()).unwrap();
    let sampling = SamplingParams { top_p: 0.95, ..SamplingParams::at_temperature(1.0) };
    Prompts::Written(SelfPrompt::new(plain(&template), &tokenizer, sampling, 2, 16).unwrap())
}

fn windows(count: usize) -> Prompts {
    let tokens = (0..200).map(|i| (i * 37 + i / 7) % 256).collect();
    Prompts::Windows(Windows::new(Path::new("text"), (vec![], tokens), 5, count, 5).unwrap())
}

#[test]
fn neither_the_batch_nor_a_kill_changes_the_transcripts() {
    for prompts in [written(), windows(40)] {
        let whole = tempfile::tempdir().unwrap();
        let summary = run(whole.path(), &prompts, &generation(40, 8), usize::MAX).unwrap();
        assert_eq!(summary.train + summary.held_out, 40);
        assert!(summary.train > 0 && summary.held_out > 0);
        let (expected, files) = (sorted(whole.path()), files(whole.path()));
        assert!(expected.iter().flatten().all(|t| (1..=12).contains(&t.response.len())));

        let killed = tempfile::tempdir().unwrap();
        for (steps, batch) in [(20, 3), (35, 7), (50, 16)] {
            run(killed.path(), &prompts, &generation(40, batch), steps).unwrap();
            // The file is cut within its last line, as a killed process may leave it.
            let path = killed.path().join("train.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, &text[..text.len().saturating_sub(3)]).unwrap();
        }
        let again = run(killed.path(), &prompts, &generation(40, 5), usize::MAX).unwrap();
        assert_eq!(again, summary);
        assert_eq!(sorted(killed.path()), expected);
        assert!(self::files(killed.path()) == files);
        // An uninterrupted run with another batch writes the same files.
        let other = tempfile::tempdir().unwrap();
        run(other.path(), &prompts, &generation(40, 3), usize::MAX).unwrap();
        assert!(self::files(other.path()) == files);

        // A run that continues in a complete folder takes no step and gives the same summary.
        let done = run(killed.path(), &prompts, &generation(40, 5), 1).unwrap();
        assert_eq!(done, summary);
    }
}

#[test]
fn more_transcripts_are_a_continuation() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &written(), &generation(10, 4), usize::MAX).unwrap();
    let few = sorted(folder.path());
    run(folder.path(), &written(), &generation(20, 4), usize::MAX).unwrap();
    let more = sorted(folder.path());
    for (few, more) in few.iter().zip(&more) {
        assert!(few.iter().all(|transcript| more.contains(transcript)));
    }
    let whole = tempfile::tempdir().unwrap();
    run(whole.path(), &written(), &generation(20, 32), usize::MAX).unwrap();
    assert_eq!(sorted(whole.path()), more);
}

#[test]
fn a_response_is_what_the_target_writes_after_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = Prompts::Given(vec![vec![40, 41, 42], vec![50], vec![40, 41, 42]]);
    let greedy = Generation { sampling: SamplingParams::GREEDY, ..generation(3, 2) };
    let summary = run(folder.path(), &prompts, &greedy, usize::MAX).unwrap();
    assert_eq!((summary.train + summary.held_out, summary.attempts), (2, 3));
    for transcript in sorted(folder.path()).into_iter().flatten() {
        let model = Model::new(Cpu::new(CpuOptions::default()).unwrap(), &target(), None).unwrap();
        let mut engine = Engine::new(model, Mode::Autoregressive, Default::default()).unwrap();
        let request = Request::new(transcript.prompt.clone(), 12);
        engine.add(Request { stop_ids: vec![NEWLINE], ..request }).unwrap();
        let mut written = Vec::new();
        while !engine.is_idle() {
            written.extend(engine.step().unwrap().into_iter().flat_map(|report| report.tokens));
        }
        assert_eq!(transcript.response, written);
    }
}

#[test]
fn a_target_that_never_ends_a_message_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    // This target never writes the token <|endoftext|>, which ends a message in this template.
    let template = "def {{ messages[0].content }}<|endoftext|>";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::read(&fixtures().join("target"), VOCAB).unwrap();
    let template = ChatTemplate::read(folder.path()).unwrap();
    let sampling = SamplingParams::at_temperature(1.0);
    let prompt = SelfPrompt::new(plain(&template), &tokenizer, sampling, 1, 2).unwrap();
    let error = run(folder.path(), &Prompts::Written(prompt), &generation(2000, 64), usize::MAX).unwrap_err();
    assert!(matches!(error, TuneError::TooLittleData { .. }), "{error}");
}
