//! Settings from the environment variables of Python's `huggingface_hub`, which have the same meaning here.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The address of the Hugging Face Hub, the location of its cache, and how to use them.
#[derive(Debug)]
pub struct Settings {
    /// The directory of the cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// The address of the Hub: `HF_ENDPOINT`, without slashes at its end.
    pub endpoint: String,
    /// The access token: `HF_TOKEN`, or the token that `hf auth login` saved.
    pub token: Option<String>,
    /// Whether nothing may be sent to the Hub (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

impl Settings {
    pub fn from_env() -> Self {
        Self::new(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let user =
            variable("HOME").or_else(|| variable("USERPROFILE")).map_or(PathBuf::from("."), PathBuf::from);
        let path = |name: &str| variable(name).map(|path| expanded(&path, &user));
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache")).join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".into());
        let saved = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| fs::read_to_string(saved).ok()).map(|token| token.trim().to_owned());
        let is_true = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE")
                .or_else(|| variable("TRANSFORMERS_OFFLINE"))
                .is_some_and(is_true),
        }
    }
}

/// Returns a path with a tilde at its start replaced by the user's home directory.
fn expanded(path: &str, user: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => user.into(),
        Some(rest) if rest.starts_with('/') => user.join(&rest[1..]),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Settings::new(variable)
    }

    #[test]
    fn variables_mean_what_they_mean_to_python() {
        let cache = |variables: &[(&str, &str)]| settings(variables).cache;
        assert_eq!(cache(&[("HOME", "/u")]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "~/h")]), Path::new("/u/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        let found =
            settings(&[("HF_ENDPOINT", "http://x:1/"), ("HF_TOKEN", " t\n"), ("HF_HUB_OFFLINE", "true")]);
        assert_eq!(
            (found.endpoint.as_str(), found.token.as_deref(), found.offline),
            ("http://x:1", Some("t"), true)
        );
        let found = settings(&[("HOME", "/nowhere"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(
            (found.endpoint.as_str(), found.token, found.offline),
            ("https://huggingface.co", None, false)
        );
    }
}
