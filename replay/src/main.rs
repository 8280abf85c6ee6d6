//! The command `flexdraft-replay`: makes recordings, and replays policies on them.
//!
//! ```text
//! flexdraft-replay record PAIR TARGET DRAFTER PROMPTS COUNT TOKENS [chat] > recordings/PAIR.txt
//! flexdraft-replay run [quick] [seed=N] [WORD...]
//! flexdraft-replay paired TARGET DRAFTER PROMPTS REPETITIONS [chat] [sampled]
//! ```

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use flexdraft::decode::Flex;
use flexdraft_replay::load::Load;
use flexdraft_replay::machine::Machine;
use flexdraft_replay::pair::PairFiles;
use flexdraft_replay::paired::{PairedResult, PairedRuns, paired_runs};
use flexdraft_replay::probe::probed;
use flexdraft_replay::record::{Settings, record};
use flexdraft_replay::recording::Recording;
use flexdraft_replay::report;

const USAGE: &str = "expected `record PAIR TARGET DRAFTER PROMPTS COUNT TOKENS [chat]`, `run [quick] [seed=N] [WORD...]` or \
                     `paired TARGET DRAFTER PROMPTS REPETITIONS [chat] [sampled]`";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["record", pair, target, drafter, prompts, count, tokens, ref more @ ..] => {
            write_recording(pair, [target, drafter, prompts], [count, tokens], more == ["chat"])
        }
        ["run", ref more @ ..] => run(more),
        ["paired", target, drafter, prompts, repetitions, ref more @ ..] => {
            paired([target, drafter, prompts], repetitions, more)
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write_recording(
    pair: &str,
    files: [&str; 3],
    counts: [&str; 2],
    chat: bool,
) -> Result<(), Box<dyn Error>> {
    let [target, drafter, prompts] = files.map(Path::new);
    let files = PairFiles { target, drafter, prompts, chat };
    let settings = Settings { files, count: counts[0].parse()?, tokens: counts[1].parse()? };
    let recording = record(pair, settings)?;
    eprintln!("{}: acceptance length {:.3}", recording.pair, recording.acceptance_length());
    print!("{}", recording.text());
    Ok(())
}

fn paired(files: [&str; 3], repetitions: &str, more: &[&str]) -> Result<(), Box<dyn Error>> {
    let [target, drafter, prompts] = files.map(Path::new);
    let files = PairFiles { target, drafter, prompts, chat: more.contains(&"chat") };
    let (repetitions, sampled) = (repetitions.parse()?, more.contains(&"sampled"));
    println!("{}", PairedResult::header());
    paired_runs(&PairedRuns { files, repetitions, sampled }, |result| println!("{}", result.text()))
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let quick = arguments.contains(&"quick");
    let (mut seed, mut words) = (1, Vec::new());
    for &word in arguments.iter().filter(|&&word| word != "quick") {
        match word.strip_prefix("seed=") {
            Some(number) => {
                seed = number.parse().map_err(|error| format!("{word}: expected a whole number ({error})"))?
            }
            None => words.push(word),
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recording = |name: &str| -> Result<Recording, Box<dyn Error>> {
        Ok(Recording::parse(&fs::read_to_string(folder.join("recordings").join(name))?)?)
    };
    let machine = |name: &str| -> Result<Machine, Box<dyn Error>> {
        Ok(serde_json::from_str(&fs::read_to_string(folder.join("machines").join(name))?)?)
    };
    let bundled = recording("bundled.txt")?;
    let tau =
        |tau| Recording { pair: format!("bundled, tau {tau}"), ..bundled.with_acceptance_length(tau, 7) };
    let recordings = [recording("smollm2.txt")?, tau(5.0), tau(1.05), bundled.clone()];
    let machines = [machine("h100-qwen3-8b.json")?, machine("h100-small.json")?, machine("cpu.json")?];
    let all = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
    let batches = if quick { &[1, 4, 16, 64, 256][..] } else { &all };
    println!("{}", report::header());
    for recording in &recordings {
        for machine in &machines {
            for &batch in batches {
                let quiet = Load::quiet(batch);
                let mut loads = vec![quiet];
                if [1, 16, 64].contains(&batch) && recording.pair == bundled.pair {
                    loads.extend(
                        Load::all(batch).into_iter().filter(|load| batch > 1 || load.must_draft == 0),
                    );
                }
                for load in loads {
                    let text = format!("{} {} {} {batch}", recording.pair, machine.name, load.name);
                    if !words.iter().all(|word| text.contains(word)) {
                        continue;
                    }
                    let line = report::line(recording, machine, &load, seed, &|| {
                        Box::new(Flex::new(probed(machine, recording.block_size)))
                    });
                    println!("{}", report::text(&line));
                }
            }
        }
    }
    Ok(())
}
