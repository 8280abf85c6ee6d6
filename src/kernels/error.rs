//! The error type of kernel launches.

use crate::runtime::RuntimeError;

/// An error of a kernel's operands, or of its launch. After such an error, nothing was launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An operand has the wrong number of elements.
    #[error("{kernel}: operand `{operand}` has {found} elements, and {expected} were expected")]
    Length {
        /// The kernel's name.
        kernel: &'static str,
        /// The operand's name.
        operand: &'static str,
        /// Elements that the shapes require.
        expected: usize,
        /// Elements that the operand has.
        found: usize,
    },
    /// An operand's address is not a multiple of what the kernel's wide loads need.
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
    /// A shape or value that the kernel does not support.
    #[error("{kernel}: {what} is {found}; supported: {supported}")]
    Unsupported {
        /// The kernel's name.
        kernel: &'static str,
        /// The name of the shape or value.
        what: &'static str,
        /// Its value.
        found: i64,
        /// The supported values, in words.
        supported: &'static str,
    },
    /// A sequence of a pass exceeds a limit.
    #[error("sequence {sequence} of the pass: {what} is {found}, and at most {limit} is possible")]
    Pass {
        /// The sequence's index.
        sequence: usize,
        /// The name of the quantity that is too large.
        what: &'static str,
        /// The quantity that was found.
        found: usize,
        /// The largest allowed quantity.
        limit: usize,
    },
    /// Two candidate rows of a pass would append their k and v to the same token of a page, so timing would
    /// decide which of them the cache holds afterwards.
    #[error(
        "sequence {sequence} of the pass: it would append to token {token} of page {page}, as sequence {other} does"
    )]
    SharedToken {
        /// Index of the sequence.
        sequence: usize,
        /// Index of the sequence that appends to the same place: an earlier one, or the same one if it lists
        /// the page twice.
        other: usize,
        /// Id of the page.
        page: u32,
        /// Index of the token within the page.
        token: usize,
    },
    /// The product of some shapes does not fit the integer type that counts it.
    #[error("{kernel}: the size of `{what}` overflows")]
    Overflow {
        /// The kernel's name.
        kernel: &'static str,
        /// The name of the operand or shape.
        what: &'static str,
    },
    /// The launch failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}
