//! Why a kernel was not launched.

use crate::backend::BackendError;

/// An operand that violates a kernel's contract, or a launch that failed. Nothing was launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An operand has the wrong number of elements.
    #[error("{kernel}: operand `{operand}` has {found} elements, and {expected} were expected")]
    Length {
        /// The kernel.
        kernel: &'static str,
        /// The operand.
        operand: &'static str,
        /// Elements that the shapes ask for.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// An operand's address is not a multiple of what the kernel's wide loads need.
    #[error("{kernel}: operand `{operand}` at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// The kernel.
        kernel: &'static str,
        /// The operand.
        operand: &'static str,
        /// The alignment asked for, in bytes.
        alignment: usize,
        /// Where it is.
        address: u64,
    },
    /// An operand belongs to another stream or device than the launch.
    #[error("{kernel}: operand `{operand}` belongs to another device or stream than the launch")]
    Queue {
        /// The kernel.
        kernel: &'static str,
        /// The operand.
        operand: &'static str,
    },
    /// A shape or value that the kernel does not support.
    #[error("{kernel}: {what} is {found}; supported: {supported}")]
    Unsupported {
        /// The kernel.
        kernel: &'static str,
        /// The shape or value.
        what: &'static str,
        /// What it is.
        found: i64,
        /// What it may be.
        supported: &'static str,
    },
    /// A sequence of a pass that has more of something than it can have.
    #[error("sequence {sequence} of the pass: {what} is {found}, and at most {limit} is possible")]
    Pass {
        /// The sequence's index.
        sequence: usize,
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there can be.
        limit: usize,
    },
    /// Two candidate rows of a pass whose k and v would be appended to the same token of a page, so that which of them
    /// the cache holds afterwards would depend on timing.
    #[error(
        "sequence {sequence} of the pass: it would append to token {token} of page {page}, as sequence {other} does"
    )]
    SharedToken {
        /// The sequence's index.
        sequence: usize,
        /// The sequence that appends there too: an earlier one, or the same, which has the page twice.
        other: usize,
        /// The page's id.
        page: u32,
        /// The token of the page.
        token: usize,
    },
    /// Shapes whose product does not fit the type that counts it.
    #[error("{kernel}: the size of `{what}` overflows")]
    Overflow {
        /// The kernel.
        kernel: &'static str,
        /// The operand or shape.
        what: &'static str,
    },
    /// The launch failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
