//! The rows of a forward pass, as tables on the device.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;

use flexdraft::kernels::{Paging, PassTables};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::runtime::{QueueId, Runtime};

use crate::processor::{Call, FlexdraftKernels, On};
use crate::status::{
    FLEXDRAFT_QUEUE, FlexdraftError, MOST, Outcome, Refusal, borrow, guard, read, size, table, versioned,
    write,
};

/// The tables of a pass on the device: the rows and the pages of each sequence. A caller makes the tables once for its
/// largest batch, uploads each step's rows, and uses the tables in every layer.
pub struct FlexdraftPass {
    tables: Box<dyn Any + Send>,
    queue: QueueId,
}

impl fmt::Debug for FlexdraftPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlexdraftPass").finish_non_exhaustive()
    }
}

/// Returns the failure of a pass that was opened for another queue of launches.
fn other(what: &str) -> Refusal {
    let text = format!("`pass` was opened on another {what} than the call is for, expected the same");
    Refusal { status: FLEXDRAFT_QUEUE, text }
}

impl FlexdraftPass {
    /// Returns the tables, which were made by the same kernels, for a query that launches nothing.
    pub(crate) fn tables<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<&PassTables<R>> {
        let same = self.queue.context == on.queue().context;
        self.tables.downcast_ref().filter(|_| same).ok_or_else(|| other("processor"))
    }

    /// Returns the tables for a launch on the stream for which they were made.
    pub(crate) fn launched<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<&PassTables<R>> {
        let tables = self.tables(on)?;
        if self.queue == on.queue() { Ok(tables) } else { Err(other("stream")) }
    }

    /// Returns the tables for a change, on the stream for which they were made.
    pub(crate) fn changed<R: Runtime>(&mut self, on: &On<'_, R>) -> Outcome<&mut PassTables<R>> {
        self.launched(on)?;
        self.tables.downcast_mut().ok_or_else(|| other("processor"))
    }
}

/// The rows of one sequence in a pass. Candidate i is at position `start` + i. Slot j of the mask group of accepted
/// length k is at position `start` + k + 1 + j; it sees the positions up to `start` + k and all slots of its group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSequence {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Page ids of the KV cache in host memory, `[page_count]`: position p is in page `pages[p / page_size]`.
    pub pages: *const u32,
    /// Number of pages. The pages cover every cached position that a row of the sequence sees.
    pub page_count: u64,
    /// Position n of candidate 0; the positions 0 to n − 1 are cached.
    pub start: u64,
    /// Number of candidate rows; 0 in a drafting pass.
    pub candidates: u64,
    /// Accepted length that bit 0 of `groups` stands for.
    pub first_group: u64,
    /// Mask groups of the sequence: bit i stands for accepted length `first_group` + i.
    pub groups: u64,
    /// Block size S: the number of slots per mask group, 1 to 64; ignored without groups.
    pub slots: u64,
}

/// The rows of a pass: the candidate rows of every sequence in order, then the mask rows of every sequence. Groups are
/// in ascending order, and slots in order within a group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftPassRows {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The sequences in batch order, in host memory, `[sequence_count]`; each states its own size.
    pub sequences: *const FlexdraftSequence,
    /// Number of sequences.
    pub sequence_count: u64,
    /// Bytes from one sequence to the next: sizeof(FlexdraftSequence) of the caller.
    pub sequence_stride: u64,
    /// Number of pages of the KV cache; page ids are smaller.
    pub pages: u64,
    /// Tokens per page: 1 to 15, or a multiple of 16 up to 65536. With 1, page ids are slots of tokens.
    pub page_size: u64,
}

versioned!(FlexdraftSequence, FlexdraftPassRows);

impl FlexdraftSequence {
    /// Returns the rows in the layout's form; `index` is the number of the sequence, for errors.
    ///
    /// # Safety
    ///
    /// `pages` is null or readable for `page_count` entries.
    pub(crate) unsafe fn rows<'a>(&self, index: u64) -> Outcome<SequenceRows<'a>> {
        let first = size("first_group", self.first_group)?;
        let group = |bit: usize| first.checked_add(bit).ok_or_else(|| Refusal::overflow("first_group"));
        let groups = (0..64).filter(|bit| self.groups >> bit & 1 == 1).map(group);
        let groups = groups.collect::<Outcome<Vec<usize>>>()?;
        Ok(SequenceRows {
            // SAFETY: the caller upholds the contract of this function.
            pages: unsafe { table(&format!("pages of sequence {index}"), self.pages, self.page_count)? },
            start: size("start", self.start)?,
            candidates: size("candidates", self.candidates)?,
            slots: if groups.is_empty() { 0 } else { size("slots", self.slots)? },
            groups,
        })
    }
}

/// Returns the division of a cache into pages.
pub(crate) fn paging(pages: u64, page_size: u64) -> Outcome<Paging> {
    Ok(Paging { pages: size("pages", pages)?, page_size: size("page_size", page_size)? })
}

