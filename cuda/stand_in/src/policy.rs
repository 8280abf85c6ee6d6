//! The stand-in's policies: its choices where CUDA's driver is free to choose, and the faults that it makes.
//! docs/testing.md lists the environment variables.

use std::env;
use std::path::PathBuf;

/// The time at which work on a stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Work runs at once, when it is put on the stream.
    Eager,
    /// Work runs only when a call or other work waits for it.
    Late,
}

/// The algorithms that the stand-in's cuBLASLt proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposals {
    /// The row-invariant algorithm only.
    Invariant,
    /// Faster algorithms whose order of sums depends on the rows, or that cannot be used, and the row-invariant one.
    Hostile,
    /// No row-invariant algorithm: only a product's number of rows decides the order of its sums.
    Varying,
}

/// The work that is accepted but not run, so that its result does not appear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    Nothing,
    /// All kernels and all matrix products.
    All,
    /// Copies and matrix products that take a CPU too long.
    Large,
    /// The kernel with this name.
    Kernel(String),
}

/// The call that a policy makes fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub call: String,
    /// The number of the call that fails, counted from 1 among the calls with the same name.
    pub nth: u64,
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub streams: Streams,
    pub proposals: Proposals,
    pub skip: Skip,
    pub failure: Option<Failure>,
    /// The size of device memory in bytes.
    pub memory: u64,
    /// Whether the emulator checks every access of a kernel.
    pub checked: bool,
    /// The kernel whose waits for earlier launches do nothing.
    pub unwaited: Option<String>,
    /// The file to which the number of calls by name is written when the process ends.
    pub calls: Option<PathBuf>,
    /// Whether every refused call is printed.
    pub log: bool,
}

/// The memory of an H100 in bytes, the default size of device memory.
const MEMORY: u64 = 81_559 << 20;

impl Default for Policy {
    fn default() -> Self {
        Policy {
            streams: Streams::Eager,
            proposals: Proposals::Invariant,
            skip: Skip::Nothing,
            failure: None,
            memory: MEMORY,
            checked: false,
            unwaited: None,
            calls: None,
            log: false,
        }
    }
}

impl Policy {
    /// Reads the policies from environment variables. The error names the variable.
    pub fn from_environment() -> Result<Self, String> {
        let choice = |name: &str| env::var(format!("FLEXDRAFT_STAND_IN_{name}")).unwrap_or_default();
        let wrong = |name: &str, value: &str, known: &str| {
            Err(format!("FLEXDRAFT_STAND_IN_{name} is `{value}`; expected {known}"))
        };
        let streams = match choice("STREAMS").as_str() {
            "" | "eager" => Streams::Eager,
            "late" => Streams::Late,
            other => return wrong("STREAMS", other, "eager or late"),
        };
        let proposals = match choice("PRODUCTS").as_str() {
            "" | "invariant" => Proposals::Invariant,
            "hostile" => Proposals::Hostile,
            "varying" => Proposals::Varying,
            other => return wrong("PRODUCTS", other, "invariant, hostile or varying"),
        };
        let skip = match choice("SKIP").as_str() {
            "" => Skip::Nothing,
            "all" => Skip::All,
            "large" => Skip::Large,
            kernel => Skip::Kernel(kernel.to_owned()),
        };
        let failure = match choice("FAIL").as_str() {
            "" => None,
            text => match text.split_once(':').map(|(call, nth)| (call, nth.parse())) {
                Some((call, Ok(nth))) => Some(Failure { call: call.to_owned(), nth }),
                _ => return wrong("FAIL", text, "CALL:N, the name of a call and which one fails"),
            },
        };
        let memory = match choice("MEMORY").as_str() {
            "" => MEMORY,
            text => match text.parse() {
                Ok(bytes) => bytes,
                Err(_) => return wrong("MEMORY", text, "a number of bytes"),
            },
        };
        let checked = match choice("CHECKING").as_str() {
            "" | "off" => false,
            "accesses" => true,
            other => return wrong("CHECKING", other, "off or accesses"),
        };
        let unwaited = Some(choice("UNWAITED")).filter(|kernel| !kernel.is_empty());
        let calls = Some(PathBuf::from(choice("CALLS"))).filter(|path| !path.as_os_str().is_empty());
        let log = choice("LOG") == "1";
        Ok(Policy { streams, proposals, skip, failure, memory, checked, unwaited, calls, log })
    }
}
