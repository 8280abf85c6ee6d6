//! A runtime that records the name of every kernel before its launch, and waits for the launch.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use flexdraft::runtime::{
    Cuda, Element, Launch, Limits, QueueId, Runtime, RuntimeError, Simt, View, ViewMut,
};
use serde::Serialize;
use serde_json::json;

/// A runtime whose caller can wait for its launches.
pub trait Waits: Runtime {
    /// Returns once every launch on `stream` has run; an error is the error of one of these launches.
    fn wait(&self, stream: &Self::Stream) -> Result<(), RuntimeError>;
}

impl Waits for Cuda {
    fn wait(&self, stream: &Self::Stream) -> Result<(), RuntimeError> {
        stream.synchronize().map_err(RuntimeError::from)
    }
}

impl Waits for Simt {
    fn wait(&self, _: &Self::Stream) -> Result<(), RuntimeError> {
        Ok(())
    }
}

/// A file of JSON lines that record launches. Each line is on disk when `add` returns, so that a process which is
/// killed leaves the name of the kernel that it waited for.
#[derive(Debug)]
pub struct Log(Mutex<File>);

impl Log {
    /// Opens a file of records so that new lines are added at its end.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Log(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?)))
    }

    pub fn add(&self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(text.as_bytes())?;
        file.sync_data()
    }
}

/// A runtime that launches kernels on `inner` one by one, and reports `limits` as the GPU's.
#[derive(Debug)]
pub struct Traced<R> {
    pub inner: Arc<R>,
    pub limits: Limits,
    pub log: Arc<Log>,
}

impl<R> Traced<R> {
    fn add(&self, kernel: &'static str, line: serde_json::Value) -> Result<(), RuntimeError> {
        self.log.add(&line).map_err(|error| RuntimeError::Failed { kernel, message: error.to_string() })
    }
}

impl<R: Waits> Runtime for Traced<R> {
    type Stream = R::Stream;
    type Memory<T: Element> = R::Memory<T>;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate<T: Element>(&self, stream: &R::Stream, len: usize) -> Result<R::Memory<T>, RuntimeError> {
        self.inner.allocate(stream, len)
    }

    fn upload<T: Element>(
        &self,
        stream: &R::Stream,
        from: &[T],
        to: &mut R::Memory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.inner.upload(stream, from, to, first)
    }

    fn download<T: Element>(
        &self,
        stream: &R::Stream,
        from: &R::Memory<T>,
        first: usize,
        to: &mut [T],
    ) -> Result<(), RuntimeError> {
        self.inner.download(stream, from, first, to)
    }

    fn copy<T: Element>(
        &self,
        stream: &R::Stream,
        from: &R::Memory<T>,
        range: Range<usize>,
        to: &mut R::Memory<T>,
        first: usize,
    ) -> Result<(), RuntimeError> {
        self.inner.copy(stream, from, range, to, first)
    }

    fn view<'a, T: Element>(&self, stream: &'a R::Stream, memory: &'a R::Memory<T>) -> View<'a, T> {
        self.inner.view(stream, memory)
    }

    fn view_mut<'a, T: Element>(
        &self,
        stream: &'a R::Stream,
        memory: &'a mut R::Memory<T>,
    ) -> ViewMut<'a, T> {
        self.inner.view_mut(stream, memory)
    }

    fn queue(&self, stream: &R::Stream) -> QueueId {
        self.inner.queue(stream)
    }

    unsafe fn launch(&self, stream: &R::Stream, launch: &Launch<'_>) -> Result<(), RuntimeError> {
        let Launch { kernel, grid, threads, shared_bytes, .. } = *launch;
        self.add(
            kernel,
            json!({"launching": kernel, "grid": grid, "threads": threads, "shared": shared_bytes}),
        )?;
        let begun = Instant::now();
        // SAFETY: the caller upholds the contract of this function.
        let launched = unsafe { self.inner.launch(stream, launch) }.and_then(|()| self.inner.wait(stream));
        match launched {
            Ok(()) => {
                let us = begun.elapsed().as_secs_f64() * 1e6;
                self.add(kernel, json!({"kernel": kernel, "status": "ok", "us": us}))
            }
            Err(error) => {
                let message = match &error {
                    RuntimeError::Failed { message, .. } => message.clone(),
                    RuntimeError::Launch { error, .. } => error.to_string(),
                    other => other.to_string(),
                };
                self.add(kernel, json!({"kernel": kernel, "status": "failed", "error": message}))?;
                Err(error)
            }
        }
    }
}
