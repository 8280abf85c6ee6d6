//! Runs each case of a test in a process of its own.

use std::env;
use std::os::unix::fs::symlink;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use flexdraft::runtime::Cuda;
use tempfile::TempDir;

/// The environment variable that names the case that a process runs.
pub const CASE: &str = "FLEXDRAFT_STAND_IN_CASE";

/// The text that a case prints when it is done.
const DONE: &str = "the case is done";

/// Exit status of a process that leaked something or did what CUDA leaves undefined.
pub const FOUND: i32 = 86;

/// The result of a process that ran a case.
pub struct Ended {
    pub status: ExitStatus,
    pub stderr: String,
}

/// Returns the path of the test function in which the macro is used.
macro_rules! this_test {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        name.split_once("::").unwrap().1.strip_suffix("::here").unwrap()
    }};
}
pub(crate) use this_test;

/// Returns a directory with links to the stand-in under the names libcuda.so and libcublasLt.so.
pub fn libraries() -> TempDir {
    let library = env::current_exe().unwrap().with_file_name("libflexdraft_stand_in.so");
    assert!(library.exists(), "{}", library.display());
    let found = TempDir::new().unwrap();
    for name in ["libcuda.so", "libcublasLt.so"] {
        symlink(&library, found.path().join(name)).unwrap();
    }
    found
}

/// Runs a case of a test in a process of its own, under policies; the names of policies are without their prefix.
pub fn ended(test: &str, case: &str, policies: &[(&str, &str)], body: impl FnOnce()) -> Ended {
    let name = format!("{test}/{case}");
    if let Ok(running) = env::var(CASE) {
        if running == name {
            body();
            eprintln!("{DONE}");
            std::process::exit(0);
        }
        return Ended { status: ExitStatus::default(), stderr: String::new() };
    }
    let libraries = libraries();
    let earlier = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = std::iter::once(libraries.path().to_owned()).chain(env::split_paths(&earlier));
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CASE, name);
    command.env("LD_LIBRARY_PATH", env::join_paths(paths).unwrap());
    for (policy, value) in policies {
        command.env(format!("FLEXDRAFT_STAND_IN_{policy}"), value);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { status: output.status, stderr: text(&output.stderr) + &text(&output.stdout) }
}

/// Runs a case that must succeed, and leak nothing.
pub fn succeeds(test: &str, case: &str, policies: &[(&str, &str)], body: impl FnOnce()) {
    let Ended { status, stderr } = ended(test, case, policies, body);
    if env::var_os(CASE).is_none() {
        assert!(status.success() && stderr.contains(DONE), "{case}: {status}\n{stderr}");
    }
}

/// Runs a case in which the stand-in must report a leak or undefined behaviour, with this text.
pub fn is_found(test: &str, case: &str, policies: &[(&str, &str)], text: &str, body: impl FnOnce()) {
    let Ended { status, stderr } = ended(test, case, policies, body);
    if env::var_os(CASE).is_none() {
        assert!(stderr.contains(DONE), "{case}: {status}\n{stderr}");
        assert!(status.code() == Some(FOUND) && stderr.contains(text), "{case}: {status}\n{stderr}");
    }
}

/// Runs a case that must die of an access to inaccessible device memory, with this text.
pub fn dies(test: &str, case: &str, policies: &[(&str, &str)], text: &str, body: impl FnOnce()) {
    use std::os::unix::process::ExitStatusExt;
    let Ended { status, stderr } = ended(test, case, policies, body);
    if env::var_os(CASE).is_none() {
        assert!(
            status.signal() == Some(libc::SIGSEGV) && stderr.contains(text),
            "{case}: {status}\n{stderr}"
        );
    }
}

/// Returns the context of the stand-in's device, and a stream. Memory neither records nor waits for events.
pub fn device() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = Cuda::context(0).unwrap();
    // SAFETY: each case uses its memory on one stream, or waits for the other streams.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (context, stream)
}
