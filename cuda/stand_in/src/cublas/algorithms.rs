//! The matrix-product algorithms that the stand-in proposes: one that is row-invariant, and others that a caller must
//! refuse.

use crate::policy::Proposals;

/// A magic number in the data of an algorithm, by which the stand-in recognises its own algorithms.
const MAGIC: u64 = 0x666c_6578_6472_6674;

/// The number of rows per tile, which some algorithms treat as a whole.
const TILE: usize = 64;

/// An algorithm for matrix products, named by the way in which it sums or fails. The comment says what a caller's trial
/// has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Sums as the emulator's own matrix products do, whatever the rows: this algorithm is row-invariant.
    Invariant,
    /// Splits every sum of a product into halves if the product has one row.
    SplitsSingleRows,
    /// Splits every sum of a product into halves if the product has more than 40 rows.
    SplitsManyRows,
    /// Splits the sums of the rows in an incomplete last tile into halves.
    SplitsTheLastTile,
    /// Splits the sums of the last 8 of every 16 rows into halves.
    SplitsByPlace,
    /// Splits every sum into halves in every 50th product.
    Unsteady,
    /// Needs more workspace than any caller offers.
    Greedy,
    /// Is accepted by the check of algorithms, and fails when a product has more than 16 rows.
    FailsOnManyRows,
    /// Splits every sum among several workers and adds the parts, a scheme that a caller can exclude.
    SplitsSums,
    /// Splits every sum into one more part than the number of rows has bits: no two ranges of row counts between powers
    /// of two agree.
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

/// The order in which the products of a dot product are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The order of the emulator's own matrix products.
    Usual,
    /// Parts of equal length, each summed from its start to its end, and then added.
    Parts(usize),
}

impl Algorithm {
    /// Returns the algorithms that a policy proposes, the fastest first.
    pub fn proposed(proposals: Proposals, may_split: bool) -> Vec<Self> {
        let mut found = match proposals {
            Proposals::Invariant => vec![Invariant],
            // The policy has at most eight proposals, because callers ask for eight.
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

    /// Returns the data that stands for the algorithm in cuBLASLt's opaque structure.
    pub fn data(self) -> [u64; 8] {
        let index = ALL.iter().position(|&one| one == self).unwrap_or_default();
        [MAGIC, index as u64, 0, 0, 0, 0, 0, 0]
    }

    /// Returns the algorithm for which the data of an opaque structure stands, if the stand-in made the data.
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

    /// Returns how fast the algorithm is, relative to the row-invariant algorithm: the algorithms that a caller must
    /// refuse are the fastest.
    pub fn speed(self) -> f64 {
        if self == Invariant { 1.0 } else { 2.0 }
    }

    /// Returns the order in which row number `place` of a product of `rows` rows is summed.
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

    /// Returns whether the algorithm fails for a product of `rows` rows.
    pub fn fails(self, rows: usize) -> bool {
        self == FailsOnManyRows && rows > 16
    }
}
