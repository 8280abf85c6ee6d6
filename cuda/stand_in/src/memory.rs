//! Device memory: a range of addresses of this process that nothing can access, except work while it runs.
//!
//! An address is never used twice. An allocation begins at a multiple of 256 bytes, as the driver guarantees and no more,
//! and ends less than 256 bytes before memory that is never accessible.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::CUresult;

use crate::refusal::{Outcome, refused};

/// The first address of device memory. Neither half of an address in this range is a likely value of an integer
/// parameter.
const BASE: u64 = 0x5b3d_0000_0000;
/// The number of bytes that all allocations of a process together can have.
const RANGE: u64 = 128 << 30;

const PAGE: u64 = 4096;
const ALIGNMENT: u64 = 256;

/// The pattern in new and freed memory: NaN as f32 and as bf16, and a negative integer.
const POISON: [u8; 2] = [0xd5, 0xff];
/// The size of an allocation above which only its edges get the pattern, so that memory that is never touched costs
/// nothing.
const MOST_POISONED: usize = 64 << 20;
const POISONED_EDGE: usize = 1 << 20;

/// The number of bytes from which on zeroing gives their pages back to the system, which has zeros for later use.
const RETURNED: usize = 1 << 20;

/// An allocation of device memory.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    pub start: u64,
    pub bytes: u64,
}

impl Allocation {
    fn pages(&self) -> (u64, u64) {
        let first = self.start / PAGE * PAGE;
        (first, (self.start + self.bytes).next_multiple_of(PAGE).max(first + PAGE) - first)
    }
}

/// All device memory, and the page-locked memory of the host.
#[derive(Debug)]
pub struct Memory {
    allocations: BTreeMap<u64, Allocation>,
    page_locked: BTreeMap<u64, Box<[u64]>>,
    next: u64,
    live: u64,
    limit: u64,
}

impl Memory {
    /// Reserves the range of addresses from which `limit` bytes of device memory can be allocated.
    pub fn new(limit: u64) -> Outcome<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping, which replaces no other one.
        let found = unsafe { libc::mmap(at(BASE), RANGE as usize, libc::PROT_NONE, flags, -1, 0) };
        if found != at(BASE) {
            return refused(CUresult::CUDA_ERROR_OUT_OF_MEMORY, "the addresses of device memory are taken");
        }
        let (allocations, page_locked) = Default::default();
        Ok(Memory { allocations, page_locked, next: BASE, live: 0, limit })
    }

    /// Returns the free and the total device memory in bytes.
    pub fn sizes(&self) -> (u64, u64) {
        (self.limit.saturating_sub(self.live), self.limit)
    }

    /// Returns the allocations of device memory that were not freed.
    pub fn live(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values()
    }

    /// Returns the sizes in bytes of the page-locked allocations that were not freed.
    pub fn live_page_locked(&self) -> impl Iterator<Item = usize> {
        self.page_locked.values().map(|memory| size_of_val(&**memory))
    }

    /// Allocates device memory with undefined contents.
    pub fn allocate(&mut self, bytes: u64) -> Outcome<u64> {
        if bytes == 0 {
            return refused(
                CUresult::CUDA_ERROR_INVALID_VALUE,
                "0 bytes were requested, expected at least 1",
            );
        }
        let (free, total) = self.sizes();
        let room = (BASE + RANGE - self.next).saturating_sub(2 * PAGE);
        if bytes > free || bytes.next_multiple_of(PAGE) > room {
            let reason = format!("{bytes} bytes were requested, and {free} of {total} bytes are free");
            return refused(CUresult::CUDA_ERROR_OUT_OF_MEMORY, reason);
        }
        let pages = bytes.next_multiple_of(PAGE);
        let start = self.next + pages - bytes.next_multiple_of(ALIGNMENT);
        let allocation = Allocation { start, bytes };
        // The page after the allocation stays inaccessible, so that accesses beyond the allocation fail.
        self.next += pages + PAGE;
        self.live += bytes;
        self.allocations.insert(start, allocation);
        open(&allocation);
        let (first, pages) = allocation.pages();
        // SAFETY: the pages of the new allocation, which are open and belong to nothing else.
        let memory = unsafe { std::slice::from_raw_parts_mut(at(first).cast::<u8>(), pages as usize) };
        if memory.len() > MOST_POISONED {
            let (edge, rest) = memory.split_at_mut(POISONED_EDGE);
            let inner = rest.len() - POISONED_EDGE;
            poison(edge);
            poison(&mut rest[inner..]);
        } else {
            poison(memory);
        }
        close(&allocation);
        Ok(start)
    }

    /// Frees an allocation of device memory. Returns whether something has written the few bytes after it.
    pub fn free(&mut self, address: u64) -> Outcome<bool> {
        let Some(allocation) = self.allocations.remove(&address) else {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, unknown(address, 0));
        };
        self.live -= allocation.bytes;
        open(&allocation);
        let (first, pages) = allocation.pages();
        let end = allocation.start + allocation.bytes;
        let rest = (first + pages - end) as usize;
        // SAFETY: the rest of the allocation's last page, which is open.
        let rest = unsafe { std::slice::from_raw_parts(at(end).cast::<u8>(), rest) };
        let written = (end..).zip(rest).any(|(address, &byte)| byte != POISON[(address % 2) as usize]);
        // SAFETY: the pages of an allocation that is gone; the mapping stays reserved and becomes inaccessible.
        unsafe {
            libc::madvise(at(first), pages as usize, libc::MADV_DONTNEED);
            libc::mprotect(at(first), pages as usize, libc::PROT_NONE);
        }
        Ok(written)
    }

    /// Returns the allocation that contains a range of bytes; an error if none does.
    pub fn containing(&self, address: u64, bytes: u64) -> Outcome<Allocation> {
        let found = self.allocations.range(..=address).next_back().map(|(_, allocation)| *allocation);
        let end = address.checked_add(bytes);
        match found.filter(|found| end.is_some_and(|end| end <= found.start + found.bytes)) {
            Some(found) => Ok(found),
            None => refused(CUresult::CUDA_ERROR_INVALID_VALUE, unknown(address, bytes)),
        }
    }

    /// Allocates page-locked memory of the host.
    pub fn lock_pages(&mut self, bytes: u64) -> Outcome<u64> {
        let mut memory = Vec::new();
        if memory.try_reserve_exact((bytes as usize).div_ceil(8).max(1)).is_err() {
            return refused(
                CUresult::CUDA_ERROR_OUT_OF_MEMORY,
                format!("the host has no {bytes} free bytes"),
            );
        }
        memory
            .resize(memory.capacity(), u64::from_ne_bytes([0xd5, 0xff, 0xd5, 0xff, 0xd5, 0xff, 0xd5, 0xff]));
        let memory = memory.into_boxed_slice();
        let address = memory.as_ptr() as u64;
        self.page_locked.insert(address, memory);
        Ok(address)
    }

    /// Frees page-locked memory of the host.
    pub fn unlock_pages(&mut self, address: u64) -> Outcome {
        match self.page_locked.remove(&address) {
            Some(_) => Ok(()),
            None => {
                refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("no page-locked memory at {address:#x}"))
            }
        }
    }

    /// Returns whether a host address is in page-locked memory.
    pub fn is_page_locked(&self, address: u64) -> bool {
        self.page_locked_at(address).is_some()
    }

    /// Returns the start of the page-locked memory that contains an address.
    pub fn page_locked_at(&self, address: u64) -> Option<u64> {
        let (start, memory) = self.page_locked.range(..=address).next_back()?;
        (address - start < size_of_val(&**memory) as u64).then_some(*start)
    }
}

