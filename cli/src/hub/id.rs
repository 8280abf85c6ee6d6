//! Ids of repositories on the Hugging Face Hub.

use std::fmt;

use hf_hub::{Repo, RepoType};

/// The branch that is used for an id without a revision.
const MAIN: &str = "main";

/// The id of a repository on the Hub, and its revision: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    pub name: String,
    pub revision: String,
}

impl RepoId {
    /// Reads `OWNER/NAME` or `OWNER/NAME@REVISION`; returns `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, model) = name.split_once('/')?;
        let is_part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        // A revision becomes part of a path in the cache, so it must not lead out of the cache's folder.
        let is_revision = revision.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !revision.contains(|c: char| c.is_whitespace() || c.is_control() || "\\?#%:".contains(c));
        (is_part(owner) && is_part(model) && is_revision)
            .then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// Returns whether the revision is the hash of a commit.
    pub fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    pub fn repo(&self) -> Repo {
        self.at(&self.revision)
    }

    /// Returns the repository at the given revision, for the crate `hf-hub`.
    pub fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, revision.to_owned())
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths() {
        let parsed = |text: &str| RepoId::parse(text).map(|id| (id.name, id.revision));
        let id = |name: &str, revision: &str| Some((name.to_owned(), revision.to_owned()));
        assert_eq!(parsed("Qwen/Qwen3-8B"), id("Qwen/Qwen3-8B", "main"));
        assert_eq!(parsed("a/b@refs/pr/3"), id("a/b", "refs/pr/3"));
        for path in [
            "model",
            "./a/b",
            "../b",
            "/a/b",
            "~/b",
            "a/b/c",
            "a/",
            "/b",
            "a b/c",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
        assert!(RepoId::parse(&format!("a/b@{}", "0a".repeat(20))).unwrap().is_commit());
        assert!(!RepoId::parse("a/b@0a0a").unwrap().is_commit());
        assert_eq!(RepoId::parse("a/b@v1").unwrap().to_string(), "a/b@v1");
    }
}
