//! Tests of the command `flexdraft`, run as its users run it.

mod bench;
mod common;
mod json_lines;
mod loading;
#[cfg(target_os = "linux")]
mod stand_in;
mod text;
mod usage;
