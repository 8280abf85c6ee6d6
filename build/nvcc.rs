//! Compiles the kernels to GPU machine code: nvcc turns each source of a kernel family into one fatbin, and
//! `images.rs` in `OUT_DIR` embeds them. Without nvcc, the images in `images.rs` are text that lists the kernels,
//! which no driver loads, and the crate still builds.
//!
//! | environment variable | meaning |
//! |---|---|
//! | `NVCC` | path of the compiler; no other compiler is searched for |
//! | `CUDA_HOME`, `CUDA_PATH` | toolkits whose `bin/nvcc` is used, before `PATH` and `/usr/local/cuda` |
//! | `FLEXDRAFT_REQUIRE_NVCC=1` | a missing or failing nvcc fails the build |
//! | `FLEXDRAFT_NVCC_WERROR=1` | nvcc's warnings are errors |

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

/// The environment variables with which nvcc itself can be configured.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// A kernel source and the names of the kernels in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    pub kernels: Vec<String>,
}

/// A kernel source that nvcc has compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub path: PathBuf,
    pub kernels: Vec<String>,
    /// The warnings that nvcc printed about the source.
    pub warnings: String,
}

/// Compiles the sources of those kernel families that exist, and lists them in `images.rs`.
pub fn build(families: &[&str]) -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var_os(name)
    };
    let is_set = |name: &str| variable(name).is_some_and(|value| value == "1");
    NVCC_VARIABLES.into_iter().for_each(|name| drop(variable(name)));

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let warnings_are_errors = is_set("FLEXDRAFT_NVCC_WERROR");

    let sources = sources(&root.join("cuda"), families)?;
    // Documentation needs no kernels, so a build on docs.rs, which has no nvcc, leaves the kernels out.
    let wanted = !sources.is_empty() && variable("DOCS_RS").is_none();
    let images = match wanted {
        false => Ok(Vec::new()),
        true => find(&variable).and_then(|nvcc| {
            println!("cargo::rerun-if-changed={}", nvcc.display());
            compile(&nvcc, &root.join("cuda"), &sources, &out, warnings_are_errors, jobs)
        }),
    };
    let listing = match images {
        Ok(images) => {
            images.iter().for_each(|image| warn(&image.warnings));
            listing(&images)?
        }
        Err(problem) if is_set("FLEXDRAFT_REQUIRE_NVCC") => return Err(problem.into()),
        Err(problem) => {
            warn(&format!("{problem}\nflexdraft is built without CUDA device code"));
            listing_without_code(&sources)?
        }
    };
    fs::write(out.join("images.rs"), listing)?;
    Ok(())
}

/// Prints a warning that Cargo shows. Cargo shows one line per directive.
fn warn(text: &str) {
    text.lines().filter(|line| !line.trim().is_empty()).for_each(|line| println!("cargo::warning={line}"));
}

/// Returns the kernel source of each kernel family that has one.
pub fn sources(cuda: &Path, families: &[&str]) -> Result<Vec<Source>, Box<dyn Error>> {
    let mut sources = Vec::new();
    for family in families {
        let path = cuda.join(family).join(family).with_extension("cu");
        match fs::read_to_string(&path) {
            Ok(source) => {
                let kernels =
                    kernel_table(&source).map_err(|problem| format!("{}: {problem}", path.display()))?;
                sources.push(Source { path, kernels });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display()).into()),
        }
    }
    Ok(sources)
}

/// Returns the names of the kernels that a source lists in its `FLEXDRAFT_KERNEL_TABLE(family, kernel, ...)`. The SIMT
/// emulator is built from the same list, so both have the same kernels.
pub fn kernel_table(source: &str) -> Result<Vec<String>, String> {
    const MACRO: &str = "FLEXDRAFT_KERNEL_TABLE(";
    let code: String =
        source.lines().flat_map(|line| [line.split("//").next().unwrap_or(""), "\n"]).collect();
    let (_, table) = code.split_once(MACRO).ok_or_else(|| format!("no {MACRO}...)"))?;
    let (table, rest) = table.split_once(')').ok_or_else(|| format!("{MACRO} is not closed"))?;
    if rest.contains(MACRO) {
        return Err(format!("more than one {MACRO}...)"));
    }
    let mut names = table.split(',').map(|name| name.trim().to_owned());
    let family = names.next().unwrap_or_default();
    let kernels: Vec<String> = names.collect();
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if let Some(name) = kernels.iter().chain([&family]).find(|name| !is_name(name)) {
        return Err(format!("`{name}` in {MACRO}...) is no name"));
    }
    if kernels.is_empty() {
        return Err(format!("{MACRO}{family}) lists no kernel"));
    }
    Ok(kernels)
}

