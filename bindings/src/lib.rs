//! Rust bindings of the parameter structs in `cuda/*/params.h` and of the shapes of launches in
//! `cuda/common/shapes.h`, as `src/kernels/params` has them.
//!
//! `tests/checked_in.rs` generates them anew and compares; run it with `FLEXDRAFT_BLESS=1` to write them.

use std::path::{Path, PathBuf};

/// A header and the module of its bindings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The module's name: the directory in `cuda`, or `shapes`.
    pub name: String,
    /// The header.
    pub path: PathBuf,
}

impl Header {
    /// The headers of the repository at `root`, in the order of their names.
    ///
    /// # Errors
    ///
    /// Those of reading the directory.
    pub fn all(root: &Path) -> std::io::Result<Vec<Header>> {
        let mut headers = Vec::new();
        for entry in root.join("cuda").read_dir()? {
            let entry = entry?;
            let path = entry.path().join("params.h");
            if path.is_file() {
                headers.push(Header { name: entry.file_name().to_string_lossy().into_owned(), path });
            }
        }
        let shapes = root.join("cuda/common/shapes.h");
        if shapes.is_file() {
            headers.push(Header { name: "shapes".into(), path: shapes });
        }
        headers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(headers)
    }

    /// The bindings of what this header itself declares, formatted as the repository at `root` is.
    ///
    /// Sizes and offsets that clang computed for 64-bit Linux are asserted at compile time.
    ///
    /// # Errors
    ///
    /// What clang reports, and files that cannot be read.
    ///
    /// # Panics
    ///
    /// If there is no libclang; see [`load_libclang`].
    pub fn bindings(&self, root: &Path) -> Result<String, Box<dyn std::error::Error>> {
        let is_common = self.path.parent() == Some(&root.join("cuda/common"));
        let source = self.path.strip_prefix(root)?.display();
        let header = self.path.to_str().ok_or("the path is not UTF-8")?;
        let mut builder = bindgen::Builder::default()
            .header(header)
            // Only CUDA's own platforms count, whatever this runs on. Wheels of libclang lack clang's
            // headers, but glibc's <stdint.h> needs none of them.
            .clang_args(["-x", "c", "-std=c11", "--target=x86_64-unknown-linux-gnu", "-fparse-all-comments"])
            .allowlist_file(regex_of(header))
            .allowlist_recursively(false)
            .prepend_enum_name(false)
            .derive_partialeq(true)
            .layout_tests(true)
            .use_core()
            .disable_header_comment()
            .rustfmt_configuration_file(Some(root.join("rustfmt.toml").canonicalize()?))
            .raw_line(format!("// Generated from {source} by the crate in bindings."));
        if !is_common {
            builder = builder.raw_line("").raw_line("use super::common::*;");
            for line in std::fs::read_to_string(&self.path)?.lines() {
                let other =
                    line.strip_prefix("#include \"../").and_then(|rest| rest.strip_suffix("/params.h\""));
                if let Some(other) = other.filter(|&other| other != "common") {
                    builder = builder.raw_line(format!("use super::{other}::*;"));
                }
            }
        }
        let bindings = builder.generate()?.to_string();
        Ok(bindings.lines().map(tidy).collect())
    }
}

/// A line of bindgen's output as the repository writes it.
fn tidy(line: &str) -> String {
    let indent = &line[..line.len() - line.trim_start().len()];
    if let Some(text) = line.trim_start().strip_prefix("#[doc = \"").and_then(|rest| rest.strip_suffix("\"]"))
    {
        let line = |line: &str| format!("{indent}/// {}\n", line.trim().replace("\\\"", "\""));
        return text.split("\\n").map(line).collect();
    }
    match line {
        // What follows was computed with CUDA's pointers; the rest of the crate works without them.
        "#[allow(clippy::unnecessary_operation, clippy::identity_op)]" => {
            format!("#[cfg(target_pointer_width = \"64\")]\n{line}\n")
        }
        _ => format!("{line}\n"),
    }
}

fn regex_of(path: &str) -> String {
    path.chars()
        .flat_map(|c| (!c.is_alphanumeric() && c != '/').then_some('\\').into_iter().chain([c]))
        .collect()
}

/// Looks for libclang, in `LIBCLANG_PATH` and where systems have it.
///
/// # Errors
///
/// What was searched without success.
pub fn load_libclang() -> Result<(), String> {
    clang_sys::load()
}
