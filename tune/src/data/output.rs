//! The output folder of the command `data`, which holds transcripts.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::{DataFile, Settings, Summary};
use crate::error::{Result, TuneError};
use crate::hash::{of_ids, random_bits};
use crate::json_lines::{self, Appender};
use crate::transcripts::{self, Transcript};

/// Purpose of the random numbers that decide which prompts are held out.
const HOLD_OUT: u32 = 2;

/// A line of `messages.jsonl`: a message that the target wrote, or a record that the attempt gave no usable message.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    attempt: u64,
    message: Option<Vec<u32>>,
}

/// A folder with `train.jsonl` and `heldout.jsonl` ([`transcripts`]), `data.json` ([`DataFile`]) and, if the target
/// writes its prompts, `messages.jsonl` with the result of each attempt.
#[derive(Debug)]
pub struct Output {
    folder: PathBuf,
    settings: Settings,
    train: Appender,
    held_out: Appender,
    messages: Appender,
    summary: Summary,
    /// Prompts that already have a transcript.
    done: HashSet<Vec<u32>>,
    written: HashMap<u64, Option<Vec<u32>>>,
}

impl Output {
    /// Creates an output folder, or opens an existing one to continue its run.
    ///
    /// # Errors
    /// [`TuneError::OtherRun`] if the folder was made with other settings; [`TuneError::File`] if it holds
    /// transcripts without settings, or lines that are not valid for this vocabulary; [`TuneError::Setting`] if the
    /// held-out share is out of range; [`TuneError::Io`].
    pub fn open(folder: &Path, settings: Settings) -> Result<Self> {
        if !(0.0..=1.0).contains(&settings.held_out) {
            return Err(TuneError::setting("held_out", settings.held_out, "a share from 0 to 1"));
        }
        fs::create_dir_all(folder).map_err(TuneError::io("create", folder))?;
        let [train, held_out, messages] =
            ["train.jsonl", "heldout.jsonl", "messages.jsonl"].map(|name| folder.join(name));
        match DataFile::read(folder)? {
            Some(file) => file.check(folder, &settings)?,
            None if train.exists() || held_out.exists() => {
                let reason = format!(
                    "it has transcripts, but no {} with their settings; use another folder",
                    DataFile::NAME
                );
                return Err(TuneError::File { path: folder.into(), reason });
            }
            None => DataFile { settings: settings.clone(), result: None }.write(folder)?,
        }
        let mut output = Self {
            train: Appender::open(&train)?,
            held_out: Appender::open(&held_out)?,
            messages: Appender::open(&messages)?,
            folder: folder.into(),
            summary: Summary::default(),
            done: HashSet::new(),
            written: HashMap::new(),
            settings,
        };
        for (path, held_out) in [(&train, false), (&held_out, true)] {
            for transcript in transcripts::read(path, output.settings.target.vocab_size)? {
                output.count(&transcript, held_out);
                output.done.insert(transcript.prompt);
            }
        }
        for line in json_lines::read::<Message>(&messages)? {
            output.written.insert(line.attempt, line.message);
        }
        Ok(output)
    }

    /// Returns the path of the output folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns whether a prompt already has a transcript.
    pub fn has(&self, prompt: &[u32]) -> bool {
        self.done.contains(prompt)
    }

    /// Returns the result of an attempt at a message, if an earlier run made the attempt.
    pub fn message(&self, attempt: u64) -> Option<&Option<Vec<u32>>> {
        self.written.get(&attempt)
    }

