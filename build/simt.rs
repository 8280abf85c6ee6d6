//! Compiles the SIMT emulator: its own sources, and every kernel source twice, without checks and with hooks for
//! checks.
//!
//! | environment variable | meaning |
//! |---|---|
//! | `FLEXDRAFT_SIMT_SANITIZE=1` | the host and the plain kernels are compiled with AddressSanitizer and UndefinedBehaviorSanitizer, whose findings end the process. Rust has to bring the runtime: `RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address` and a `--target`. Sets `cfg(flexdraft_simt_sanitized)` |

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The emulator's own sources, which are compiled without checks.
const HOST: [&str; 5] = ["checks", "fiber", "launch", "launch_order", "ptx"];

/// The two builds of the kernels, without checks and with hooks for checks, and the compiler's options for each build.
const VARIANTS: [(&str, &[&str]); 2] = [("fast", &[]), ("checked", &["-fsanitize=thread"])];

/// Compiler options of the sanitized build, for the emulator and the kernels without checks. The checked kernels have
/// their own hooks, which cannot be combined with AddressSanitizer.
const SANITIZERS: [&str; 5] = [
    "-DFLEXDRAFT_SANITIZED",
    "-fsanitize=address,undefined,float-cast-overflow",
    // UndefinedBehaviorSanitizer's check of virtual functions is off: the code has none, and Rust's runtime does not
    // have this check.
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "-g1",
];

pub fn build(families: &[&str]) -> Result<(), Box<dyn Error>> {
    let sanitized = sanitized()?;
    let cuda = Path::new("cuda");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut kernels: Vec<(String, PathBuf)> = families
        .iter()
        .map(|family| (family.to_string(), cuda.join(family).join(format!("{family}.cu"))))
        .filter(|(_, path)| path.exists())
        .collect();
    kernels.push(("planted".into(), cuda.join("simt/tests/planted.cu")));

    for (variant, options) in VARIANTS {
        let mut compiler = cpp();
        compiler.define("FLEXDRAFT_VARIANT", variant);
        for option in options {
            compiler.flag(option);
        }
        if sanitized && variant == "fast" {
            compiler.flags(SANITIZERS);
        }
        for (family, path) in &kernels {
            // A C++ compiler does not recognise the extension `.cu`.
            let source = out.join(format!("{family}_{variant}.cpp"));
            fs::write(&source, format!("#include \"{}\"\n", fs::canonicalize(path)?.display()))?;
            compiler.file(source);
        }
        compiler.try_compile(&format!("flexdraft_simt_{variant}"))?;
    }
    let registry = out.join("registry.cpp");
    fs::write(&registry, registry_source(&kernels)?)?;
    let mut host = cpp();
    host.include(cuda.join("simt")).file(registry);
    host.files(HOST.map(|name| cuda.join("simt").join(format!("{name}.cpp"))));
    if sanitized {
        host.flags(SANITIZERS);
    }
    host.try_compile("flexdraft_simt_host")?;
    Ok(())
}

/// Returns whether a sanitized build is requested, or an error if Rust does not provide the sanitizers' runtime.
fn sanitized() -> Result<bool, Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=FLEXDRAFT_SIMT_SANITIZE");
    if env::var_os("FLEXDRAFT_SIMT_SANITIZE").is_none_or(|value| value != "1") {
        return Ok(false);
    }
    // Cargo separates the names of enabled sanitizers by commas.
    let ours = env::var("CARGO_CFG_SANITIZE").unwrap_or_default();
    if !ours.split(',').any(|sanitizer| sanitizer == "address") {
        let remedy = "RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address and a --target";
        return Err(format!("FLEXDRAFT_SIMT_SANITIZE=1 needs {remedy}").into());
    }
    println!("cargo::rustc-cfg=flexdraft_simt_sanitized");
    Ok(true)
}

/// Returns a C++ source that defines `simt::find`, which finds a kernel in the tables of all kernel files. It lists the
/// tables by name, because a linker drops objects that only register themselves from a static archive.
fn registry_source(kernels: &[(String, PathBuf)]) -> Result<String, std::fmt::Error> {
    let mut source = String::from("#include \"emulator.h\"\n\nextern \"C\" {\n");
    for (variant, _) in VARIANTS {
        for (family, _) in kernels {
            writeln!(source, "extern const simt::Kernel flexdraft_simt_{variant}_{family}[];")?;
        }
    }
    source.push_str("}\n\nnamespace simt {\n\nconst Kernel* find(bool checked, std::string_view name) {\n");
    source.push_str("    const Kernel* const tables[][2] = {\n");
    for (family, _) in kernels {
        writeln!(source, "        {{flexdraft_simt_fast_{family}, flexdraft_simt_checked_{family}}},")?;
    }
    source.push_str(
        "    };
    for (const auto& table : tables) {
        for (const Kernel* kernel = table[checked]; kernel->name != nullptr; ++kernel) {
            if (name == kernel->name) return kernel;
        }
    }
    return nullptr;
}

}  // namespace simt
",
    );
    Ok(source)
}

/// Returns a C++17 compiler that keeps floating-point operations as they are written.
fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .extra_warnings(true)
        .flag("-fno-exceptions")
        // Sanitizers that are enabled for Rust are turned off for C++, because they are incompatible with fibers and
        // with the hooks for checks.
        .flag("-fno-sanitize=all")
        .flag("-Wno-unknown-pragmas") // `#pragma unroll` is for nvcc.
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing");
    build
}
