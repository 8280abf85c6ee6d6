//! The sanitized build of the SIMT emulator (`FLEXDRAFT_SIMT_SANITIZE=1`, build/simt.rs) finds planted bugs, so a clean run
//! of the kernels' tests in that build is meaningful. A finding ends the process, so each bug runs in its own process.

use std::env;
use std::process::Command;

use flexdraft::runtime::{Simt, SimtOptions};

use crate::support::planted::{Run, counting};

/// The environment variable that holds the index in [`BUGS`] of the bug that a child process runs.
const VARIABLE: &str = "FLEXDRAFT_PLANTED_BUG";

/// A planted bug: the kernel, the elements of its input and output, an argument without and an argument with the bug,
/// and a text that the report of the bug contains.
struct Bug {
    kernel: &'static str,
    elements: [usize; 2],
    right: u32,
    wrong: u32,
    report: &'static str,
}

const BUGS: [Bug; 6] = [
    // In the kernel, 64 threads read elements 3 to 66 of 67 (correct), or 4 to 67 (one too far).
    Bug { kernel: "planted_offset", elements: [67, 64], right: 3, wrong: 4, report: "heap-buffer-overflow" },
    Bug { kernel: "planted_stack_overflow", elements: [64, 64], right: 3, wrong: 5, report: "stack-buffer-" },
    Bug {
        kernel: "planted_shared_overflow",
        elements: [64, 64],
        right: 768,
        wrong: 772,
        report: "WRITE of size 4",
    },
    Bug {
        kernel: "planted_shared_overflow",
        elements: [64, 64],
        right: 4,
        wrong: 2,
        report: "misaligned address",
    },
    Bug {
        kernel: "planted_shift",
        elements: [64, 64],
        right: 31,
        wrong: 32,
        report: "shift exponent 32 is too large",
    },
    Bug {
        kernel: "planted_signed_sum",
        elements: [64, 64],
        right: 1,
        wrong: i32::MAX as u32,
        report: "signed integer overflow",
    },
];

impl Bug {
    fn run(&self, argument: u32, options: SimtOptions) {
        let [inputs, outputs] = self.elements;
        // Each launch has one CTA of two warps. Shared memory ends after 1024 bytes.
        let mut run = Run::new(counting(inputs as u32), outputs, 1, 64).with(argument);
        run.shared_bytes = 1024;
        run.on(&Simt::new(options), self.kernel).unwrap();
    }
}

/// Runs a planted bug in the child processes that the other tests start; without the environment variable it does
/// nothing.
#[test]
fn victim() {
    let Ok(chosen) = env::var(VARIABLE) else { return };
    let bug = &BUGS[chosen.parse::<usize>().unwrap()];
    for schedule in 0..3 {
        bug.run(bug.right, SimtOptions { schedule, ..SimtOptions::default() });
    }
    println!("no bug so far");
    bug.run(bug.wrong, SimtOptions::default());
    println!("nothing was found");
}

#[test]
fn planted_bugs_end_the_process() {
    for (i, bug) in BUGS.iter().enumerate() {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "sanitizers::victim", "--nocapture"])
            .env(VARIABLE, i.to_string())
            .output()
            .unwrap();
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        let name = bug.kernel;
        assert!(text.contains("no bug so far"), "{name} with the right argument:\n{text}");
        assert!(!text.contains("nothing was found") && !output.status.success(), "{name} passed:\n{text}");
        assert!(text.contains(bug.report), "{name}:\n{text}");
    }
}

/// An error can leave threads of a launch waiting; these threads do not disturb the next launch, which reuses their
/// stacks.
#[test]
fn stacks_are_used_again_after_errors() {
    let simt = Simt::new(SimtOptions::default());
    for _ in 0..20 {
        let error = Run::new(counting(64), 64, 1, 64).with(16).on(&simt, "planted_divergent_barrier");
        assert!(error.unwrap_err().contains("threads that never come"));
        let mut run = Run::new(counting(3 * 70), 3 * 70, 3, 70);
        run.on(&simt, "planted_reverse").unwrap();
        let expected: Vec<u32> = run.input.chunks(70).flat_map(|cta| cta.iter().rev().copied()).collect();
        assert_eq!(run.out, expected);
    }
}
