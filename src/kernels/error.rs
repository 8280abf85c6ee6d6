//! The error type of kernel launches.

use super::limits::ExceededLimit;
use crate::runtime::RuntimeError;

/// An error of a kernel's operands, or of its launch. After such an error, nothing was launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An operand has the wrong number of elements.
    #[error("{kernel}: operand `{operand}` has {found} elements, expected {expected}")]
    Length {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The number of elements that the shapes require.
        expected: usize,
        /// The number of elements that the operand has.
        found: usize,
    },
    /// An operand's address is not a multiple of the alignment that the kernel's wide loads need.
    #[error("{kernel}: operand `{operand}` at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The required alignment, in bytes.
        alignment: usize,
        /// The operand's address.
        address: u64,
    },
    /// An operand belongs to another stream or device than the launch does.
    #[error("{kernel}: operand `{operand}` belongs to another device or stream than the launch")]
    Queue {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
    },
    /// An operand has elements of another type than the operands before it require.
    #[error("{kernel}: operand `{operand}` has elements of type {found}, expected {expected}")]
    Type {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// The name of the expected type.
        expected: &'static str,
        /// The name of the type that was found.
        found: &'static str,
    },
    /// A shape or value that the kernel does not support.
    #[error("{kernel}: {what} is {found}; supported: {supported}")]
    Unsupported {
        /// The kernel's name.
        kernel: &'static str,
        /// The name of the shape or value.
        what: &'static str,
        /// The value that was found.
        found: i64,
        /// The supported values, in words.
        supported: &'static str,
    },
    /// A pass as a whole exceeds a limit.
    #[error("pass tables: {what} is {found}, the limit is {limit}")]
    Pass {
        /// The name of the quantity that is too large.
        what: &'static str,
        /// The value of the quantity.
        found: usize,
        /// The largest value that the quantity may have.
        limit: usize,
    },
    /// A sequence of a pass exceeds a limit.
    #[error("pass tables: sequence {sequence}: {what} is {found}, the limit is {limit}")]
    Sequence {
        /// The sequence's index.
        sequence: usize,
        /// The name of the quantity that is too large.
        what: &'static str,
        /// The value of the quantity.
        found: usize,
        /// The largest value that the quantity may have.
        limit: usize,
    },
    /// A sequence of a pass names a page that the cache does not have.
    #[error("pass tables: sequence {sequence}: page id {page} is out of range, the cache has {pages} pages")]
    PageId {
        /// The sequence's index.
        sequence: usize,
        /// The page id that was found.
        page: u32,
        /// The number of pages of the cache.
        pages: usize,
    },
    /// The mask groups of a sequence are not in ascending order.
    #[error(
        "pass tables: sequence {sequence}: group {next} follows group {group}, expected ascending groups"
    )]
    GroupOrder {
        /// The sequence's index.
        sequence: usize,
        /// The accepted length of a group.
        group: usize,
        /// The accepted length of the group after it.
        next: usize,
    },
    /// A mask group of a sequence sees positions after the candidates, whose keys and values no row writes.
    #[error(
        "pass tables: sequence {sequence}: group {group} sees candidates 0 to {group}, and the sequence has \
         {candidates} candidates"
    )]
    GroupBeyondCandidates {
        /// The sequence's index.
        sequence: usize,
        /// The accepted length of the group.
        group: usize,
        /// The number of candidates of the sequence, at least 1.
        candidates: usize,
    },
    /// A sequence of a pass has mask groups without slots.
    #[error("pass tables: sequence {sequence}: its {groups} mask groups have 0 slots, expected 1 to 64")]
    NoSlots {
        /// The sequence's index.
        sequence: usize,
        /// The number of mask groups of the sequence.
        groups: usize,
    },
    /// Two candidate rows of a pass would append their k and v to the same token of a page, so timing would
    /// decide which of them the cache holds afterwards.
    #[error(
        "pass tables: sequence {sequence} would append to token {token} of page {page}, as sequence {other} does"
    )]
    SharedToken {
        /// Index of the sequence.
        sequence: usize,
        /// Index of the other sequence that appends to the same token: an earlier sequence, or the same sequence if it
        /// lists the page twice.
        other: usize,
        /// Id of the page.
        page: u32,
        /// Index of the token within the page.
        token: usize,
    },
    /// A size or an index does not fit the integer type that the kernel uses for it.
    #[error("{kernel}: the size or index `{what}` is too large for its integer type")]
    Overflow {
        /// The kernel's name.
        kernel: &'static str,
        /// The name of the operand or shape.
        what: &'static str,
    },
    /// The runtime could not launch the kernel.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl KernelError {
    /// Returns the error for a launch of `kernel` that exceeds a limit.
    pub(super) fn exceeded(kernel: &'static str, limit: ExceededLimit) -> Self {
        let ExceededLimit { what, found, supported } = limit;
        let found = i64::try_from(found).unwrap_or(i64::MAX);
        KernelError::Unsupported { kernel, what, found, supported }
    }
}
