//! The algorithms that the stand-in proposes: one that is row-invariant, and others that a caller must refuse.

use crate::policy::Proposals;

/// Marks the data of an algorithm that came from here.
const MAGIC: u64 = 0x666c_6578_6472_6674;

/// Rows of a tile, which some algorithms treat as a whole.
const TILE: usize = 64;

/// An algorithm. The comment says what a caller's trial has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Sums as the emulator's own products do, whatever the rows.
    Invariant,
    /// Sums a product of one row in halves.
    SplitsSingleRows,
    /// Sums products of more than 40 rows in halves.
    SplitsManyRows,
    /// Sums the rows of an incomplete last tile in halves.
    SplitsTheLastTile,
    /// Sums the second half of every 16 rows in halves.
    SplitsByPlace,
    /// Sums every 50th product in halves.
    Unsteady,
    /// Needs more workspace than any caller offers.
    Greedy,
    /// Is accepted, and fails when a product has more than 16 rows.
    FailsOnManyRows,
    /// Splits sums and adds the parts, which a caller can exclude.
    SplitsSums,
    /// Sums in as many parts as the number of rows has bits: no two buckets of row counts agree.
    PartsByRows,
}

use Algorithm::{
    FailsOnManyRows, Greedy, Invariant, PartsByRows, SplitsByPlace, SplitsManyRows, SplitsSingleRows,
    SplitsSums, SplitsTheLastTile, Unsteady,
};

const ALL: [Algorithm; 10] = [
    Invariant,
    SplitsSingleRows,
    SplitsManyRows,
    SplitsTheLastTile,
    SplitsByPlace,
    Unsteady,
    Greedy,
    FailsOnManyRows,
    SplitsSums,
    PartsByRows,
];

/// The order of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As the emulator's own products.
    Usual,
    /// In parts of equal length, each from its start to its end.
    Parts(usize),
}

impl Algorithm {
    /// Returns the proposals of a policy, the fastest first.
    pub fn proposed(proposals: Proposals, may_split: bool) -> Vec<Self> {
        let mut found = match proposals {
            Proposals::Invariant => vec![Invariant],
            // At most eight proposals, which is what the callers ask for.
            Proposals::Hostile => vec![
                SplitsSingleRows,
                SplitsManyRows,
                SplitsTheLastTile,
                SplitsByPlace,
                Unsteady,
                Greedy,
                FailsOnManyRows,
                Invariant,
            ],
            Proposals::Varying => vec![PartsByRows, SplitsByPlace],
        };
        if may_split {
            found.insert(0, SplitsSums);
        }
        found
    }

    /// Returns the data of the opaque algorithm structure.
    pub fn data(self) -> [u64; 8] {
        let index = ALL.iter().position(|&one| one == self).unwrap_or_default();
        [MAGIC, index as u64, 0, 0, 0, 0, 0, 0]
    }

    /// Recognises an algorithm.
    pub fn from_data(data: &[u64; 8]) -> Option<Self> {
        let index = usize::try_from(data[1]).ok()?;
        ALL.get(index).copied().filter(|one| one.data() == *data)
    }

    /// Returns the workspace that the algorithm needs, in bytes.
    pub fn workspace(self) -> u64 {
        match self {
            Greedy => 1 << 30,
            SplitsSums => 4 << 20,
            _ => 0,
        }
    }

    /// Returns how fast the algorithm is: those that a caller must refuse are the fastest.
    pub fn speed(self) -> f64 {
        if self == Invariant { 1.0 } else { 2.0 }
    }

    /// Returns the order in which the row in place `place` of a product of `rows` rows is summed.
    pub fn order(self, rows: usize, place: usize, products: u64) -> Order {
        let halves = match self {
            SplitsSingleRows => rows == 1,
            SplitsManyRows => rows > 40,
            SplitsTheLastTile => rows > TILE && place >= rows / TILE * TILE,
            SplitsByPlace => place % 16 >= 8,
            Unsteady => products.is_multiple_of(50),
            SplitsSums => true,
            PartsByRows => return Order::Parts(2 + rows.max(1).ilog2() as usize),
            Invariant | Greedy | FailsOnManyRows => false,
        };
        if halves { Order::Parts(2) } else { Order::Usual }
    }

    /// Returns whether a product of `rows` rows fails.
    pub fn fails(self, rows: usize) -> bool {
        self == FailsOnManyRows && rows > 16
    }
}
