//! A forward pass in the form in which the CPU device keeps it.

use super::check;
use super::kv_cache::CpuKvCache;
use super::page_layout::PageLayout;
use crate::device::DeviceError;
use crate::layout::{Pass, Row};

/// A forward pass whose rows were checked against the pages of a KV cache.
#[derive(Debug)]
pub struct CheckedPass<'a> {
    /// The sequences and their pages.
    pub(super) pass: &'a Pass<'a>,
    /// Every row of the pass, candidates first.
    pub(super) rows: Vec<Row>,
    /// Number of candidate rows.
    pub(super) candidates: usize,
    paging: PageLayout,
}

impl<'a> CheckedPass<'a> {
    pub(super) fn new(pass: &'a Pass<'a>, cache: &CpuKvCache) -> Result<Self, DeviceError> {
        let paging = cache.paging();
        let (candidates, _) = paging.check_pass("begin", pass)?;
        Ok(Self { pass, rows: pass.rows(), candidates, paging })
    }

    /// Checks that `cache` has the pages for which the pass was checked.
    pub(super) fn check_cache(&self, operation: &'static str, cache: &CpuKvCache) -> Result<(), DeviceError> {
        let [expected, found] = [self.paging, cache.paging()].map(|paging| [paging.pages, paging.page_size]);
        check::shape(operation, "cache [pages, page_size]", &expected, &found)
    }
}
