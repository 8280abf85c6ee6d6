//! Tests of the build script's use of nvcc: it finds the compiler, compiles every kernel source with it, and builds
//! without device code if there is no compiler.
//!
//! The compilers in these tests are shell scripts, so the tests run without a CUDA toolkit.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../build/nvcc.rs"]
#[allow(dead_code)]
mod nvcc;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nvcc::Source;
use tempfile::TempDir;

const FAMILIES: [&str; 3] = ["attention", "sampling", "norm"];

fn executable(path: &Path, script: &str) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}

fn find(variables: &[(&str, &Path)]) -> Result<PathBuf, String> {
    nvcc::find(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
}

#[test]
fn nvcc_is_found_in_the_documented_order() {
    let root = TempDir::new().unwrap();
    let make = |path: &str| executable(&root.path().join(path), "exit 1");
    let (named, home) = (make("named/compiler"), make("home/bin/nvcc"));
    let (path, first, second) = (make("path/bin/nvcc"), make("first/nvcc"), make("second/nvcc"));
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let toolkit = |nvcc: &Path| nvcc.parent().unwrap().parent().unwrap().to_owned();
    let search = std::env::join_paths([&empty, first.parent().unwrap(), second.parent().unwrap()]).unwrap();
    let (home_value, path_value, search) = (toolkit(&home), toolkit(&path), PathBuf::from(search));

    let all = [
        ("NVCC", named.as_path()),
        ("CUDA_HOME", &home_value),
        ("CUDA_PATH", &path_value),
        ("PATH", &search),
    ];
    for (skipped, expected) in [&named, &home, &path, &first].into_iter().enumerate() {
        assert_eq!(find(&all[skipped..]).as_ref(), Ok(expected));
    }
    // The search skips a toolkit directory without a compiler, such as a runtime-only installation.
    assert_eq!(find(&[("CUDA_HOME", &empty), ("PATH", &search)]), Ok(first));
    // Empty environment variables count as unset.
    assert_eq!(find(&[("NVCC", Path::new("")), ("CUDA_HOME", &home_value)]), Ok(home));
    // If the user names a compiler that does not exist, the build reports the mistake and does not look elsewhere.
    let missing = root.path().join("missing");
    let problem = find(&[("NVCC", &missing), ("CUDA_HOME", &home_value)]).unwrap_err();
    assert!(problem.contains(missing.to_str().unwrap()), "{problem}");
}

#[test]
fn no_nvcc_names_every_place_and_the_remedy() {
    let system = Path::new("/usr/local/cuda/bin/nvcc");
    match find(&[]) {
        Ok(path) => assert_eq!(path, system),
        Err(problem) => {
            for place in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "/usr/local/cuda", "cuda/install_nvcc.sh"]
            {
                assert!(problem.contains(place), "{problem}");
            }
        }
    }
}

#[test]
fn kernel_tables_are_read_without_comments() {
    let source = "// FLEXDRAFT_KERNEL_TABLE(old, a)\nint x; // )\nFLEXDRAFT_KERNEL_TABLE(norm, rms_norm, // why\n  b2)\n";
    assert_eq!(nvcc::kernel_table(source), Ok(vec!["rms_norm".to_owned(), "b2".to_owned()]));
    for (source, problem) in [
        ("", "no FLEXDRAFT_KERNEL_TABLE"),
        ("FLEXDRAFT_KERNEL_TABLE(norm, a", "not closed"),
        ("FLEXDRAFT_KERNEL_TABLE(norm)", "lists no kernel"),
        ("FLEXDRAFT_KERNEL_TABLE(norm, a, )", "`` in"),
        ("FLEXDRAFT_KERNEL_TABLE(norm, \"a\")", "`\"a\"` in"),
        ("FLEXDRAFT_KERNEL_TABLE(norm, a)\nFLEXDRAFT_KERNEL_TABLE(norm, b)", "more than one"),
    ] {
        let error = nvcc::kernel_table(source).unwrap_err();
        assert!(error.contains(problem), "{source:?}: {error}");
    }
}