/// Returns the path of nvcc, if the machine has nvcc. `variable` looks up environment variables.
pub fn find(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let nvcc = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(path) = set("NVCC") {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("NVCC is {}: no such file", path.display()))
        };
    }
    let in_toolkit = |toolkit: PathBuf| Some(toolkit.join("bin").join(&nvcc)).filter(|path| path.is_file());
    let in_path = || {
        let directories = variable("PATH")?;
        env::split_paths(&directories).map(|directory| directory.join(&nvcc)).find(|path| path.is_file())
    };
    set("CUDA_HOME")
        .and_then(in_toolkit)
        .or_else(|| set("CUDA_PATH").and_then(in_toolkit))
        .or_else(in_path)
        .or_else(|| in_toolkit("/usr/local/cuda".into()))
        .ok_or_else(|| {
            "no nvcc in NVCC, CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; cuda/install_nvcc.sh installs one".into()
        })
}

/// Compiles `sources` into fatbins in `out`, at most `jobs` at a time. Returns an image for every source, or
/// an error.
pub fn compile(
    nvcc: &Path,
    cuda: &Path,
    sources: &[Source],
    out: &Path,
    warnings_are_errors: bool,
    jobs: usize,
) -> Result<Vec<Image>, String> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = compile_one(nvcc, cuda, source, out, warnings_are_errors);
                    // A thread that panicked leaves the lock poisoned, but the results in it are complete.
                    results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut images = results.into_iter().collect::<Result<Vec<Image>, String>>()?;
    images.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(images)
}

fn compile_one(
    nvcc: &Path,
    cuda: &Path,
    source: &Source,
    out: &Path,
    warnings_are_errors: bool,
) -> Result<Image, String> {
    let path = out.join(source.path.file_name().unwrap_or_default()).with_extension("fatbin");
    // The GPU architectures to compile for are in a file of options that cuda/check_device_code.py also reads.
    let mut command = Command::new(nvcc);
    command.arg("-optf").arg(cuda.join("nvcc.args"));
    if warnings_are_errors {
        command.args(["-Werror", "all-warnings"]);
    }
    command.arg("-o").arg(&path).arg(&source.path);
    let output = command.output().map_err(|error| format!("{} cannot be run: {error}", nvcc.display()))?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if !output.status.success() {
        return Err(format!(
            "{} failed on {}: {}\n{said}",
            nvcc.display(),
            source.path.display(),
            output.status
        ));
    }
    Ok(Image { path, kernels: source.kernels.clone(), warnings: said })
}

/// Returns the Rust expression that embeds `images`, the compiled kernel sources, into the crate.
pub fn listing(images: &[Image]) -> Result<String, Box<dyn Error>> {
    let mut text = "&[\n".to_owned();
    for image in images {
        let path = image.path.to_str().ok_or("OUT_DIR is not UTF-8")?;
        writeln!(text, "    Image {{ kernels: &{:?}, fatbin: include_bytes!({path:?}) }},", image.kernels)?;
    }
    text.push_str("]\n");
    Ok(text)
}

/// Returns the Rust expression of images for a build without device code: text that lists the kernels of each source,
/// ends with a zero, and is a comment in PTX. `cuda/stand_in` reads it.
pub fn listing_without_code(sources: &[Source]) -> Result<String, std::fmt::Error> {
    let mut text = "&[\n".to_owned();
    for Source { kernels, .. } in sources {
        let names: String = kernels.iter().map(|name| format!("// {name}\n")).collect();
        let image = format!("// kernels of flexdraft, without device code\n{names}\0");
        writeln!(text, "    Image {{ kernels: &{kernels:?}, fatbin: {image:?}.as_bytes() }},")?;
    }
    text.push_str("]\n");
    Ok(text)
}
