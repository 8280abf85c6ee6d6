//! The recorded runs of the official implementation of Orthrus. `tests/fixtures/orthrus` holds the model; its README
//! describes the recordings and how to compare with them.

use std::path::{Path, PathBuf};

use flexdraft::decode::{Confidence, Request};
use serde::Deserialize;

pub const BLOCK_SIZE: usize = 8;

#[derive(Deserialize)]
pub struct Case {
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub output: Vec<u32>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
pub struct Step {
    pub start: usize,
    pub anchor: u32,
    pub draft: Vec<u32>,
    pub confidence: Vec<f32>,
    pub accepted: usize,
    pub bonus: u32,
}

impl Case {
    pub fn request(&self) -> Request {
        Request {
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            record: true,
            ..Request::new(self.prompt.clone(), self.max_new_tokens)
        }
    }

    /// Returns the steps in which the official loop had a whole block, the only ones whose drafts can be compared.
    pub fn whole_steps(&self) -> impl Iterator<Item = &Step> {
        let end = self.prompt.len() + self.max_new_tokens;
        self.steps.iter().take_while(move |step| step.start + BLOCK_SIZE <= end)
    }
}

pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/orthrus")
}

pub fn cases() -> Vec<Case> {
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(fixture().join("cases.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 12);
    cases
}
