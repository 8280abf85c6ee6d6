//! Tests of the command `flexdraft`, which run the command as its users do.

mod bench;
mod chat;
mod common;
mod faults;
mod hub;
mod hub_server;
mod json_lines;
mod loading;
mod lookup;
mod orthrus;
mod probe;
mod prompting;
#[cfg(target_os = "linux")]
mod stand_in;
#[cfg(unix)]
mod terminal;
mod text;
mod usage;
