//! Tests with operands that violate one precondition of a kernel's safe method each: the method returns the typed error
//! that names the operand, and launches nothing.

mod acceptance;
mod attention;
mod between_products;
mod chain;
mod memory;
mod pass;
mod sampling;

use flexdraft::kernels::{KernelError, Kernels};
use flexdraft::runtime::{Limits, Simt, SimtOptions, SimtStream};
use memory::Memory;

/// The emulator that kernels are launched on, and a stream of another emulator.
pub struct Host {
    pub kernels: Kernels<Simt>,
    pub stream: SimtStream,
    pub elsewhere: SimtStream,
}

impl Host {
    fn new(limits: Option<Limits>) -> Self {
        let options = SimtOptions::default();
        let simt = Simt::new(options);
        let simt = limits.map(|limits| Simt::new(options).limited(limits)).unwrap_or(simt);
        let stream = simt.stream();
        Host { kernels: Kernels::new(simt), stream, elsewhere: Simt::new(options).stream() }
    }

    fn simt(&self) -> &Simt {
        self.kernels.runtime()
    }
}

/// A kernel's operands, which are valid until a test spoils one of them.
pub trait Launch {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError>;

    /// Returns the processor's limits, if the kernel's precondition depends on them.
    fn limits(&self) -> Option<Limits> {
        None
    }
}

/// One operand of a kernel, and how a test spoils it.
pub struct Operand<K> {
    pub name: &'static str,
    /// Required alignment of the operand, in bytes.
    pub alignment: usize,
    pub of: fn(&mut K) -> &mut Memory,
    /// True if the kernel checks this operand's length against other operands; false if the lengths of others are
    /// checked against it.
    pub measured: bool,
}

/// Returns an operand whose length follows from the other operands.
pub fn measured<K>(name: &'static str, alignment: usize, of: fn(&mut K) -> &mut Memory) -> Operand<K> {
    Operand { name, alignment, of, measured: true }
}

/// Returns an operand that determines the length of other operands.
pub fn measure<K>(name: &'static str, alignment: usize, of: fn(&mut K) -> &mut Memory) -> Operand<K> {
    Operand { name, alignment, of, measured: false }
}

/// Checks that a kernel accepts the unchanged operands of `sound`.
#[track_caller]
pub fn taken<K: Launch>(sound: fn() -> K) {
    let mut operands = sound();
    let host = Host::new(operands.limits());
    operands.launch(&host).unwrap();
    assert!(host.simt().take_calls().launches > 0);
}

/// Checks that the operands of `sound`, spoiled by `spoil`, give the error `expected` (with any address in it) and
/// launch nothing.
#[track_caller]
pub fn refused<K: Launch>(sound: fn() -> K, spoil: impl FnOnce(&mut K), expected: KernelError) {
    let mut operands = sound();
    spoil(&mut operands);
    let host = Host::new(operands.limits());
    let mut found = operands.launch(&host).unwrap_err();
    if let KernelError::Alignment { address, .. } = &mut found {
        *address = 0;
    }
    assert_eq!(found, expected);
    assert_eq!(host.simt().take_calls().launches, 0, "{found}");
}

/// Checks that `kernel` refuses each of these operands if it is too short, misaligned, or in the memory of another
/// emulator.
#[track_caller]
pub fn operands_are_checked<K: Launch>(sound: fn() -> K, kernel: &'static str, operands: &[Operand<K>]) {
    for &Operand { name: operand, alignment, of, measured } in operands {
        if measured {
            let expected = of(&mut sound()).len();
            let length = KernelError::Length { kernel, operand, expected, found: expected - 1 };
            refused(sound, |k| of(k).shorten(1), length);
        }
        let misaligned = KernelError::Alignment { kernel, operand, alignment, address: 0 };
        refused(sound, |k| of(k).shift(alignment / 2), misaligned);
        refused(sound, |k| of(k).elsewhere(), KernelError::Queue { kernel, operand });
    }
}

/// Returns the error for a shape or value that `kernel` does not support.
pub fn unsupported(
    kernel: &'static str,
    what: &'static str,
    found: i64,
    supported: &'static str,
) -> KernelError {
    KernelError::Unsupported { kernel, what, found, supported }
}

/// Returns the error for an operand of the wrong length.
pub fn length(kernel: &'static str, operand: &'static str, expected: usize, found: usize) -> KernelError {
    KernelError::Length { kernel, operand, expected, found }
}
