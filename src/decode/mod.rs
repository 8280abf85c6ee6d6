//! The decode loop.

/// A request that the engine cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {}
