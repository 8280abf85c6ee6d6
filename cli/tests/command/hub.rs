//! Models by the id of a repository: downloads from a server on this machine, and the cache.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::chat::chatting_target;
use super::common::{Run, arg, bundled, finished, flexdraft, run, tiny};
use super::hub_server::HubServer;
#[cfg(unix)]
use super::terminal::{CTRL_D, Terminal};

/// Variables of the Hub that the tests' own environment may have.
const VARIABLES: [&str; 8] = [
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
];

fn command(args: &[&str], endpoint: &str, home: &Path) -> Command {
    let mut command = flexdraft(args);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", home).env("NO_PROXY", "127.0.0.1").current_dir(home);
    command
}

const GENERATE: [&str; 9] = [
    "--json",
    "--prompt",
    "def f(",
    "--max-new-tokens",
    "6",
    "--mode",
    "parallel",
    "--target",
    "tiny/target",
];

/// Continues a prompt with the pair that the server has.
fn generate(draft: &str, endpoint: &str, home: &Path, variables: &[(&str, &str)]) -> Run {
    let mut command = command(&[&GENERATE[..], &["--draft", draft]].concat(), endpoint, home);
    command.envs(variables.iter().copied());
    finished(command.output().unwrap())
}

/// A server with the recorded pair.
fn server() -> HubServer {
    let server = HubServer::start();
    server.add("tiny/target", &tiny("target"), 'a', "v1", None);
    server.add("tiny/draft", &tiny("draft"), 'b', "v2", None);
    server.add("tiny/gated", &tiny("draft"), 'c', "v3", Some("secret"));
    server
}

fn ids(run: &Run) -> serde_json::Value {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap()["output_ids"].clone()
}

/// Returns the output of the pair under its paths.
fn expected() -> serde_json::Value {
    let (target, draft) = (tiny("target"), tiny("draft"));
    let args = [&GENERATE[..8], &[arg(&target), "--draft", arg(&draft)]].concat();
    ids(&run(&args))
}

#[test]
fn a_model_is_downloaded_once() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let first = generate("tiny/draft@v2", &server.address, home.path(), &[]);
    assert_eq!(ids(&first), expected());
    let asked = server.requests();
    assert!(asked.iter().any(|request| request.ends_with("/model.safetensors bytes=0-")), "{asked:?}");
    assert!(!asked.iter().any(|request| request.contains("README")), "{asked:?}");

    let cache = home.path().join("hub");
    let commit = |name: &str| fs::read_to_string(cache.join(name)).unwrap();
    assert_eq!(commit("models--tiny--target/refs/main"), "a".repeat(40));
    assert_eq!(commit("models--tiny--draft/refs/v2"), "b".repeat(40));
    assert_eq!(fs::read_dir(cache.join("models--tiny--draft/refs")).unwrap().count(), 1);
    let config = cache.join("models--tiny--target/snapshots").join("a".repeat(40)).join("config.json");
    assert_eq!(fs::read(&config).unwrap(), fs::read(tiny("target/config.json")).unwrap());
    #[cfg(unix)]
    assert!(fs::read_link(&config).unwrap().starts_with("../../blobs"));

    // Afterwards, the server is only asked for the commit of each revision, and then for nothing.
    assert_eq!(ids(&generate("tiny/draft@v2", &server.address, home.path(), &[])), expected());
    assert_eq!(
        server.requests(),
        ["GET /api/models/tiny/draft/revision/v2 ", "GET /api/models/tiny/target/revision/main "]
    );
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(ids(&generate("tiny/draft@v2", &server.address, home.path(), &offline)), expected());
    let by_commit = format!("tiny/draft@{}", "b".repeat(40));
    assert_eq!(ids(&generate(&by_commit, &server.address, home.path(), &offline)), expected());
    assert_eq!(server.requests(), [""; 0]);
    // A server that cannot be reached does not matter for a model in the cache.
    let away = generate("tiny/draft@v2", "http://127.0.0.1:9", home.path(), &[]);
    assert_eq!(ids(&away), expected());
    assert!(away.stderr.contains("; the model in the cache is used\n"), "{}", away.stderr);
}

#[test]
fn contents_that_the_cache_has_are_not_downloaded_again() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    ids(&generate("tiny/draft", &server.address, home.path(), &[]));
    // The next commit has the same files.
    server.add("tiny/draft", &tiny("draft"), 'd', "v4", None);
    server.requests();
    assert_eq!(ids(&generate("tiny/draft", &server.address, home.path(), &[])), expected());
    let asked = server.requests();
    assert!(asked.iter().all(|request| !request.ends_with("bytes=0-")), "{asked:?}");
    assert!(home.path().join("hub/models--tiny--draft/snapshots").join("d".repeat(40)).is_dir());
}

#[test]
fn a_download_that_breaks_off_continues() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    server.cut_next(50_000);
    assert_eq!(ids(&generate("tiny/draft", &server.address, home.path(), &[])), expected());
    let asked = server.requests();
    assert!(asked.iter().any(|request| request.ends_with(".safetensors bytes=50000-")), "{asked:?}");
}

