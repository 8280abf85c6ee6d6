//! Tests that `PassTables` refuses sequences that do not form a valid pass.

use flexdraft::kernels::{KernelError, Paging, PassTables};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::runtime::Simt;

use super::Host;

pub const PAGES: usize = 6;
pub const PAGE_SIZE: usize = 16;
const PAGING: Paging = Paging { pages: PAGES, page_size: PAGE_SIZE };

/// Number of rows of the two test sequences: one with three candidates and two groups of two slots, one with a single
/// candidate.
pub const ROWS: usize = 3 + 2 * 2 + 1;
/// The largest number of cached positions that a row of the test's pass sees.
pub const SEEN: usize = 70;

fn sound() -> [SequenceRows<'static>; 2] {
    [
        SequenceRows { pages: &[3, 1], start: 20, candidates: 3, groups: vec![0, 2], slots: 2 },
        // Both sequences read page 3, which is permitted.
        SequenceRows { pages: &[3, 3, 3, 0, 2], start: 69, candidates: 1, groups: vec![], slots: 0 },
    ]
}

/// Returns the tables of the test's pass, uploaded to an emulator.
pub fn tables(host: &Host) -> PassTables<Simt> {
    let (simt, stream) = (host.kernels.runtime(), &host.stream);
    let mut tables = PassTables::new(simt, stream, 2, 5).unwrap();
    tables.upload(simt, stream, &Pass { sequences: sound().to_vec() }, PAGING).unwrap();
    assert_eq!((tables.rows(), tables.longest()), (ROWS, SEEN));
    tables
}

/// Returns the tables of a pass with one sequence, whose last candidate is at position `length` − 1.
pub fn tables_of_length(host: &Host, length: usize) -> PassTables<Simt> {
    let (simt, stream) = (host.kernels.runtime(), &host.stream);
    let pages = vec![0; length.div_ceil(PAGE_SIZE)];
    let mut tables = PassTables::new(simt, stream, 1, pages.len()).unwrap();
    let rows = SequenceRows { pages: &pages, start: length - 1, candidates: 1, groups: vec![], slots: 0 };
    tables.upload(simt, stream, &Pass { sequences: vec![rows] }, PAGING).unwrap();
    tables
}

