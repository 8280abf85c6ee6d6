//! A pseudo-terminal in which a test drives a program as a user does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, ptr};

/// Longest wait for an output.
const PATIENCE: Duration = Duration::from_secs(120);

pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// A program that runs in a pseudo-terminal.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// Number of bytes of the screen's text that earlier waits have seen.
    seen: usize,
}

impl Terminal {
    pub fn run(mut command: Command) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let (name, settings, size) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: the two descriptors are valid to write; null asks for the defaults.
        let opened = unsafe { libc::openpty(&mut master, &mut slave, name, settings, size) };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: the call opened both descriptors, which have no other owner.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: setsid and ioctl may be called between fork and exec. They make the terminal the program's own, so that
        // Ctrl-C interrupts the program.
        unsafe {
            command.pre_exec(|| match libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 {
                true => Ok(()),
                false => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn().unwrap();
        drop((command, slave));
        let (keyboard, screen) = (master.try_clone().unwrap(), Arc::default());
        let shown: Arc<Mutex<Vec<u8>>> = Arc::clone(&screen);
        thread::spawn(move || {
            let (mut master, mut bytes) = (master, [0; 4096]);
            // Reading fails when the program has ended.
            while let Ok(len @ 1..) = master.read(&mut bytes) {
                shown.lock().unwrap().extend_from_slice(&bytes[..len]);
            }
        });
        Self { child, keyboard, screen, seen: 0 }
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the program has written `text` after what earlier waits have seen. Returns what it wrote before.
    pub fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let screen = String::from_utf8_lossy(&self.screen.lock().unwrap()).replace('\r', "");
            if let Some(at) = screen[self.seen..].find(text) {
                let before = screen[self.seen..][..at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            assert!(start.elapsed() < PATIENCE, "no {text:?} in:\n{screen}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the program ends.
    pub fn end(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the program does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
