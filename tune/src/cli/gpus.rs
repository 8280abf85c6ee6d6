//! Tuning on several GPUs of one machine, with one process per GPU.
//!
//! The first process is rank 0. It starts the others with its own arguments. The others exit when their standard
//! input closes, which happens when rank 0 ends, for whatever reason.

use std::env;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio, abort};
use std::thread;
use std::time::Duration;

use candle_core::Device;
use flexdraft_tune::tune::nccl::{Meeting, Nccl};
use flexdraft_tune::{Result, TuneError};

/// Interval at which rank 0 checks that the processes of the other ranks are alive.
const LOOK: Duration = Duration::from_millis(500);

/// The environment variables that tell a started process its rank and the id of the run.
const RANK: &str = "FLEXDRAFT_TUNE_RANK";
const MEETING: &str = "FLEXDRAFT_TUNE_MEETING";

/// Joins `count` processes, one per GPU; the first process starts the others. Returns the GPU and the rank of this
/// process.
pub fn join(count: usize) -> Result<(Device, Nccl)> {
    let (rank, meeting) = match (env::var(RANK), env::var(MEETING)) {
        (Ok(rank), Ok(meeting)) => {
            leave_with_rank_0();
            let number = rank.parse().ok().filter(|&number| number < count);
            let expected = format!("a rank below {count}, as rank 0 sets it");
            let number = number.ok_or_else(|| TuneError::setting(RANK, &rank, expected))?;
            let parsed = Meeting::parse(&meeting);
            (
                number,
                parsed.ok_or_else(|| {
                    TuneError::setting(MEETING, &meeting, "the id of the run, as rank 0 sets it")
                })?,
            )
        }
        _ => {
            let meeting = Meeting::new()?;
            let children = (1..count).map(|rank| start(rank, meeting)).collect::<Result<Vec<_>>>()?;
            watch(children);
            (0, meeting)
        }
    };
    let device = Device::new_cuda(rank)?;
    let ranks = Nccl::join(meeting, rank, count, &device)?;
    Ok((device, ranks))
}

fn start(rank: usize, meeting: Meeting) -> Result<Child> {
    let program = env::current_exe().map_err(TuneError::io("find", "the program"))?;
    Command::new(&program)
        .args(env::args_os().skip(1))
        .env(RANK, rank.to_string())
        .env(MEETING, meeting.to_string())
        .stdin(Stdio::piped())
        .spawn()
        .map_err(TuneError::io("start", program))
}

/// Ends this process when the process of another rank failed: its gradient sums would never complete.
fn watch(mut children: Vec<Child>) {
    thread::spawn(move || {
        while !children.is_empty() {
            thread::sleep(LOOK);
            children.retain_mut(|child| match child.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) if status.success() => false,
                _ => {
                    eprintln!("error: a process of the run failed; the latest checkpoint is kept");
                    // `abort` skips the driver's exit handlers, which may wait for the lost rank.
                    abort();
                }
            });
        }
    });
}

fn leave_with_rank_0() {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        abort();
    });
}