/// Writes kernel sources of two families, and one file that is not a kernel source.
fn tree(root: &Path) -> (PathBuf, Vec<Source>) {
    let cuda = root.join("cuda");
    for (family, file, kernel) in [("norm", "norm.cu", "rms_norm"), ("attention", "attention.cu", "joint")] {
        fs::create_dir_all(cuda.join(family)).unwrap();
        fs::write(cuda.join(family).join(file), format!("FLEXDRAFT_KERNEL_TABLE({family}, {kernel})\n"))
            .unwrap();
    }
    fs::write(cuda.join("attention/tile.cuh"), "").unwrap();
    let sources = nvcc::sources(&cuda, &FAMILIES).unwrap();
    (cuda, sources)
}

#[test]
fn families_may_be_missing() {
    let root = TempDir::new().unwrap();
    assert_eq!(nvcc::sources(&root.path().join("cuda"), &FAMILIES).unwrap(), []);
    let (cuda, sources) = tree(root.path());
    let source =
        |path: &str, kernel: &str| Source { path: cuda.join(path), kernels: vec![kernel.to_owned()] };
    assert_eq!(sources, [source("attention/attention.cu", "joint"), source("norm/norm.cu", "rms_norm")]);
}

#[test]
fn every_source_is_compiled_with_the_shared_options() {
    let root = TempDir::new().unwrap();
    let (cuda, sources) = tree(root.path());
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    // This stand-in for nvcc writes its arguments to the file after -o, and warns about one source.
    let compiler = executable(
        &root.path().join("nvcc"),
        r#"for last; do [ "$previous" = -o ] && out=$last; previous=$last; done
echo "$@" > "$out"; case "$last" in *norm.cu) echo 'norm.cu(3): warning' >&2;; esac"#,
    );
    for (warnings_are_errors, jobs) in [(false, 1), (true, 2), (false, 100), (true, 0)] {
        let images = nvcc::compile(&compiler, &cuda, &sources, &out, warnings_are_errors, jobs).unwrap();
        assert_eq!(images.len(), 2);
        for (image, source) in images.iter().zip(&sources) {
            let arguments = fs::read_to_string(&image.path).unwrap();
            assert!(
                arguments.contains(&format!("-optf {}", cuda.join("nvcc.args").display())),
                "{arguments}"
            );
            assert_eq!(arguments.contains("-Werror all-warnings"), warnings_are_errors, "{arguments}");
            assert!(arguments.trim_end().ends_with(source.path.to_str().unwrap()), "{arguments}");
            assert_eq!(image.kernels, source.kernels);
        }
        assert_eq!([&*images[0].warnings, &*images[1].warnings], ["", "norm.cu(3): warning\n"]);
        let listing = nvcc::listing(&images).unwrap();
        let path = images[0].path.to_str().unwrap();
        assert!(
            listing.contains(&format!(r#"kernels: &["joint"], fatbin: include_bytes!("{path}")"#)),
            "{listing}"
        );
    }
    assert_eq!(nvcc::listing(&[]).unwrap(), "&[\n]\n");
}

#[test]
fn one_failing_source_leaves_no_images_and_its_output() {
    let root = TempDir::new().unwrap();
    let (cuda, sources) = tree(root.path());
    let compiler = executable(
        &root.path().join("nvcc"),
        r#"for last; do :; done; case "$last" in *norm.cu) echo 'norm.cu(3): error: no' >&2; exit 2;; esac"#,
    );
    let problem = nvcc::compile(&compiler, &cuda, &sources, root.path(), false, 2).unwrap_err();
    for part in ["norm/norm.cu", "exit status: 2", "norm.cu(3): error: no"] {
        assert!(problem.contains(part), "{problem}");
    }
    // The file nvcc.args is not executable, so it is a compiler that cannot be started.
    let problem = nvcc::compile(&cuda.join("nvcc.args"), &cuda, &sources, root.path(), false, 1).unwrap_err();
    assert!(problem.contains("cannot be run"), "{problem}");
}

#[test]
fn without_a_compiler_images_list_their_kernels() {
    let (_, sources) = tree(TempDir::new().unwrap().path());
    let listing = nvcc::listing_without_code(&sources).unwrap();
    let image = r#"kernels: &["joint"], fatbin: "// kernels of flexdraft, without device code\n// joint\n\0".as_bytes()"#;
    assert!(listing.contains(image), "{listing}");
}
