//! Tokens that a model's directory lists in addition to `tokenizer.json`: in `tokenizer_config.json`,
//! `added_tokens.json` and `special_tokens_map.json`. The order in which one overrides another is that of transformers
//! 5.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;

use super::guarded::guarded;
use crate::model::LoadError;
use crate::model::format::files::if_exists;
use crate::model::format::json::{Fields, JsonFile};

/// The names of special tokens that every tokenizer may have.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The tokens of a directory's files other than `tokenizer.json`.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Tokens with a name, such as `bos_token`. They are special.
    named: BTreeMap<String, AddedToken>,
    /// Special tokens without a name.
    extra: Vec<AddedToken>,
    /// Tokens with the ids that the files give them, and the file that lists them.
    added: BTreeMap<u32, AddedToken>,
    added_path: PathBuf,
    /// Whether the added tokens of `tokenizer.json` itself override the tokens in `added`.
    tokenizer_wins: bool,
}

impl SpecialTokens {
    /// Reads the tokens from the files that exist in a directory.
    pub(super) fn read(dir: &Path) -> Result<Self, LoadError> {
        let mut tokens = Self::default();
        let config = if_exists(JsonFile::read(&dir.join(CONFIG)))?;
        if let Some(config) = &config {
            tokens.take_names(&config.fields())?;
            if let Some(added) = config.fields().object("added_tokens_decoder")? {
                tokens.added_path = dir.join(CONFIG);
                for (id, _) in added.entries() {
                    let number = id.parse().map_err(|_| added.invalid(id, "a token under its id"))?;
                    tokens.added.insert(number, token(&added, id)?);
                }
                return Ok(tokens);
            }
        }
        tokens.tokenizer_wins = true;
        if let Some(map) = if_exists(JsonFile::read(&dir.join(MAP)))? {
            tokens.take_names(&map.fields())?;
        }
        let path = dir.join(ADDED);
        if let Some(file) = if_exists(JsonFile::read(&path))? {
            let fields = file.fields();
            for (text, _) in fields.entries() {
                let Some(id) = fields.token_id(text)? else { continue };
                let special = tokens.marks(text);
                tokens.added.insert(id, AddedToken::from(text.as_str(), special));
            }
            tokens.added_path = path;
        }
        Ok(tokens)
    }

    /// Returns each named token with its name, for chat templates.
    pub(super) fn named(self) -> impl Iterator<Item = (String, String)> {
        self.named.into_iter().map(|(name, token)| (name, token.content))
    }

    /// Adds the tokens to the tokenizer of the file `path`.
    pub(super) fn add_to(
        mut self,
        tokenizer: &mut tokenizers::Tokenizer,
        path: &Path,
    ) -> Result<(), LoadError> {
        if self.tokenizer_wins {
            let own = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
            self.added.extend(own.iter().map(|(id, token)| (*id, token.clone())));
        }
        let texts: BTreeMap<&str, &AddedToken> =
            self.added.values().map(|token| (token.content.as_str(), token)).collect();
        // If a named token is also listed with an id, the list decides its properties.
        let special: Vec<AddedToken> = self
            .named
            .values()
            .chain(&self.extra)
            .map(|token| texts.get(token.content.as_str()).copied().unwrap_or(token).clone().special(true))
            .collect();
        let added: Vec<AddedToken> = self
            .added
            .values()
            .map(|token| token.clone().special(token.special || self.marks(&token.content)))
            .collect();
        guarded(path, || {
            tokenizer.add_tokens(added)?;
            tokenizer.add_special_tokens(special)?;
            Ok(())
        })?;
        for (id, token) in &self.added {
            let found = tokenizer.token_to_id(&token.content);
            if let Some(found) = found.filter(|found| found != id) {
                return Err(LoadError::Tokenizer {
                    path: path.into(),
                    reason: format!(
                        "token `{}` has id {found}, expected {id}, its id in {}",
                        token.content,
                        self.added_path.display()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Returns whether a named or extra token has this text.
    fn marks(&self, text: &str) -> bool {
        self.named.values().chain(&self.extra).any(|token| token.content == text)
    }

    /// Takes the named and extra tokens of a file, which override tokens of the same name.
    fn take_names(&mut self, fields: &Fields<'_>) -> Result<(), LoadError> {
        for name in NAMES {
            if fields.get(name).is_some() {
                self.named.insert(name.into(), token(fields, name)?);
            }
        }
        // Tokens may have other names too, such as `image_token`.
        for (name, value) in fields.entries() {
            if name.ends_with("_token") && text_of(value).is_some() {
                self.named.insert(name.clone(), token(fields, name)?);
            }
        }
        let list = |key| fields.get(key).filter(|list: &&Value| !is_empty(list)).map(|list| (key, list));
        match list("extra_special_tokens").or_else(|| list("additional_special_tokens")) {
            None => {}
            Some((_, Value::Array(tokens))) => {
                for value in tokens {
                    let Some(token) = parse(value) else {
                        return Err(fields.invalid("extra_special_tokens", "a list of tokens"));
                    };
                    if !self.extra.contains(&token) {
                        self.extra.push(token);
                    }
                }
            }
            Some((key, Value::Object(_))) => {
                let named = fields.object(key)?.ok_or_else(|| fields.missing(key))?;
                for (name, _) in named.entries() {
                    self.named.insert(name.clone(), token(&named, name)?);
                }
            }
            Some((key, _)) => {
                return Err(fields.invalid(key, "a list of tokens, or an object of named tokens"));
            }
        }
        Ok(())
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// Returns the text of a token: a string, or an object with its `content`.
fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn parse(value: &Value) -> Option<AddedToken> {
    let text = text_of(value)?;
    if value.is_string() {
        return Some(AddedToken::from(text, true));
    }
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(
        AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

fn token(fields: &Fields<'_>, key: &str) -> Result<AddedToken, LoadError> {
    let value = fields.get(key).and_then(parse);
    value.ok_or_else(|| fields.invalid(key, "a token's text, or an object with its `content`"))
}
