//! Generator of the Rust bindings in `src/kernels/params`, from the parameter structs in `cuda/*/params.h` and the
//! launch shapes in `cuda/common/shapes.h`.
//!
//! `tests/checked_in.rs` generates the bindings and compares them with the checked-in files; `FLEXDRAFT_BLESS=1` makes
//! it write the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A C header with parameter structs, and the Rust module that mirrors it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name of the module: the header's directory in `cuda`, or `shapes`.
    pub name: String,
    /// The path of the header.
    pub path: PathBuf,
}

impl Header {
    /// Returns the headers of the repository at `root`, sorted by name.
    ///
    /// # Errors
    ///
    /// If a directory cannot be read.
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

    /// Returns the Rust bindings of the items that a header itself declares, formatted like the repository at `root`.
    ///
    /// The bindings assert at compile time the sizes and offsets that clang computed for 64-bit Linux.
    ///
    /// # Errors
    ///
    /// If clang reports an error or a file cannot be read.
    ///
    /// # Panics
    ///
    /// If libclang is not loaded; see [`load_libclang`].
    pub fn bindings(&self, root: &Path) -> Result<String, Box<dyn std::error::Error>> {
        let is_common = self.path.parent() == Some(&root.join("cuda/common"));
        let source = self.path.strip_prefix(root)?.display();
        let header = self.path.to_str().ok_or("the path is not UTF-8")?;
        let mut builder = bindgen::Builder::default()
            .header(header)
            // The memory layout of structs is always that of CUDA's own platforms, regardless of the machine. Wheels of
            // libclang lack clang's headers, but glibc's <stdint.h> does not need them.
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
            let text = std::fs::read_to_string(&self.path)?;
            let included = |line| str::strip_prefix(line, "#include \"../")?.strip_suffix("/params.h\"");
            // rustfmt wants imports in alphabetical order.
            let modules: BTreeSet<&str> = text.lines().filter_map(included).chain(["common"]).collect();
            builder = builder.raw_line("");
            for module in modules {
                builder = builder.raw_line(format!("use super::{module}::*;"));
            }
        }
        let bindings = builder.generate()?.to_string();
        Ok(bindings.lines().map(tidy).collect())
    }
}

/// Converts a line of bindgen's output to the repository's format.
fn tidy(line: &str) -> String {
    let indent = &line[..line.len() - line.trim_start().len()];
    if let Some(text) = line.trim_start().strip_prefix("#[doc = \"").and_then(|rest| rest.strip_suffix("\"]"))
    {
        let line = |line: &str| format!("{indent}/// {}\n", line.trim().replace("\\\"", "\""));
        return text.split("\\n").map(line).collect();
    }
    match line {
        // The assertions of sizes and offsets that follow assume CUDA's 64-bit pointers; the rest of the crate works
        // without them.
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

/// Loads libclang, from `LIBCLANG_PATH` or the system's usual places.
///
/// # Errors
///
/// If no libclang was found; the error lists the searched places.
pub fn load_libclang() -> Result<(), String> {
    clang_sys::load()
}
