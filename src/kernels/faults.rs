//! Faults that kernels report in the device error word: conditions that could not be checked before the
//! launch.

use std::fmt;

use super::params::common::{
    FLEXDRAFT_ERROR_NAN, FLEXDRAFT_ERROR_PAGE, FLEXDRAFT_ERROR_PLAN, FLEXDRAFT_ERROR_ROW,
    FLEXDRAFT_ERROR_STORE, FLEXDRAFT_ERROR_TOKEN,
};

/// One fault: a bit of the device error word (`FlexdraftError` of `cuda/common/params.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A page id is out of range; the access was skipped, and attention took keys and values of zero instead.
    #[error("a page id out of range")]
    Page,
    /// A token id is out of range; the kernel used zeros instead.
    #[error("a token id out of range")]
    Token,
    /// A logit is NaN, which counted as −∞.
    #[error("a NaN among the logits")]
    Nan,
    /// A sequence is longer than the workspace allows; its rows were skipped, and their results are zeros.
    #[error("a sequence longer than the workspace allows")]
    Plan,
    /// A row or sequence index is out of range; the row or sequence was skipped, and the operand's doc says what its
    /// result is.
    #[error("a row or sequence index out of range")]
    Row,
    /// Calibrated logits were needed a second time but not stored, so truncation dropped nothing from the row.
    #[error("calibrated logits that were needed again and not stored")]
    Store,
}

const ALL: [(Fault, u32); 6] = [
    (Fault::Page, FLEXDRAFT_ERROR_PAGE),
    (Fault::Token, FLEXDRAFT_ERROR_TOKEN),
    (Fault::Nan, FLEXDRAFT_ERROR_NAN),
    (Fault::Plan, FLEXDRAFT_ERROR_PLAN),
    (Fault::Row, FLEXDRAFT_ERROR_ROW),
    (Fault::Store, FLEXDRAFT_ERROR_STORE),
];

/// The faults that kernels reported in a device error word, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults(u32);

impl Faults {
    /// Returns the faults in the error word `word`; `None` if `word` is 0.
    pub fn of(word: u32) -> Option<Self> {
        (word != 0).then_some(Faults(word))
    }

    /// Returns the faults as an error word.
    pub fn word(self) -> u32 {
        self.0
    }

    /// Returns the other faults, or `None` if `fault` is the only one.
    pub fn without(self, fault: Fault) -> Option<Self> {
        let bit = ALL.iter().find(|&&(named, _)| named == fault).map_or(0, |&(_, bit)| bit);
        Faults::of(self.0 & !bit)
    }

    /// Returns whether `fault` is one of these faults.
    pub fn contains(self, fault: Fault) -> bool {
        self.iter().any(|other| other == fault)
    }

    /// Iterates over those faults of the word that [`Fault`] names.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        ALL.into_iter().filter(move |&(_, bit)| self.0 & bit != 0).map(|(fault, _)| fault)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { ", " })?;
        }
        match self.0 & !ALL.iter().fold(0, |bits, (_, bit)| bits | bit) {
            0 => Ok(()),
            unnamed if unnamed == self.0 => write!(f, "error word {unnamed:#x}"),
            unnamed => write!(f, ", error word {unnamed:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_named() {
        assert_eq!(Faults::of(0), None);
        for (fault, bit) in ALL {
            let faults = Faults::of(bit).unwrap();
            assert_eq!(faults.iter().collect::<Vec<_>>(), [fault]);
            assert!(faults.contains(fault));
            assert_eq!(faults.to_string(), fault.to_string());
        }
        let both = Faults::of(FLEXDRAFT_ERROR_PAGE | FLEXDRAFT_ERROR_NAN | 0x100).unwrap();
        assert_eq!(both.to_string(), "a page id out of range, a NaN among the logits, error word 0x100");
        assert_eq!(Faults::of(0x80).unwrap().to_string(), "error word 0x80");
        assert_eq!(Faults::of(0x80).unwrap().word(), 0x80);
        assert_eq!(both.without(Fault::Nan), Faults::of(FLEXDRAFT_ERROR_PAGE | 0x100));
        assert_eq!(Faults::of(FLEXDRAFT_ERROR_NAN).unwrap().without(Fault::Nan), None);
    }
}