#[test]
fn a_path_wins_over_an_id() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let local = home.path().join("tiny/target");
    fs::create_dir_all(&local).unwrap();
    for entry in fs::read_dir(tiny("target")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, local.join(path.file_name().unwrap())).unwrap();
    }
    let draft = tiny("draft");
    assert_eq!(ids(&generate(arg(&draft), &server.address, home.path(), &[])), expected());
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn models_that_cannot_be_had() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let failed = |draft: &str, endpoint: &str, variables: &[(&str, &str)]| {
        let run = generate(draft, endpoint, home.path(), variables);
        assert_eq!(run.stdout, "");
        (run.code, run.stderr)
    };
    let address = &server.address;
    let (code, text) = failed("tiny/nothing", address, &[]);
    assert_eq!(code, Some(2));
    assert!(
        text.starts_with(&format!(
            "error: tiny/nothing is neither a path nor a model that {address} shows; "
        )),
        "{text}"
    );
    let (code, text) = failed("tiny/gated", address, &[]);
    assert!(
        code == Some(2) && text.ends_with("a private or gated model needs a token in HF_TOKEN\n"),
        "{text}"
    );
    assert_eq!(ids(&generate("tiny/gated", address, home.path(), &[("HF_TOKEN", "secret")])), expected());
    let cache = home.path().join("elsewhere");
    let variables = [("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", arg(&cache))];
    let (code, text) = failed("tiny/draft", address, &variables);
    let message = format!(
        "error: tiny/draft is not in the cache {}, and HF_HUB_OFFLINE forbids downloads\n",
        cache.display()
    );
    assert_eq!((code, text), (Some(2), message));
    let (code, text) = failed("tiny/draft", "http://127.0.0.1:9", &[]);
    assert_eq!(code, Some(1));
    let start = "error: tiny/draft is not a path, and cannot be downloaded from http://127.0.0.1:9: ";
    assert!(text.starts_with(start), "{text}");
}

/// What a new user does: names a model, sees it download, and talks to it.
#[cfg(unix)]
#[test]
fn from_an_id_to_a_conversation() {
    let (server, home, target) = (HubServer::start(), TempDir::new().unwrap(), chatting_target());
    let drafter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/tiny/drafter");
    server.add("rust/simd", target.path(), 'e', "v1", None);
    server.add("rust/simd-drafter", &drafter, 'f', "v1", None);
    let common = ["--max-new-tokens", "40", "--stop", "fn _", "--device", "cpu"];
    let paths =
        ["--target", arg(target.path()), "--draft", arg(&drafter), "--prompt", "s:Rust\nu:/// Adds\n"];
    let answer = bundled(&[&common[..], &paths].concat()).text;
    let ids = ["chat", "--target", "rust/simd", "--draft", "rust/simd-drafter@v1", "--system", "Rust"];
    let mut command = command(&[&ids[..], &common].concat(), &server.address, home.path());
    command.env("NO_COLOR", "1").env("TERM", "xterm");
    let mut terminal = Terminal::run(command);
    terminal.wait_for("model.safetensors [");
    terminal.wait_for("Ctrl-C stops an answer.\n> ");
    terminal.type_keys("/// Adds\n");
    terminal.wait_for("/// Adds\n");
    let shown = terminal.wait_for("> ");
    assert!(shown.starts_with(&answer), "{shown:?}, expected {answer:?}");
    assert!(!shown.contains("fn _"));
    terminal.type_keys(CTRL_D);
    assert_eq!(terminal.end().code(), Some(0));
}

/// Python's library downloads from the same server, and reads the cache that the command wrote.
#[test]
fn pythons_library_reads_the_cache() {
    let Some(python) = std::env::var_os("FLEXDRAFT_HUGGINGFACE_HUB") else {
        eprintln!("SKIPPED: FLEXDRAFT_HUGGINGFACE_HUB names no Python with the package huggingface_hub");
        return;
    };
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    ids(&generate("tiny/draft@v2", &server.address, home.path(), &[]));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_cache.py");
    let python = |arguments: &[&str], home: &Path, offline: &str| {
        let mut command = Command::new(&python);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.arg(&script).args(arguments).env("HF_ENDPOINT", &server.address).env("HF_HOME", home);
        command
            .env("HF_HUB_OFFLINE", offline)
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .env("NO_PROXY", "127.0.0.1");
        let run = finished(command.output().unwrap());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stdout
    };
    let online = tempfile::tempdir().unwrap();
    server.requests();
    for (id, revision) in [("tiny/target", "main"), ("tiny/draft", "v2")] {
        let files = fs::read_dir(tiny(id.strip_prefix("tiny/").unwrap())).unwrap().count();
        let ours = python(&[id, revision], home.path(), "1");
        assert_eq!(server.requests(), [""; 0]);
        assert_eq!(ours.lines().count(), files, "{ours}");
        assert_eq!(ours, python(&[id, revision], online.path(), "0"), "the same files and hashes");
        server.requests();
    }
    // The command reads the cache that Python wrote.
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(ids(&generate("tiny/draft@v2", &server.address, online.path(), &offline)), expected());
}
