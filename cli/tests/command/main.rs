//! Tests of the command `flexdraft`, run as its users run it.

mod bench;
mod common;
mod json_lines;
mod text;
mod usage;
