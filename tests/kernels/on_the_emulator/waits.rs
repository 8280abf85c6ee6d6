//! Tests that a kernel without its wait for earlier launches is found: each kernel is launched again behind its own launch,
//! with the wait and without.

use std::collections::BTreeSet;
use std::sync::Arc;

use flexdraft::kernels::KernelError;
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{RuntimeError, Simt, SimtOptions};

use super::first_program::{kernels, lines, listed};
use crate::first::{Planned, planned};
use crate::traced::Log;

/// Launches the kernels of a case twice, on an emulator that checks the order of launches.
fn launch_twice(case: &Planned<Simt>, unwaited: Option<&str>, log: &Arc<Log>) -> Result<(), KernelError> {
    let options = SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() };
    let mut simt = Simt::new(options).with_dependent_launches();
    if let Some(kernel) = unwaited {
        simt = simt.without_waits_of(kernel);
    }
    let stream = simt.stream();
    case.launch(&Arc::new(simt), &stream, log, 2)
}

/// The kernels of the first program are sound one behind the other. Without the wait of one kernel, a launch fails: the
/// launch of the kernel itself, because it writes what the launches in front use, or the launch behind it.
#[test]
fn every_missing_wait_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let mut found = BTreeSet::new();
    for (number, case) in planned::<Simt>().iter().enumerate() {
        let path = directory.path().join(number.to_string());
        let log = Arc::new(Log::open(&path).unwrap());
        launch_twice(case, None, &log).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let lines = lines(&path);
        let launched: BTreeSet<&str> = kernels(&lines, "kernel").into_iter().collect();
        for kernel in launched {
            if found.contains(kernel) {
                continue;
            }
            // A case may launch a kernel only once, when it prepares operands: the mistake changes nothing there.
            let Err(error) = launch_twice(case, Some(kernel), &log) else { continue };
            let KernelError::Runtime(RuntimeError::Failed { message, .. }) = &error else {
                panic!("{error}")
            };
            found.insert(kernel.to_owned());
            let expected = ["has not waited for earlier launches", "a launch between them did not wait"];
            assert!(expected.iter().any(|text| message.contains(text)), "{kernel}: {message}");
        }
    }
    assert_eq!(found, listed());
}
