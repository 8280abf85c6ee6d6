//! The description of a tuning run in its checkpoint, and the check that a run may resume from it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::error::{Result, TuneError, settings_difference};
use crate::hash;
use crate::transcripts::Transcript;

/// The description of a tuning run in its checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    pub target: String,
    pub settings: Settings,
    /// Hash of the transcripts; empty in old checkpoints without one.
    #[serde(default)]
    pub data: String,
    pub step: usize,
    /// Number of steps over which the learning rate falls; 0 in old checkpoints, where it is the number in the settings.
    #[serde(default)]
    pub schedule_steps: usize,
    pub anchors: usize,
    /// Token ids of the shortlist; empty for the whole vocabulary.
    pub shortlist: Vec<u32>,
    pub best: Option<Evaluated>,
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
pub(super) fn check_same_run(
    path: &Path,
    found: &Description,
    settings: &Settings,
    target: &str,
    data: &str,
) -> Result<()> {
    let other = |what, found: String, expected: String| {
        Err(TuneError::OtherRun { path: path.into(), what, found, expected })
    };
    if found.target != target {
        return other("target", found.target.clone(), target.to_owned());
    }
    if !found.data.is_empty() && found.data != data {
        return other("set of transcripts", found.data.clone(), data.to_owned());
    }
    // A run may resume with another number of steps and other reporting intervals.
    let comparable = |s: &Settings| Settings {
        steps: 1,
        evaluate_every: 1,
        evaluate_on: 1,
        checkpoint_every: 1,
        kept_gib: 0.0,
        ..s.clone()
    };
    match settings_difference(&comparable(&found.settings), &comparable(settings)) {
        Some((found, expected)) => other("configuration", found, expected),
        None => Ok(()),
    }
}

/// Returns a hash that tells sets of transcripts apart.
pub(super) fn of_transcripts(train: &[Transcript], heldout: &[Transcript]) -> String {
    let part = |hash: hash::Fnv, ids: &[u32]| hash.with(&hash::of_ids(ids).value().to_le_bytes());
    let all = train.iter().chain(heldout);
    let hash = all.fold(hash::Fnv::default(), |hash, t| part(part(hash, &t.prompt), &t.response));
    hash.with(&(train.len() as u64).to_le_bytes()).hex()
}
