//! The four acceptance rules.

/// How draft tokens are accepted. All rules leave the target's distribution unchanged; at
/// temperature 0 each of them is greedy verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rule {
    /// Speculative sampling (Leviathan et al. 2211.17192, Chen et al. 2302.01318).
    #[default]
    Rejection,
    /// Block verification (Sun et al. 2403.10444): never accepts fewer in expectation.
    Block,
    /// The target draws with the random numbers of the position and accepts while the drafts match:
    /// the output is token for token that of autoregressive sampling with the same seed.
    Match,
}
