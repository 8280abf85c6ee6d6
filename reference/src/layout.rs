//! The rows of a step: their positions, and the positions that they see (FlexDraft, arXiv 2605.20022: the mask of
//! joint drafting and verification).
//!
//! Let n be the position of c_0, S the number of slots per group, and positions 0..n cached:
//!
//! | query row | position | sees |
//! |---|---|---|
//! | candidate i | n + i | positions 0..=n + i |
//! | slot j of group k | n + k + 1 + j | positions 0..=n + k, and all S slots of group k, both ways |
//!
//! The last position that a row sees among the clean tokens is its **limit**. Group k prepares the next block for the
//! case that exactly k draft tokens are accepted: its slot 0 is at the position of the bonus token, and every slot
//! predicts the token at its own position.

use std::ops::Range;

/// One query row of a step: its position, and what it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Position of the row, for the rotary embedding.
    pub position: usize,
    /// The last position of an ordinary token, not a mask token, that the row sees.
    pub limit: usize,
    /// For a mask row, the indices of its group's rows among the rows of the step.
    pub group: Option<Range<usize>>,
}

/// Returns the rows of one sequence: candidates 0..=`verify_len`, then the groups in the given order, each with its
/// `slots` in order.
pub fn rows(start: usize, verify_len: usize, groups: &[usize], slots: usize) -> Vec<Row> {
    let mut rows: Vec<Row> =
        (0..=verify_len).map(|i| Row { position: start + i, limit: start + i, group: None }).collect();
    for k in groups {
        let group = rows.len()..rows.len() + slots;
        for j in 0..slots {
            rows.push(Row { position: start + k + 1 + j, limit: start + k, group: Some(group.clone()) });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_table() {
        let found: Vec<_> =
            rows(5, 2, &[0, 2], 2).into_iter().map(|r| (r.position, r.limit, r.group)).collect();
        assert_eq!(
            found,
            [
                (5, 5, None),
                (6, 6, None),
                (7, 7, None),
                (6, 5, Some(3..5)),
                (7, 5, Some(3..5)),
                (8, 7, Some(5..7)),
                (9, 7, Some(5..7)),
            ]
        );
    }
}
