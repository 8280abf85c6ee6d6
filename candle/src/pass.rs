//! The rows of a pass, as tables on the device.

use candle_core::{Device, Result};
use flexdraft::kernels::{KernelError, Kernels as Loaded, Paging, PassTables as Tables};
use flexdraft::layout::Pass;
use flexdraft::runtime::{Runtime, Simt};

use crate::error::refused;
use crate::operands::Operands;
use crate::processor::{Kernels, on_processor};

/// The tables of a [`Pass`] on the device: the rows and the pages of each sequence. They are made once for the largest
/// batch, [uploaded](Kernels::upload_pass) once per step, and used in every layer.
#[derive(Debug)]
pub struct PassTables {
    tables: OnProcessor,
    device: Device,
}

#[derive(Debug)]
pub(crate) enum OnProcessor {
    Emulator(Tables<Simt>),
    #[cfg(feature = "cuda")]
    Gpu(Tables<flexdraft::runtime::Cuda>),
}

/// A runtime of flexdraft that this crate uses.
pub(crate) trait Processes: Runtime + Sized {
    /// Returns the tables of this runtime as tables of any runtime.
    fn own(tables: Tables<Self>) -> OnProcessor;
    /// Returns the tables, if they are on this runtime.
    fn tables(tables: &OnProcessor) -> Option<&Tables<Self>>;
    /// Returns the tables for a change, if they are on this runtime.
    fn tables_mut(tables: &mut OnProcessor) -> Option<&mut Tables<Self>>;
}

macro_rules! processes {
    ($runtime:ty, $processor:ident) => {
        impl Processes for $runtime {
            fn own(tables: Tables<Self>) -> OnProcessor {
                OnProcessor::$processor(tables)
            }

            fn tables(tables: &OnProcessor) -> Option<&Tables<Self>> {
                match tables {
                    OnProcessor::$processor(tables) => Some(tables),
                    #[cfg(feature = "cuda")]
                    _ => None,
                }
            }

            fn tables_mut(tables: &mut OnProcessor) -> Option<&mut Tables<Self>> {
                match tables {
                    OnProcessor::$processor(tables) => Some(tables),
                    #[cfg(feature = "cuda")]
                    _ => None,
                }
            }
        }
    };
}
processes!(Simt, Emulator);
#[cfg(feature = "cuda")]
processes!(flexdraft::runtime::Cuda, Gpu);

/// The error for tables of another processor. The earlier check of the device prevents this error.
const OTHER: KernelError = KernelError::Queue { kernel: "pass tables", operand: "pass" };

impl PassTables {
    /// Checks that the tables are on the device of a launch.
    pub(crate) fn check(&self, operands: &Operands<'_>) -> Result<()> {
        operands.on("pass", &self.device)
    }

    /// Returns the tables for a launch of `loaded`.
    pub(crate) fn on<R: Processes>(
        &self,
        _loaded: &Loaded<R>,
    ) -> std::result::Result<&Tables<R>, KernelError> {
        R::tables(&self.tables).ok_or(OTHER)
    }

    /// Returns the tables for a launch of `loaded` that changes them.
    pub(crate) fn on_mut<R: Processes>(
        &mut self,
        _loaded: &Loaded<R>,
    ) -> std::result::Result<&mut Tables<R>, KernelError> {
        R::tables_mut(&mut self.tables).ok_or(OTHER)
    }

    /// Returns the number of candidate rows of the pass, which come first.
    pub fn candidates(&self) -> usize {
        match &self.tables {
            OnProcessor::Emulator(tables) => tables.candidates(),
            #[cfg(feature = "cuda")]
            OnProcessor::Gpu(tables) => tables.candidates(),
        }
    }

    /// Returns the number of candidate rows and mask rows of the pass.
    pub fn rows(&self) -> usize {
        match &self.tables {
            OnProcessor::Emulator(tables) => tables.rows(),
            #[cfg(feature = "cuda")]
            OnProcessor::Gpu(tables) => tables.rows(),
        }
    }
}

impl Kernels {
    /// Allocates tables for passes of up to `max_batch` sequences with up to `max_pages` pages each. They hold no sequence
    /// yet.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`](crate::Error::Kernel) if the sizes overflow or memory runs out.
    pub fn pass_tables(&self, max_batch: usize, max_pages: usize) -> Result<PassTables> {
        let tables = on_processor!(self, |loaded, stream| {
            Tables::new(loaded.runtime(), stream, max_batch, max_pages).map(Processes::own)
        });
        Ok(PassTables { tables: tables.map_err(refused)?, device: self.device.clone() })
    }

    /// Checks `pass` and writes its rows and pages to the tables, after all earlier launches. The cache has
    /// `paging.pages` pages.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`](crate::Error::Kernel) if the pass or a sequence is invalid, as for
    /// [`flexdraft::kernels::PassTables::upload`]; [`Error::Device`](crate::Error::Device) for tables of another
    /// device. After an error, the tables are unchanged.
    pub fn upload_pass(&self, tables: &mut PassTables, pass: &Pass<'_>, paging: Paging) -> Result<()> {
        tables.check(&self.operands("upload_pass"))?;
        let uploaded = on_processor!(self, |loaded, stream| {
            let found = tables.on_mut(loaded);
            found.and_then(|tables| tables.upload(loaded.runtime(), stream, pass, paging))
        });
        uploaded.map_err(refused)
    }
}
