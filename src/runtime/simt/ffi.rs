//! The functions and structs that `cuda/simt/launch.h` declares.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

use crate::runtime::{Access, Region};

#[repr(C)]
pub struct CheckedRegion {
    pub name: *const u8,
    pub name_bytes: u64,
    pub address: u64,
    pub bytes: u64,
    pub writable: u64,
    pub read: u64,
    pub written: u64,
    pub read_total: u64,
    pub written_total: u64,
}

impl CheckedRegion {
    /// Returns a region of a launch, with nothing counted yet.
    pub fn new(region: &Region) -> Self {
        CheckedRegion {
            name: region.name.as_ptr(),
            name_bytes: region.name.len() as u64,
            address: region.address,
            bytes: region.bytes,
            writable: u64::from(region.access == Access::Write),
            read: 0,
            written: 0,
            read_total: 0,
            written_total: 0,
        }
    }
}

#[repr(C)]
pub struct EmulatedLaunch {
    pub kernel: *const u8,
    pub kernel_bytes: u64,
    pub params: *const c_void,
    pub regions: *mut CheckedRegion,
    pub region_count: u64,
    pub seed: u64,
    pub history: *mut LaunchHistory,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    pub checked: u32,
    pub late_copies: u32,
    pub dependent: u32,
    pub unwaited: u32,
    pub unused: u32,
}

/// The history of earlier launches, an opaque type of the C++ side.
#[repr(C)]
pub struct LaunchHistory {
    _private: [u8; 0],
}

// Assertions in `cuda/simt/launch.h` check the same layout of the two structs.
const _: () = assert!(size_of::<CheckedRegion>() == 72 && offset_of!(CheckedRegion, written_total) == 64);
const _: () = assert!(
    size_of::<EmulatedLaunch>() == 96
        && offset_of!(EmulatedLaunch, grid) == 56
        && offset_of!(EmulatedLaunch, unwaited) == 88
);

unsafe extern "C" {
    pub fn flexdraft_simt_launch(launch: *mut EmulatedLaunch, message: *mut u8, capacity: u64) -> c_int;
    pub fn flexdraft_simt_kernel(
        name: *const u8,
        name_bytes: u64,
        params_bytes: *mut u32,
        threads: *mut u32,
    ) -> *const c_char;
    pub fn flexdraft_simt_history_new() -> *mut LaunchHistory;
    pub fn flexdraft_simt_history_free(history: *mut LaunchHistory);
    pub fn flexdraft_simt_history_barrier(history: *mut LaunchHistory);
    pub fn flexdraft_simt_history_launch(
        history: *mut LaunchHistory,
        regions: *const CheckedRegion,
        region_count: u64,
    );
}
