//! Names of the files that a model consists of.

/// The names of the small files of a model that the library reads, in addition to the files with tensors.
pub const SMALL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    INDEX,
];

/// The name of the file with all tensors, and of the index that lists the files of a checkpoint in several files.
pub const WEIGHTS: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
