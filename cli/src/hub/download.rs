//! Downloads the files of a model that the cache does not have yet.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::cached;
use super::files::{INDEX, SMALL_FILES, WEIGHTS};
use super::id::RepoId;
use super::settings::Settings;
use crate::error::{CliError, Result, warn};

/// Number of attempts to download a file. Each attempt continues where the last attempt broke off.
const ATTEMPTS: u32 = 5;

/// Pause before the second attempt to download a file; the pause doubles for each further attempt.
const PAUSE: Duration = Duration::from_millis(250);

/// Returns the directory with a model's files, after a download of the missing files. If the Hub cannot be reached, a
/// complete model in the cache is used.
pub fn download(id: &RepoId, settings: &Settings) -> Result<PathBuf> {
    let api = ApiBuilder::new()
        .with_endpoint(settings.endpoint.clone())
        .with_cache_dir(settings.cache.clone())
        .with_token(settings.token.clone())
        .with_user_agent("flexdraft", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|error| failed(id, settings, &error))?;
    let info = match api.repo(id.repo()).info() {
        Ok(info) => info,
        Err(error) => {
            let found = cached::find(id, settings).filter(|_| status(&error).is_none_or(|code| code >= 500));
            let Some(found) = found else { return Err(failed(id, settings, &error)) };
            let _ = warn(&format!("{}; the model in the cache is used", failed(id, settings, &error)));
            return Ok(found);
        }
    };
    let mut files: BTreeSet<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    files.retain(|file| is_inside(file));
    if !files.contains("config.json") {
        return Err(CliError::Usage(format!(
            "{id} has no config.json, so it is no model in the format that loads"
        )));
    }
    let cache = Cache::new(settings.cache.clone()).repo(id.repo());
    let download = Download {
        id,
        settings,
        repo: api.repo(id.at(&info.sha)),
        blobs: cache.blob_path(""),
        snapshot: cache.pointer_path(&info.sha),
        api,
    };
    for file in SMALL_FILES.iter().filter(|file| files.contains(**file)) {
        if *file != INDEX || !files.contains(WEIGHTS) {
            download.fetch(file)?;
        }
    }
    let weights = match files.contains(WEIGHTS) {
        true => [WEIGHTS.to_owned()].into(),
        false => cached::weight_files(&download.snapshot).unwrap_or_default(),
    };
    // The loader reports a shard that it needs and that the repository does not have.
    for file in weights.intersection(&files) {
        download.fetch(file)?;
    }
    if !id.is_commit() {
        cache.create_ref(&info.sha).map_err(|error| failed(id, settings, &error.into()))?;
    }
    // The crate `hf-hub` writes a reference for the commit as if it were a branch; the reference is removed.
    let _ = fs::remove_file(download.snapshot.join("../../refs").join(&info.sha));
    Ok(download.snapshot)
}

/// The download of a model's files at one commit.
struct Download<'a> {
    id: &'a RepoId,
    settings: &'a Settings,
    api: Api,
    repo: ApiRepo,
    /// The directory that holds the contents of files under the names of their hashes.
    blobs: PathBuf,
    /// The directory with the files of the commit, as links to `blobs`.
    snapshot: PathBuf,
}

impl Download<'_> {
    /// Downloads a file, unless the cache has it.
    fn fetch(&self, file: &str) -> Result<()> {
        if self.snapshot.join(file).is_file() {
            return Ok(());
        }
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match self.attempt(file) {
                // Only network failures and server errors (status 500 and above) are worth another attempt: a refusal
                // stays the same.
                Err(error) if status(&error).is_none_or(|code| code >= 500) => std::thread::sleep(pause),
                result => return result.map_err(|error| self.failed(file, &error)),
            }
            pause *= 2;
        }
        self.attempt(file).map_err(|error| self.failed(file, &error))
    }

    fn attempt(&self, file: &str) -> Result<(), ApiError> {
        let metadata = self.api.metadata(&self.repo.url(file))?;
        let (blob, link) = (self.blobs.join(metadata.etag()), self.snapshot.join(file));
        let size = metadata.size() as u64;
        // A link may be left whose content was removed.
        let _ = fs::remove_file(&link);
        if file_len(&blob) == Some(size) && self.link(&blob, &link).is_ok() {
            return Ok(());
        }
        // The crate `hf-hub` asks for the rest of a partial file even if nothing is left to send, which servers refuse.
        let part = blob.with_extension("part");
        if file_len(&part).is_some_and(|len| len >= size) {
            fs::remove_file(&part)?;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        self.repo.download_with_progress(file, bar.clone())?;
        bar.finish_and_clear();
        match file_len(&link) {
            Some(len) if len == size => Ok(()),
            // A server that cannot continue a download sends the file from its start again, behind the part that is already
            // there.
            found => {
                fs::remove_file(&blob)?;
                let found = found.map_or("no file".to_owned(), |len| format!("{len} bytes"));
                Err(std::io::Error::other(format!("expected {size} bytes, found {found}")).into())
            }
        }
    }

    /// Links a file of the commit to contents that are in the cache already, as the crate `hf-hub` does.
    fn link(&self, blob: &Path, link: &Path) -> std::io::Result<()> {
        let (Some(folder), Ok(below)) = (link.parent(), link.strip_prefix(&self.snapshot)) else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        fs::create_dir_all(folder)?;
        let name = blob.file_name().unwrap_or_default();
        let up: PathBuf = below.components().map(|_| Component::ParentDir).collect();
        symlink(&up.join("../blobs").join(name), link)
    }

    fn failed(&self, file: &str, error: &ApiError) -> CliError {
        match failed(self.id, self.settings, error) {
            CliError::Download(reason) => CliError::Download(format!("{file}: {reason}")),
            error => error,
        }
    }
}

#[cfg(unix)]
fn symlink(content: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(content, link)
}

/// Returns an error on systems that may allow links to administrators only, so that the file is downloaded again.
#[cfg(not(unix))]
fn symlink(_content: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

fn file_len(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len())
}

/// Returns whether the path of a repository's file stays within the repository's directory.
fn is_inside(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Returns the HTTP status with which a server refused a request, if it answered.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

/// Returns the error for a failed download, with what the user can do about it.
fn failed(id: &RepoId, settings: &Settings, error: &ApiError) -> CliError {
    let endpoint = &settings.endpoint;
    match status(error) {
        Some(401 | 403 | 404) => {
            let token = match settings.token {
                Some(_) => "the token in use may have no access to it",
                None => "a private or gated model needs a token in HF_TOKEN",
            };
            CliError::Usage(format!("{id} is neither a path nor a model that {endpoint} shows; {token}"))
        }
        Some(code) => CliError::Download(format!("{endpoint} refused to send {id}: status {code}")),
        None => CliError::Download(format!(
            "{id} is not a path, and cannot be downloaded from {endpoint}: {error}"
        )),
    }
}