/// Returns the error that refuses `sequences`, after checking that the tables are unchanged.
#[track_caller]
fn refused(sequences: &[SequenceRows<'_>], paging: Paging) -> KernelError {
    let host = Host::new(None);
    let mut tables = tables(&host);
    host.simt().take_calls();
    let pass = Pass { sequences: sequences.to_vec() };
    let error = tables.upload(host.simt(), &host.stream, &pass, paging).unwrap_err();
    assert_eq!(host.simt().take_calls().uploads, 0, "{error}");
    assert_eq!((tables.batch(), tables.rows(), tables.paging()), (2, ROWS, PAGING), "{error}");
    error
}

#[test]
fn sequences_that_cannot_be() {
    let wrong = |spoil: fn(&mut SequenceRows<'static>), what, found, limit| {
        let mut sequences = sound();
        spoil(&mut sequences[1]);
        let expected = KernelError::Sequence { sequence: 1, what, found, limit };
        assert_eq!(refused(&sequences, PAGING), expected);
    };
    wrong(|s| s.pages = &[0; 6], "number of pages", 6, 5);
    wrong(|s| s.start = 80, "cached positions", 81, 80);
    wrong(|s| (s.candidates, s.groups, s.slots) = (0, vec![0, 11], 2), "cached positions", 81, 80);
    wrong(|s| (s.groups, s.slots) = (vec![0, 64], 2), "distance of the first and last group", 64, 63);
    wrong(|s| s.slots = 65, "number of slots", 65, 64);
    wrong(|s| s.start = usize::MAX, "cached positions", usize::MAX, 80);

    let refused_second = |spoil: fn(&mut SequenceRows<'static>)| {
        let mut sequences = sound();
        spoil(&mut sequences[1]);
        refused(&sequences, PAGING)
    };
    let error = refused_second(|s| s.pages = &[3, 3, 3, 0, 6]);
    assert_eq!(error, KernelError::PageId { sequence: 1, page: 6, pages: 6 });
    assert_eq!(
        error.to_string(),
        "pass tables: sequence 1: page id 6 is out of range, the cache has 6 pages"
    );
    let error = refused_second(|s| (s.groups, s.slots) = (vec![2, 1], 2));
    assert_eq!(error, KernelError::GroupOrder { sequence: 1, group: 2, next: 1 });
    let error = refused_second(|s| s.groups = vec![0]);
    assert_eq!(error, KernelError::NoSlots { sequence: 1, groups: 1 });
    let error = refused_second(|s| (s.candidates, s.groups, s.slots) = (2, vec![0, 2], 2));
    assert_eq!(error, KernelError::GroupBeyondCandidates { sequence: 1, group: 2, candidates: 2 });
    assert_eq!(
        error.to_string(),
        "pass tables: sequence 1: group 2 sees candidates 0 to 2, and the sequence has 2 candidates"
    );
}

#[test]
fn passes_that_cannot_be() {
    let [first, second] = sound();
    let pass = |what, found, limit| KernelError::Pass { what, found, limit };
    let three = [first.clone(), second.clone(), SequenceRows { candidates: 0, ..second.clone() }];
    assert_eq!(refused(&three, PAGING), pass("number of sequences", 3, 2));
    let pages = i32::MAX as usize + 1;
    let error = refused(std::slice::from_ref(&first), Paging { pages, ..PAGING });
    assert_eq!(error, pass("number of pages", pages, pages - 1));
    for page_size in [0, 24, 1 << 17] {
        let error = refused(std::slice::from_ref(&first), Paging { page_size, ..PAGING });
        let (what, supported) = ("page size", "1 to 15, and multiples of 16 up to 65536");
        let found = page_size as i64;
        assert_eq!(error, KernelError::Unsupported { kernel: "pass tables", what, found, supported });
    }
}

/// Two candidates of one pass must not be appended to the same address of the cache.
#[test]
fn candidates_that_are_appended_to_the_same_token_of_a_page() {
    let [first, second] = sound();
    let shared = |sequence, other, page, token| KernelError::SharedToken { sequence, other, page, token };
    // The first sequence appends to tokens 4, 5 and 6 of page 1, the second to token 5 of its last page.
    let pages = &[3, 3, 3, 0, 1];
    let both = [first.clone(), SequenceRows { pages, ..second.clone() }];
    assert_eq!(refused(&both, PAGING), shared(1, 0, 1, 5));
    let both = [SequenceRows { pages, ..second.clone() }, first.clone()];
    assert_eq!(refused(&both, PAGING), shared(1, 0, 1, 5));
    // The page table of the sequence `twice` has the page twice to which the sequence appends.
    let twice = SequenceRows { pages: &[3, 1, 1], candidates: 20, groups: vec![], ..first.clone() };
    assert_eq!(refused(&[twice], PAGING), shared(0, 0, 1, 4));

    // Sequences may append to different tokens of a page, and may share pages that are only read or that belong to
    // sequences without candidates.
    let host = Host::new(None);
    let mut tables = tables(&host);
    let mut upload = |sequences: &[SequenceRows<'_>]| {
        tables.upload(host.simt(), &host.stream, &Pass { sequences: sequences.to_vec() }, PAGING).unwrap();
    };
    for start in [64 + 3, 64 + 7] {
        upload(&[first.clone(), SequenceRows { pages, start, ..second.clone() }]);
    }
    upload(&[first.clone(), SequenceRows { pages, candidates: 0, groups: vec![0], slots: 1, ..second }]);
    upload(&[first.clone(), SequenceRows { candidates: 0, ..first }]);
}

#[test]
fn tables_that_are_too_large() {
    let host = Host::new(None);
    for (batch, pages) in [(usize::MAX, 1), (1, usize::MAX), (1 << 16, 1 << 16)] {
        let error = PassTables::new(host.simt(), &host.stream, batch, pages).unwrap_err();
        let what = "max_batch * max_pages";
        assert_eq!(error, KernelError::Overflow { kernel: "pass tables", what });
    }
    assert_eq!(host.simt().take_calls().allocations, 0);
}