/// The creation of tables for passes of up to `max_batch` sequences with up to `max_pages` pages each.
pub(crate) struct NewPass {
    pub max_batch: usize,
    pub max_pages: usize,
}

impl Call for NewPass {
    type Output = FlexdraftPass;

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<FlexdraftPass> {
        let tables = PassTables::new(on.kernels.runtime(), on.stream, self.max_batch, self.max_pages)?;
        Ok(FlexdraftPass { tables: Box::new(tables), queue: on.queue() })
    }
}

/// The upload of a pass into its tables.
pub(crate) struct Upload<'a> {
    pub pass: *mut FlexdraftPass,
    pub rows: &'a Pass<'a>,
    pub paging: Paging,
}

impl Call for Upload<'_> {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        // SAFETY: the exported function's caller guarantees that the pass is open, and that no other call uses it.
        let pass = unsafe { self.pass.as_mut() }.ok_or_else(|| Refusal::null("pass", "an open pass"))?;
        Ok(pass.changed(on)?.upload(on.kernels.runtime(), on.stream, self.rows, self.paging)?)
    }
}

/// Allocates tables on the device for passes of up to `max_batch` sequences with up to `max_pages` pages each, and
/// writes the object to `pass`. Launches that use the tables go to the same stream.
///
/// Errors: FLEXDRAFT_OVERFLOW if the tables would have more than 2^31 entries; FLEXDRAFT_OUT_OF_MEMORY.
///
/// # Safety
///
/// `kernels` is null or open; `stream` is a cudaStream_t of the device's primary context that outlives the pass; `pass`
/// is null or writable; `error` is null or valid for the size that it states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_pass_open(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    max_batch: u64,
    max_pages: u64,
    pass: *mut *mut FlexdraftPass,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        if pass.is_null() {
            return Err(Refusal::null("pass", "memory for the result"));
        }
        let call =
            NewPass { max_batch: size("max_batch", max_batch)?, max_pages: size("max_pages", max_pages)? };
        // SAFETY: the caller upholds the contract of this function.
        let opened = unsafe { borrow("kernels", kernels)? }.run(stream, &call)?;
        // SAFETY: as above.
        unsafe { write("pass", pass, Box::into_raw(Box::new(opened))) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Checks the rows of a pass and copies them to the tables, after all earlier work on `stream`. Sequences may share
/// pages that they read; no two candidates may be appended to one token of a page. A captured graph must not contain an
/// upload.
///
/// Errors: FLEXDRAFT_PASS_ROWS if a sequence is invalid (the text names the sequence, the value that was found and the
/// limit), FLEXDRAFT_UNSUPPORTED for another page size, FLEXDRAFT_QUEUE for another processor or stream than at
/// `flexdraft_pass_open`. After an error the tables hold the earlier pass.
///
/// # Safety
///
/// `kernels` and `pass` are null or open, and no other call uses the pass; `rows`, its sequences and their page ids are
/// null or readable for the sizes that are stated; `error` is null or valid for the size that it states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_pass_upload(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    pass: *mut FlexdraftPass,
    rows: *const FlexdraftPassRows,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        let (kernels, rows) = unsafe { (borrow("kernels", kernels)?, read(rows)?) };
        let (count, stride) = (rows.sequence_count, size("sequence_stride", rows.sequence_stride)?);
        if count > MOST {
            return Err(Refusal::overflow("sequence_count"));
        }
        if count > 0 && rows.sequences.is_null() {
            return Err(Refusal::null("sequences", &format!("{count} sequences")));
        }
        if count > 1 && stride < 8 {
            return Err(Refusal::value("sequence_stride", stride, "the size of FlexdraftSequence"));
        }
        let sequence = |index: u64| {
            let offset = stride.checked_mul(index as usize).filter(|&bytes| bytes <= isize::MAX as usize);
            let offset = offset.ok_or_else(|| Refusal::overflow("sequence_stride"))?;
            // SAFETY: the caller upholds the contract of this function; the sequences have this distance.
            unsafe { read(rows.sequences.cast::<u8>().add(offset).cast::<FlexdraftSequence>())?.rows(index) }
        };
        let sequences = (0..count).map(sequence).collect::<Outcome<Vec<_>>>()?;
        let paging = paging(rows.pages, rows.page_size)?;
        kernels.run(stream, &Upload { pass, rows: &Pass { sequences }, paging })
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Frees the tables of a pass. Null is allowed. On a GPU this waits for the work on the device.
///
/// # Safety
///
/// `pass` is null, or came from `flexdraft_pass_open` and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_pass_close(pass: *mut FlexdraftPass) {
    let body = || {
        if !pass.is_null() {
            // SAFETY: the caller upholds the contract of this function.
            drop(unsafe { Box::from_raw(pass) });
        }
        Ok(())
    };
    // SAFETY: null is no memory for an error.
    unsafe { guard(std::ptr::null_mut(), body) };
}
