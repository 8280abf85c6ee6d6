//! The settings of a folder of transcripts, and the check that a run may continue in the folder.

use std::fs;
use std::io;
use std::path::Path;

use flexdraft::model::TargetWeights;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::hash;

/// Everything that the transcripts of a folder depend on. The number of transcripts is not included: asking for more
/// continues the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The model that wrote the transcripts.
    pub target: TargetName,
    /// The source of the prompts.
    pub source: Source,
    /// Maximum number of tokens per response.
    pub max_response: usize,
    /// Sampling temperature of the responses; 0 is greedy.
    pub temperature: f32,
    /// Share of the prompts that is held out.
    pub held_out: f64,
    /// The rounding of the target's activations: `f32` or `bf16`.
    pub precision: String,
    /// Seed of all random numbers.
    pub seed: u64,
}

/// The identity of a target: name, vocabulary and hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetName {
    /// Name of the target's file or folder.
    pub name: String,
    /// Size of the target's vocabulary.
    pub vocab_size: usize,
    /// Hash of the target from [`hash::of_target`].
    pub hash: String,
}

impl TargetName {
    /// Returns the identity of the target that was read from `path`.
    pub fn new(path: &Path, target: &TargetWeights) -> Self {
        Self {
            name: file_name(path),
            vocab_size: target.config.vocab_size,
            hash: hash::of_target(target).hex(),
        }
    }
}

/// The source of the prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// The target wrote the prompts.
    SelfPrompted {
        /// Minimum number of tokens per message.
        min_message: usize,
        /// Maximum number of tokens per message.
        max_message: usize,
        /// Sampling temperature of the messages.
        temperature: f32,
        /// Top-p with which the messages are sampled.
        top_p: f32,
        /// Value of the chat template's variable `enable_thinking`; `None` if the variable was not set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        thinking: Option<bool>,
    },
    /// The prompts are the entries of a file.
    Prompts {
        /// Name of the prompt file.
        file: String,
        /// Hash of the prompt file's contents.
        hash: String,
        /// True if the prompts were used without a chat template.
        raw: bool,
        /// Value of the chat template's variable `enable_thinking`; `None` if the variable was not set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        thinking: Option<bool>,
    },
    /// The prompts are windows of a text.
    Windows {
        /// Name of the text file.
        file: String,
        /// Hash of the text file's contents.
        hash: String,
        /// Number of tokens per window.
        window: usize,
    },
    /// The prompts are windows of a text, and the responses are the text's own words after them.
    AsWritten {
        /// Name of the text file.
        file: String,
        /// Hash of the text file's contents.
        hash: String,
        /// Number of tokens per window.
        window: usize,
    },
}

impl Source {
    /// Returns the source for a file of prompts. `thinking` is the value of the chat template's variable
    /// `enable_thinking`, if it is set.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn prompts(path: &Path, raw: bool, thinking: Option<bool>) -> Result<Self> {
        Ok(Self::Prompts { file: file_name(path), hash: hash_of_file(path)?, raw, thinking })
    }

    /// Returns whether the prompts were rendered with the target's chat template.
    pub fn uses_template(&self) -> bool {
        match self {
            Self::SelfPrompted { .. } => true,
            Self::Prompts { raw, .. } => !raw,
            Self::Windows { .. } | Self::AsWritten { .. } => false,
        }
    }

    /// Returns the value that the chat template's variable `enable_thinking` was set to, if it was set.
    pub fn thinking(&self) -> Option<bool> {
        match self {
            Self::SelfPrompted { thinking, .. } | Self::Prompts { thinking, .. } => *thinking,
            Self::Windows { .. } | Self::AsWritten { .. } => None,
        }
    }

    /// Returns the source for windows of a text file.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn windows(path: &Path, window: usize) -> Result<Self> {
        Ok(Self::Windows { file: file_name(path), hash: hash_of_file(path)?, window })
    }

    /// Returns the source for a text file whose own words are the responses.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn as_written(path: &Path, window: usize) -> Result<Self> {
        Ok(Self::AsWritten { file: file_name(path), hash: hash_of_file(path)?, window })
    }
}

/// Counts of a complete run that made transcripts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Number of training transcripts.
    pub train: usize,
    /// Number of held-out transcripts.
    pub held_out: usize,
    /// Number of attempts at a prompt, including attempts that gave no prompt or a duplicate.
    pub attempts: usize,
    /// Number of tokens in all responses.
    pub response_tokens: usize,
}

/// The file `data.json`, next to the transcripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The settings that the transcripts were made with.
    pub settings: Settings,
    /// The summary of the run; `None` while it is unfinished.
    pub result: Option<Summary>,
}

