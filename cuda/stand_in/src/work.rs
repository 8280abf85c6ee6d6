//! The pieces of work that calls put on a stream.

use std::sync::Arc;

use crate::cublas::Product;

/// The source or the destination of a copy.
#[derive(Clone, Debug)]
pub enum Place {
    Device(u64),
    /// Memory of the host, accessed when the copy runs.
    Host(u64),
    /// The contents that the caller's memory had at the call.
    Staged(Arc<[u8]>),
}

/// A launch of a kernel on a stream.
#[derive(Clone, Debug)]
pub struct KernelLaunch {
    pub name: &'static str,
    pub module: u64,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    /// The parameter struct of the kernel.
    pub params: Arc<[u64]>,
    pub params_bytes: usize,
    /// Whether the launch may begin before the previous launch has ended.
    pub dependent: bool,
}

/// A piece of work on a stream.
#[derive(Clone, Debug)]
pub enum Work {
    Copy {
        to: Place,
        from: Place,
        bytes: u64,
    },
    Fill {
        to: u64,
        value: u8,
        bytes: u64,
    },
    Launch(KernelLaunch),
    Product(Arc<Product>),
    Free(u64),
    /// Marks an event as reached, unless it was recorded again since.
    Reached {
        event: u64,
        recording: u64,
    },
    /// Waits until another stream has finished a number of pieces of work.
    Wait {
        stream: u64,
        count: u64,
    },
    Graph(Arc<[Work]>),
}

impl Work {
    /// Returns the modelled time of the work in microseconds; the times only order algorithms by their speed.
    pub fn microseconds(&self) -> f64 {
        match self {
            Work::Copy { bytes, .. } | Work::Fill { bytes, .. } => 1.0 + *bytes as f64 / 2e6,
            Work::Launch(_) => 2.0,
            Work::Product(product) => product.microseconds(),
            Work::Free(_) | Work::Reached { .. } | Work::Wait { .. } | Work::Graph(_) => 0.0,
        }
    }
}
