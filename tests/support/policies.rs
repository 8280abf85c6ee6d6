//! Policies that choose at random, for tests only.

use flexdraft::decode::{BatchView, Choice, Policy};
use flexdraft::layout::GroupSet;

/// A policy that chooses any group set that the drafter allows, differently for each sequence and step.
pub struct RandomGroups(pub u64);

impl RandomGroups {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 17
    }

    fn groups(&mut self, batch: &BatchView<'_>) -> GroupSet {
        let bits = self.next();
        if batch.groups_allowed { GroupSet::from_bits(bits) } else { GroupSet::NONE }
    }
}

impl Policy for RandomGroups {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        batch.sequences.iter().map(|view| Choice::drafting(view, self.groups(batch))).collect()
    }

    fn name(&self) -> &'static str {
        "random groups"
    }
}

/// A policy that chooses any group set, any verify length, and at times no draft at all.
pub struct RandomEverything(pub RandomGroups);

impl Policy for RandomEverything {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let random = &mut self.0;
        batch
            .sequences
            .iter()
            .map(|_| Choice {
                verify_len: random.next() as usize % 9,
                groups: random.groups(batch),
                draft: !random.next().is_multiple_of(4),
            })
            .collect()
    }

    fn name(&self) -> &'static str {
        "random everything"
    }
}