impl DataFile {
    /// Name of the file with a folder's settings.
    pub const NAME: &str = "data.json";

    /// Reads the settings file of a folder; returns `None` if the folder has none.
    ///
    /// # Errors
    /// [`TuneError::Io`] or [`TuneError::File`].
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(Self::NAME);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(TuneError::io("read", &path))?,
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| TuneError::File { path, reason: error.to_string() })
    }

    /// Writes the settings file of a folder. If the process is killed meanwhile, the previous file stays.
    ///
    /// # Errors
    /// [`TuneError::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::NAME);
        let unfinished = folder.join(format!("{}.new", Self::NAME));
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .map_err(TuneError::io("write", &path))?;
        bytes.push(b'\n');
        fs::write(&unfinished, bytes).map_err(TuneError::io("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(TuneError::io("write", &path))
    }

    /// Checks that `target` wrote the folder's transcripts.
    ///
    /// # Errors
    /// [`TuneError::OtherRun`] naming the target's vocabulary or hash.
    pub fn check_target(&self, folder: &Path, target: &TargetWeights) -> Result<()> {
        let target = TargetName::new(folder, target);
        self.check(folder, &Settings { target, ..self.settings.clone() })
    }

    /// Checks that a run with `settings` may continue in the folder.
    ///
    /// # Errors
    /// [`TuneError::OtherRun`] naming the first setting that differs.
    pub fn check(&self, folder: &Path, settings: &Settings) -> Result<()> {
        let (before, now) = (&self.settings, settings);
        let source = |source: &Source| serde_json::to_string(source).unwrap_or_default();
        let differing = [
            ("vocabulary", before.target.vocab_size.to_string(), now.target.vocab_size.to_string()),
            ("target", describe(&before.target), describe(&now.target)),
            ("source of prompts", source(&before.source), source(&now.source)),
            ("longest response", before.max_response.to_string(), now.max_response.to_string()),
            ("temperature", before.temperature.to_string(), now.temperature.to_string()),
            ("share held out", before.held_out.to_string(), now.held_out.to_string()),
            ("precision", before.precision.clone(), now.precision.clone()),
            ("seed", before.seed.to_string(), now.seed.to_string()),
        ]
        .into_iter()
        .find(|(_, before, now)| before != now);
        match differing {
            None => Ok(()),
            Some((what, found, expected)) => {
                Err(TuneError::OtherRun { path: folder.into(), what, found, expected })
            }
        }
    }
}

/// The name of a target's file does not matter: two files with the same weights are one target.
fn describe(target: &TargetName) -> String {
    format!("hash {}", target.hash)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn hash_of_file(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(TuneError::io("read", path))?;
    Ok(hash::Fnv::default().with(&bytes).hex())
}

#[cfg(test)]
pub(super) fn example() -> Settings {
    Settings {
        target: TargetName { name: "t".into(), vocab_size: 64, hash: "0".into() },
        source: Source::Prompts { file: "p.txt".into(), hash: "1".into(), raw: true, thinking: None },
        max_response: 8,
        temperature: 0.0,
        held_out: 0.25,
        precision: "f32".into(),
        seed: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(DataFile::read(folder.path()).unwrap(), None);
        let file = DataFile { settings: example(), result: Some(Summary::default()) };
        file.write(folder.path()).unwrap();
        assert_eq!(DataFile::read(folder.path()).unwrap(), Some(file));
        fs::write(folder.path().join(DataFile::NAME), "{").unwrap();
        assert!(matches!(DataFile::read(folder.path()), Err(TuneError::File { .. })));
    }

    #[test]
    fn the_setting_that_differs_is_named() {
        let file = DataFile { settings: example(), result: None };
        let check = |change: &dyn Fn(&mut Settings)| {
            let mut settings = example();
            change(&mut settings);
            match file.check(Path::new("d"), &settings) {
                Ok(()) => "",
                Err(TuneError::OtherRun { what, .. }) => what,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(check(&|_| ()), "");
        assert_eq!(check(&|s| s.target.name = "elsewhere".into()), "");
        assert_eq!(check(&|s| s.target.vocab_size = 65), "vocabulary");
        assert_eq!(check(&|s| s.target.hash = "f".into()), "target");
        assert_eq!(check(&|s| s.seed = 2), "seed");
        let windows = Source::Windows { file: "p.txt".into(), hash: "1".into(), window: 3 };
        assert_eq!(check(&|s| s.source = windows.clone()), "source of prompts");
    }
}
