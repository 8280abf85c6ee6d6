//! The description of a training run in its checkpoint, and the check that a run may resume from it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::training::TrainingSettings;
use crate::error::{Result, TuneError, settings_difference};
use crate::hash;
use crate::transcripts::Transcript;

/// The settings with which a run may differ from its checkpoint: the number of steps, what is reported and saved, and
/// memory.
const MAY_DIFFER: [&str; 5] = ["steps", "evaluate_every", "evaluate_on", "checkpoint_every", "kept_gib"];

/// The description of a training run in its checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Description<S> {
    pub target: String,
    /// Hash of the frozen drafter's checkpoint; empty for a run that trains the whole drafter.
    #[serde(default)]
    pub drafter: String,
    pub settings: S,
    /// Hash of the transcripts; empty in old checkpoints without one.
    #[serde(default)]
    pub data: String,
    pub step: usize,
    /// Number of steps over which the learning rate falls; 0 in old checkpoints, where it is the number in the settings.
    #[serde(default)]
    pub schedule_steps: usize,
    pub anchors: usize,
    /// Token ids of the shortlist; empty for the whole vocabulary.
    #[serde(default)]
    pub shortlist: Vec<u32>,
    pub best: Option<Evaluated>,
}

impl<S: TrainingSettings> Description<S> {
    /// Returns the description of a run before its first step. `target` and `data` are hashes.
    pub fn new(target: String, settings: &S, data: String) -> Self {
        Self {
            target,
            drafter: String::new(),
            settings: settings.clone(),
            data,
            step: 0,
            schedule_steps: settings.training().steps,
            anchors: 0,
            shortlist: Vec::new(),
            best: None,
        }
    }
}

/// The result of an evaluation on held-out transcripts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Evaluated {
    pub step: usize,
    pub tau: f64,
}

/// Checks that a checkpoint belongs to the run that would resume from it.
///
/// # Errors
/// [`TuneError::OtherRun`] naming what differs.
pub(super) fn check_same_run<S: TrainingSettings>(
    path: &Path,
    found: &Description<S>,
    now: &Description<S>,
) -> Result<()> {
    let other = |what, found: String, expected: String| {
        Err(TuneError::OtherRun { path: path.into(), what, found, expected })
    };
    for (what, before, now) in [
        ("target", &found.target, &now.target),
        ("drafter", &found.drafter, &now.drafter),
        ("set of transcripts", &found.data, &now.data),
    ] {
        let is_unknown = what == "set of transcripts" && before.is_empty();
        if before != now && !is_unknown {
            return other(what, before.clone(), now.clone());
        }
    }
    match settings_difference(&comparable(&found.settings), &comparable(&now.settings)) {
        Some((found, expected)) => other("configuration", found, expected),
        None => Ok(()),
    }
}

/// Returns the settings that a run must share with its checkpoint.
fn comparable<S: TrainingSettings>(settings: &S) -> Value {
    // The settings pass through JSON text, in which an f32 has no more digits than it needs.
    let text = serde_json::to_string(settings).unwrap_or_default();
    let mut settings = serde_json::from_str(&text).unwrap_or_default();
    if let Value::Object(fields) = &mut settings {
        MAY_DIFFER.iter().for_each(|&field| drop(fields.remove(field)));
    }
    settings
}

/// Returns a hash that tells sets of transcripts apart.
pub(super) fn of_transcripts(train: &[Transcript], heldout: &[Transcript]) -> String {
    let part = |hash: hash::Fnv, ids: &[u32]| hash.with(&hash::of_ids(ids).value().to_le_bytes());
    let all = train.iter().chain(heldout);
    let hash = all.fold(hash::Fnv::default(), |hash, t| part(part(hash, &t.prompt), &t.response));
    hash.with(&(train.len() as u64).to_le_bytes()).hex()
}