    /// Records the result of an attempt at a message.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn add_message(&mut self, attempt: u64, message: Option<Vec<u32>>) -> Result<()> {
        self.messages.append(&Message { attempt, message })
    }

    /// Appends a transcript to the training file or to the held-out file. The `first` transcript of a run is held out if any
    /// are, so that a small run holds out at least one.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn add(&mut self, transcript: Transcript, first: bool) -> Result<()> {
        let share = self.settings.held_out;
        let held_out = is_held_out(&transcript.prompt, share) || (first && share > 0.0);
        if held_out { &mut self.held_out } else { &mut self.train }.append(&transcript)?;
        self.count(&transcript, held_out);
        self.done.insert(transcript.prompt);
        Ok(())
    }

    /// Records that the run is complete after `attempts` attempts, and returns its summary.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn finish(mut self, attempts: usize) -> Result<Summary> {
        self.summary.attempts = attempts;
        let result = Some(self.summary.clone());
        DataFile { settings: self.settings, result }.write(&self.folder)?;
        Ok(self.summary)
    }

    fn count(&mut self, transcript: &Transcript, held_out: bool) {
        let count = if held_out { &mut self.summary.held_out } else { &mut self.summary.train };
        *count += 1;
        self.summary.response_tokens += transcript.response.len();
    }
}

/// Returns whether a prompt belongs to the held-out share; the answer depends on the prompt alone.
fn is_held_out(prompt: &[u32], share: f64) -> bool {
    let bits = random_bits(of_ids(prompt).value(), HOLD_OUT, 0);
    (bits >> 11) as f64 / ((1u64 << 53) as f64) < share
}

#[cfg(test)]
mod tests {
    use super::super::settings::example;
    use super::*;

    fn transcript(prompt: u32) -> Transcript {
        Transcript { prompt: vec![prompt], response: vec![1, 2] }
    }

    #[test]
    fn continues_where_it_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Output::open(folder.path(), example()).unwrap();
        let mut output = open();
        output.add(transcript(3), false).unwrap();
        output.add_message(0, Some(vec![3])).unwrap();
        output.add_message(1, None).unwrap();
        drop(output);
        for name in ["train.jsonl", "heldout.jsonl", "messages.jsonl"] {
            let path = folder.path().join(name);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text + "{\"prom").unwrap();
        }
        let mut output = open();
        assert!(output.has(&[3]) && !output.has(&[4]));
        assert_eq!(output.message(0), Some(&Some(vec![3])));
        assert_eq!(output.message(1), Some(&None));
        assert_eq!(output.message(2), None);
        output.add(transcript(4), false).unwrap();
        let summary = output.finish(5).unwrap();
        assert_eq!((summary.train + summary.held_out, summary.attempts, summary.response_tokens), (2, 5, 4));
        assert_eq!(DataFile::read(folder.path()).unwrap().unwrap().result, Some(summary));
        assert!(open().has(&[4]));
    }

    #[test]
    fn other_settings_vocabularies_and_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = Output::open(folder.path(), example()).unwrap();
        output.add(transcript(63), false).unwrap();
        drop(output);
        let open = |settings: Settings| Output::open(folder.path(), settings).unwrap_err();
        assert!(matches!(open(Settings { seed: 2, ..example() }), TuneError::OtherRun { what: "seed", .. }));
        assert!(matches!(open(Settings { held_out: 1.5, ..example() }), TuneError::Setting { .. }));
        for name in ["train.jsonl", "heldout.jsonl"] {
            let path = folder.path().join(name);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text + "{\"prompt\":[64],\"response\":[]}\n").unwrap();
        }
        assert!(open(example()).to_string().contains("token id 64"));
        fs::remove_file(folder.path().join(DataFile::NAME)).unwrap();
        assert!(open(example()).to_string().contains("no data.json"));
    }

    #[test]
    fn the_first_transcript_is_held_out_if_any_are() {
        for (share, expected) in [(0.0, [20, 0]), (1e-9, [19, 1]), (1.0, [0, 20])] {
            let folder = tempfile::tempdir().unwrap();
            let mut output = Output::open(folder.path(), Settings { held_out: share, ..example() }).unwrap();
            (0..20).for_each(|id| output.add(transcript(id), id == 0).unwrap());
            let summary = output.finish(20).unwrap();
            assert_eq!([summary.train, summary.held_out], expected);
        }
    }

    #[test]
    fn a_share_is_held_out() {
        let held_out = |share| (0..4000).filter(|&id| is_held_out(&[id, 7], share)).count();
        assert_eq!(held_out(0.0), 0);
        assert_eq!(held_out(1.0), 4000);
        assert!((900..1100).contains(&held_out(0.25)), "{}", held_out(0.25));
    }
}