fn unknown(address: u64, bytes: u64) -> String {
    format!("{bytes} bytes at {address:#x} are in no allocation: they were freed or never allocated")
}

/// Returns whether an address is in the range that is reserved for device memory.
pub fn is_device_address(address: u64) -> bool {
    (BASE..BASE + RANGE).contains(&address)
}

/// Makes an allocation of device memory accessible.
pub fn open(allocation: &Allocation) {
    let (first, bytes) = allocation.pages();
    // SAFETY: pages of the reserved range, which only device memory uses.
    unsafe { libc::mprotect(at(first), bytes as usize, libc::PROT_READ | libc::PROT_WRITE) };
}

/// Makes an allocation of device memory inaccessible.
pub fn close(allocation: &Allocation) {
    let (first, bytes) = allocation.pages();
    // SAFETY: as in `open`.
    unsafe { libc::mprotect(at(first), bytes as usize, libc::PROT_NONE) };
}

/// Fills device memory with a byte.
///
/// # Safety
///
/// The bytes belong to an open allocation.
pub unsafe fn fill(address: u64, value: u8, bytes: usize) {
    let (mut first, end) = (address, address + bytes as u64);
    if value == 0 && bytes >= RETURNED {
        let (inner, inner_end) = (first.next_multiple_of(PAGE), end / PAGE * PAGE);
        // SAFETY: whole pages of the caller's bytes, private and anonymous: they read as zeros afterwards.
        unsafe {
            libc::madvise(at(inner), (inner_end - inner) as usize, libc::MADV_DONTNEED);
            ptr::write_bytes(at(first).cast::<u8>(), 0, (inner - first) as usize);
        }
        first = inner_end;
    }
    // SAFETY: the rest of the caller's bytes.
    unsafe { ptr::write_bytes(at(first).cast::<u8>(), value, (end - first) as usize) };
}

fn poison(memory: &mut [u8]) {
    let (pairs, _) = memory.as_chunks_mut::<2>();
    pairs.fill(POISON);
}

fn at(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}
