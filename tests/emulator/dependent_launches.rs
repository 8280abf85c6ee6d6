//! Tests that the emulator finds kernels that depend on more order than programmatic dependent launch gives: accesses
//! before the wait for earlier launches, and launches that end without a wait.

use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Runtime, Simt, SimtOptions};

use crate::support::planted::{Run, counting};

const THREADS: u32 = 32;

fn simt(schedule: u64, copies: Copies) -> Simt {
    let options = SimtOptions { checking: Checking::Accesses, copies, schedule };
    Simt::new(options).with_dependent_launches()
}

/// Runs kernels one after the other on the same memory, on emulators with several schedules, and returns the error of the
/// last kernel on each.
fn last_error(kernels: &[&'static str]) -> Vec<Option<String>> {
    [(0, Copies::Eager), (1, Copies::Late), (7, Copies::Late)]
        .into_iter()
        .map(|(schedule, copies)| {
            let simt = simt(schedule, copies);
            let mut run = memory();
            let (last, first) = kernels.split_last().unwrap();
            for kernel in first {
                run.on(&simt, kernel).unwrap_or_else(|error| panic!("{kernel}: {error}"));
            }
            run.on(&simt, last).err()
        })
        .collect()
}

/// Returns memory for one launch: an input, an output and a table.
fn memory() -> Run {
    let mut run = Run::new(counting(THREADS), THREADS as usize, 1, THREADS).with(3);
    run.counter = vec![0; THREADS as usize];
    run
}

fn assert_found(kernels: &[&'static str], text: &str) {
    for error in last_error(kernels) {
        let error = error.unwrap_or_else(|| panic!("{kernels:?} passed"));
        assert!(error.contains(text), "{kernels:?}: {error}");
    }
}

fn assert_sound(kernels: &[&'static str]) {
    assert_eq!(last_error(kernels), [const { None }; 3], "{kernels:?}");
}

#[test]
fn a_table_is_read_after_the_wait() {
    assert_sound(&["planted_table", "planted_look_up"]);
    let text = "a read of `counter`, while the launch 1 in front, which writes it, may still run: the thread has not waited";
    assert_found(&["planted_table", "planted_look_up_before_waiting"], text);
    assert_found(&["planted_table", "planted_look_up_without_wait"], text);
    // Each thread waits for itself.
    assert_found(&["planted_table", "planted_look_up_with_half_a_wait"], text);
    // The launch that wrote the table may run until the next full barrier.
    let text = "the launch 3 in front, which writes it, may still run: the thread has not waited";
    let between = ["planted_table", "planted_idle", "planted_idle"];
    assert_found(&[&between[..], &["planted_look_up_before_waiting"]].concat(), text);
}

#[test]
fn asynchronous_copies_begin_after_the_wait() {
    assert_sound(&["planted_table", "planted_copy_table"]);
    let text = "a read of `counter`, while the launch 1 in front, which writes it, may still run";
    assert_found(&["planted_table", "planted_copy_table_before_waiting"], text);
}

#[test]
fn a_launch_without_a_wait_orders_nothing() {
    // The kernel in the middle uses nothing that the first kernel writes, so it is sound itself.
    assert_sound(&["planted_table", "planted_idle", "planted_look_up"]);
    let text = "a read of `counter`, while the launch 2 in front, which writes it, may still run: a launch between them did not wait";
    assert_found(&["planted_table", "planted_idle_without_wait", "planted_look_up"], text);
    let some = "planted_idle_with_some_waits";
    assert_found(&["planted_table", some, "planted_look_up"], text);
}

#[test]
fn memory_that_the_launch_in_front_reads_is_not_written() {
    assert_sound(&["planted_look_up", "planted_table"]);
    let text = "a write of `counter`, while the launch 1 in front, which reads it, may still run";
    assert_found(&["planted_look_up", "planted_table_before_waiting"], text);
    let text = "a write of `counter`, while the launch 2 in front, which reads it, may still run: a launch between them";
    assert_found(&["planted_look_up", "planted_idle_without_wait", "planted_table"], text);
    // The first launch that reads the table may run longest.
    let kernels = ["planted_read_table", "planted_idle_without_wait", "planted_read_table", "planted_table"];
    assert_found(&kernels, "a write of `counter`, while the launch 3 in front, which reads it");
}

#[test]
fn copies_and_waits_of_the_host_are_full_barriers() {
    type Barrier = fn(&Simt);
    let barriers: [Barrier; 5] = [
        Simt::full_barrier,
        |simt| simt.foreign_launch(&[]),
        |simt| drop(simt.allocate::<u32>(&simt.stream(), 1).unwrap()),
        |simt| simt.upload(&simt.stream(), &[1u32], &mut vec![0; 1], 0).unwrap(),
        |simt| simt.download(&simt.stream(), &vec![1u32], 0, &mut [0; 1]).unwrap(),
    ];
    for barrier in barriers {
        let simt = simt(0, Copies::Eager);
        let mut run = memory();
        run.on(&simt, "planted_table").unwrap();
        barrier(&simt);
        run.on(&simt, "planted_look_up_before_waiting").unwrap();
    }
}
