//! A server with the part of the Hugging Face Hub's interface that downloads need, over plain HTTP.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// The repositories, what was asked for, and a planted interruption.
#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    requests: Vec<String>,
    /// The length after which the next download of a longer file breaks off.
    cut: Option<usize>,
}

struct Repository {
    commit: String,
    /// Names of the revision, beside its commit.
    revisions: Vec<String>,
    token: Option<String>,
    files: BTreeMap<String, Vec<u8>>,
}

pub struct HubServer {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&served);
                // A client that leaves is no failure of the server.
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    /// Adds a repository with the files of a directory and a README, at the branch `main` and a further revision.
    pub fn add(&self, id: &str, directory: &Path, commit: char, revision: &str, token: Option<&str>) {
        let mut files = BTreeMap::from([("README.md".to_owned(), b"Read me.".to_vec())]);
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap());
            }
        }
        let repository = Repository {
            commit: commit.to_string().repeat(40),
            revisions: vec!["main".into(), revision.into()],
            token: token.map(str::to_owned),
            files,
        };
        self.state.lock().unwrap().repositories.insert(id.into(), repository);
    }

    /// Lets the next download of a longer file break off after `len` bytes.
    pub fn cut_next(&self, len: usize) {
        self.state.lock().unwrap().cut = Some(len);
    }

    /// Returns the requests since the last call, as `METHOD PATH RANGE`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?.replace("%2F", "/"));
    let range = headers.get("range").cloned().unwrap_or_default();
    let (head, body) = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{method} {path} {range}"));
        respond(&mut state, &path, &headers)
    };
    stream.write_all(head.as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}

/// Returns the head of the answer and its body.
fn respond(state: &mut State, path: &str, headers: &BTreeMap<String, String>) -> (String, Vec<u8>) {
    let refused = |status: &str| {
        (format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), Vec::new())
    };
    let api = path.strip_prefix("/api/models/");
    let found = state.repositories.iter().find_map(|(id, repository)| {
        let rest = api.or(path.strip_prefix('/'))?.strip_prefix(id.as_str())?;
        let rest = rest.strip_prefix(if api.is_some() { "/revision/" } else { "/resolve/" })?;
        let names = repository.revisions.iter().chain([&repository.commit]);
        let file = names.into_iter().find_map(|name| rest.strip_prefix(name.as_str()))?;
        Some((id, repository, file.trim_start_matches('/').to_owned()))
    });
    let Some((id, repository, file)) = found else { return refused("404 Not Found") };
    let token = headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    if repository.token.is_some() && repository.token.as_deref() != token {
        return refused("401 Unauthorized");
    }
    if api.is_some() {
        let siblings: Vec<_> =
            repository.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
        let info = serde_json::json!({ "id": id, "sha": repository.commit, "siblings": siblings });
        let body = info.to_string().into_bytes();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        return (head, body);
    }
    let Some(content) = repository.files.get(&file) else { return refused("404 Not Found") };
    let size = content.len();
    let range = headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let (first, last) = match range.and_then(|range| range.split_once('-')) {
        Some((first, last)) => (first.parse().unwrap_or(0), last.parse().unwrap_or(size - 1).min(size - 1)),
        None => (0, size - 1),
    };
    if first >= size {
        return refused("416 Range Not Satisfiable");
    }
    let status = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}"),
        None => "200 OK".to_owned(),
    };
    // The hash of the content has no meaning to clients, except that it names the content.
    let etag = content
        .iter()
        .fold(size as u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let head = format!(
        "HTTP/1.1 {status}\r\nETag: \"{etag:016x}\"\r\nX-Repo-Commit: {}\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        repository.commit,
        last + 1 - first,
    );
    let mut body = content[first..=last].to_vec();
    if let Some(cut) = state.cut.take_if(|cut| body.len() > *cut) {
        body.truncate(cut);
    }
    (head, body)
}
