//! Warnings if a run differs from the measurements that a drafter's card (`DrafterCard`) records: another chat
//! template, another thinking mode, or far fewer accepted drafts.

use flexdraft::model::DrafterCard;

use crate::args::DrafterSource;
use crate::error::Result;
use crate::models::Pair;
use crate::template::Template;

/// Number of steps after which the acceptance length of a run is compared with the measured one on the card.
const STEPS: usize = 64;

/// The card of a run's drafter, with the measurements of the drafter, if it has a card.
#[derive(Debug, Default)]
pub struct Card(Option<DrafterCard>);

impl Card {
    pub fn read(pair: &Pair) -> Result<Self> {
        match &pair.draft {
            Some(DrafterSource::Directory(dir)) => Ok(Self(DrafterCard::read(dir)?)),
            _ => Ok(Self::default()),
        }
    }

    /// Returns a warning for each setting of the chat template that differs from the settings on the card.
    pub fn differences(&self, template: &Template) -> Vec<String> {
        let Some(card) = &self.0 else { return Vec::new() };
        let mut found = Vec::new();
        if card.template.as_ref().is_some_and(|hash| *hash != template.hash()) {
            found.push(
                "the drafter was measured with another chat template, so it may be accepted less".into(),
            );
        }
        if card.thinking != template.thinking() {
            let name = |thinking| match thinking {
                None => "the template's default",
                Some(true) => "thinking",
                Some(false) => "no thinking",
            };
            found.push(format!(
                "the drafter was measured with {}, and this run has {}, so it may be accepted less",
                name(card.thinking),
                name(template.thinking())
            ));
        }
        found
    }

    /// Returns a warning if the acceptance length of a run, after [`STEPS`] steps or more, is under half of the
    /// acceptance length on the card.
    pub fn shortfall(&self, acceptance_length: f64, steps: usize) -> Option<String> {
        let expected = self.0.as_ref()?.least_acceptance_length()?;
        (steps >= STEPS && acceptance_length < expected / 2.0).then(|| {
            format!(
                "the acceptance length is {acceptance_length:.2} after {steps} steps, and the drafter's card says \
                 {expected:.2}: the drafter does not fit these prompts or this target"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_needs_steps_and_a_card() {
        let acceptance_lengths = [("a".to_owned(), 5.0), ("b".to_owned(), 3.0)].into();
        let card = Card(Some(DrafterCard { acceptance_lengths, ..DrafterCard::default() }));
        assert!(
            card.shortfall(1.4, 64)
                .unwrap()
                .contains("1.40 after 64 steps, and the drafter's card says 3.00")
        );
        assert_eq!(card.shortfall(1.4, 63), None);
        assert_eq!(card.shortfall(1.6, 64), None);
        assert_eq!(Card::default().shortfall(1.0, 99), None);
    }
}
