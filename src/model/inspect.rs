//! Reports on a model directory or GGUF file: tensors that are missing, unused or not finite, layer by layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::config::hugging_face::DirectoryConfig;
use super::config::orthrus::OrthrusConfig;
use super::config::{DrafterConfig, DrafterKind, ModelConfig};
use super::format::files::FileAccess;
use super::load::TargetFiles;
use super::weights::ChainConfig;
use super::weights::collector::Collected;
use super::weights::drafter::{self, DrafterHeader};
use super::weights::{orthrus, target};
use super::{ChatTemplate, Checkpoint, Gguf, LoadError, LoadWarning, TargetWeights, Tokenizer};
use crate::tensor::{Elements, MAX_BLOCK_LEN, Tensor};

/// A report on a target and, if there is one, its drafter. Its `Display` output is for people.
#[derive(Debug)]
pub struct Report {
    /// Configuration of the target.
    pub config: ModelConfig,
    /// Warnings about the target's files.
    pub warnings: Vec<LoadWarning>,
    /// The target's tensors.
    pub target: TensorReport,
    /// Number of token ids in the tokenizer, or the error from loading the tokenizer.
    pub tokenizer: Result<usize, LoadError>,
    /// `Ok` if the target has a chat template, or else the error from loading it.
    pub chat_template: Result<(), LoadError>,
    /// The report on the drafter, if a drafter was given, or if the target's directory is an Orthrus model.
    pub drafter: Option<DrafterReport>,
}

/// A report on a drafter.
#[derive(Debug)]
pub struct DrafterReport {
    /// Configuration of the drafter.
    pub config: DrafterConfig,
    /// Rank of the calibrator, if the drafter has one.
    pub calibrator_rank: Option<usize>,
    /// The chain of the draft's slots and its rank, if the drafter has one.
    pub chain: Option<(ChainConfig, usize)>,
    /// Tensors of the drafter.
    pub tensors: TensorReport,
}

/// A report on the tensors of a checkpoint.
#[derive(Debug)]
pub struct TensorReport {
    /// Path of the directory or GGUF file.
    pub path: PathBuf,
    /// Paths of the files of the checkpoint.
    pub files: Vec<PathBuf>,
    /// The tensors that the model uses, by part: the embedding, each layer, and so on, in the model's order.
    pub parts: Vec<Part>,
    /// Every tensor that is missing, or has a wrong shape or element type.
    pub problems: Vec<LoadError>,
    /// Formats of quantised blocks that no device computes with, sorted: such tensors become bf16 when they are loaded.
    pub converted: Vec<String>,
    /// Names of tensors that the model does not use.
    pub unused: Vec<String>,
    /// Names of used tensors with infinite or NaN elements, in the model's order, and the number of such elements.
    pub non_finite: Vec<(String, usize)>,
}

/// The tensors of one part of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The part's name in the checkpoint: `model.layers.3`, `lm_head`, …
    pub name: String,
    /// Number of tensors in the part.
    pub tensors: usize,
    /// Number of elements in the part's tensors.
    pub parameters: usize,
    /// Size of the part's tensors in bytes.
    pub bytes: usize,
    /// Number of the part's elements, by element type.
    pub dtypes: BTreeMap<String, usize>,
}

impl Report {
    /// Inspects a target's directory or GGUF file and, if given, a drafter's directory, reading the weights into memory.
    ///
    /// # Errors
    /// [`LoadError`] if no report is possible: a `config.json` or a checkpoint cannot be read, the model is
    /// not supported, or the drafter belongs to another target. Problems of single tensors are part of the
    /// report.
    pub fn read(target: &Path, drafter: Option<&Path>) -> Result<Self, LoadError> {
        // SAFETY: nothing is mapped.
        unsafe { Self::inspect(target, drafter, FileAccess::Read) }
    }

    /// Inspects the files like [`read`](Self::read), with the weights memory-mapped.
    ///
    /// # Safety
    /// Until this returns, no process may change or truncate a file of the checkpoints.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(target: &Path, drafter: Option<&Path>) -> Result<Self, LoadError> {
        // SAFETY: the caller guarantees that the files do not change.
        unsafe { Self::inspect(target, drafter, FileAccess::Map) }
    }

    /// # Safety
    /// With [`FileAccess::Map`], the contract of [`map`](Self::map).
    unsafe fn inspect(target: &Path, drafter: Option<&Path>, access: FileAccess) -> Result<Self, LoadError> {
        // SAFETY: the caller upholds the same contract.
        let mut report = match unsafe { TargetFiles::open(target, access) }? {
            TargetFiles::Gguf(file) => Self::of_gguf(&file)?,
            TargetFiles::Directory(mut config, checkpoint) => {
                // A drafter that is given takes the place of the directory's own, whose tensors are then unused.
                config.orthrus = config.orthrus.filter(|_| drafter.is_none());
                Self::of_checkpoint(config, &checkpoint)
            }
        };
        if let Some(dir) = drafter {
            let header = DrafterHeader::read(dir, &report.config)?;
            // SAFETY: the caller upholds the same contract.
            let checkpoint = unsafe { Checkpoint::open(dir, access) }?;
            report.drafter = Some(DrafterReport {
                calibrator_rank: header.rank(&checkpoint),
                chain: header.chain_and_rank(&checkpoint),
                tensors: TensorReport::new(
                    &checkpoint,
                    drafter::collect(&header, &report.config, &checkpoint),
                ),
                config: header.config,
            });
        }
        Ok(report)
    }

    fn of_checkpoint(config: DirectoryConfig, checkpoint: &Checkpoint) -> Self {
        let dir = checkpoint.dir();
        let collected = target::collect(config.target.clone(), checkpoint);
        let embed = collected.weights.as_ref().ok().map(|weights| weights.embed.clone());
        let (target, warnings) = found(&collected, config.target, config.warnings);
        let mut report = Self {
            target: TensorReport::new(checkpoint, collected),
            warnings,
            tokenizer: Tokenizer::read(dir, target.vocab_size).map(|tokenizer| tokenizer.len()),
            chat_template: ChatTemplate::read(dir).map(|_| ()),
            drafter: None,
            config: target,
        };
        if let Some(orthrus) = config.orthrus {
            report.add_orthrus(orthrus, embed.as_ref(), checkpoint);
        }
        report
    }

    /// Adds the drafter that is in the target's checkpoint. A tensor that neither of the two uses stays in the
    /// target's list.
    fn add_orthrus(&mut self, config: OrthrusConfig, embed: Option<&Tensor>, checkpoint: &Checkpoint) {
        let collected = orthrus::collect(config, &self.config, embed, checkpoint);
        self.target.unused.retain(|name| !collected.used.contains(name));
        let mut tensors = TensorReport::new(checkpoint, collected);
        tensors.unused.clear();
        self.drafter = Some(DrafterReport {
            config: config.drafter(&self.config),
            calibrator_rank: None,
            chain: None,
            tensors,
        });
    }

    fn of_gguf(file: &Gguf) -> Result<Self, LoadError> {
        let config = file.config()?;
        let collected = file.collect(config.clone());
        let (config, warnings) = found(&collected, config, file.config_warnings());
        Ok(Self {
            target: TensorReport::new(file, collected),
            warnings,
            tokenizer: file.tokenizer().map(|tokenizer| tokenizer.len()),
            chat_template: file.chat_template().map(|_| ()),
            drafter: None,
            config,
        })
    }

    /// Returns whether the target, and the drafter if there is one, can be loaded and contain only finite
    /// numbers.
    pub fn is_sound(&self) -> bool {
        let drafter = self.drafter.as_ref().is_none_or(|drafter| drafter.tensors.is_sound());
        self.target.is_sound() && drafter
    }
}

/// Returns the configuration of the collected weights, or `config` if tensors are missing or do not fit, with
/// all warnings.
fn found(
    collected: &Collected<TargetWeights>,
    config: ModelConfig,
    mut warnings: Vec<LoadWarning>,
) -> (ModelConfig, Vec<LoadWarning>) {
    let Ok(weights) = &collected.weights else { return (config, warnings) };
    warnings.extend(weights.warnings.iter().cloned());
    (weights.config.clone(), warnings)
}

impl TensorReport {
    fn new<T>(inventory: &impl Inventory, collected: Collected<T>) -> Self {
        let Collected { weights, used } = collected;
        let problems = weights.err().unwrap_or_default();
        let mut parts: Vec<Part> = Vec::new();
        let mut odd = Vec::new();
        let mut converted = BTreeSet::new();
        for name in &used {
            // A tensor with an unreadable element type is already in the list of problems.
            let Some(item) = inventory.item(name) else { continue };
            let part_name = part_of(name);
            if parts.last().is_none_or(|part| part.name != part_name) {
                parts.push(Part { name: part_name, ..Part::default() });
            }
            if let Some(part) = parts.last_mut() {
                part.add(&item);
            }
            if item.converted {
                converted.insert(item.kind.clone());
            }
            if item.non_finite > 0 {
                odd.push((name.clone(), item.non_finite));
            }
        }
        parts.sort_by_cached_key(|part| order(&part.name));
        odd.sort_by_cached_key(|(name, _): &(String, usize)| order(&part_of(name)));
        let names = inventory.names().into_iter();
        Self {
            path: inventory.path().into(),
            files: inventory.files(),
            parts,
            problems,
            converted: converted.into_iter().collect(),
            unused: names.filter(|name| !used.contains(*name)).map(str::to_owned).collect(),
            non_finite: odd,
        }
    }

    /// Returns whether every tensor exists, has the right shape, and contains only finite numbers.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.non_finite.is_empty()
    }

    /// Returns the number of elements in the tensors that the model uses.
    pub fn parameters(&self) -> usize {
        self.parts.iter().map(|part| part.parameters).sum()
    }

    /// Returns the size of the tensors that the model uses, in bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

impl Part {
    fn add(&mut self, item: &Item) {
        self.tensors += 1;
        self.parameters += item.elements;
        self.bytes += item.bytes;
        *self.dtypes.entry(item.kind.clone()).or_default() += item.elements;
    }
}

/// A container of named tensors: a directory or a GGUF file.
trait Inventory {
    fn path(&self) -> &Path;
    fn files(&self) -> Vec<PathBuf>;
    fn names(&self) -> Vec<&str>;

    /// Returns the tensor with this name, if it can be read.
    fn item(&self, name: &str) -> Option<Item>;
}

/// The entry of one tensor in a report.
struct Item {
    /// Number of elements.
    elements: usize,
    /// Number of elements that are infinite or NaN.
    non_finite: usize,
    /// The name of the element type, or of the format of its blocks.
    kind: String,
    /// True if the tensor becomes bf16 when it is loaded, whatever the loader is asked to do.
    converted: bool,
    /// Size of the tensor in bytes, as stored.
    bytes: usize,
}

impl Inventory for Checkpoint {
    fn path(&self) -> &Path {
        self.dir()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files().map(Into::into).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.names().collect()
    }

    fn item(&self, name: &str) -> Option<Item> {
        let tensor = self.tensor(name).ok()?;
        Some(Item {
            elements: tensor.elements().len(),
            non_finite: non_finite(&tensor),
            kind: tensor.dtype().to_string(),
            converted: false,
            bytes: tensor.byte_len(),
        })
    }
}

impl Inventory for Gguf {
    fn path(&self) -> &Path {
        self.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files().to_vec()
    }

    fn names(&self) -> Vec<&str> {
        self.names().collect()
    }

    fn item(&self, name: &str) -> Option<Item> {
        let stored = self.header().stored(name).ok()?;
        let non_finite = match self.non_finite_in_blocks(name) {
            Some(count) => count,
            None => non_finite(&self.tensor(name).ok()?),
        };
        Some(Item {
            elements: self.header().tensor(name).ok()?.shape.iter().product(),
            non_finite,
            kind: stored.kind.to_string(),
            converted: stored.kind.is_converted(),
            bytes: stored.bytes.len(),
        })
    }
}

/// Returns the part that a tensor belongs to: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`,
/// `blk.3` for `blk.3.ffn_up.weight`, otherwise the module that owns the tensor.
fn part_of(tensor: &str) -> String {
    let components: Vec<&str> = tensor.split('.').collect();
    let end = match components.iter().position(|&component| matches!(component, "layers" | "blk")) {
        Some(layers) => layers + 2,
        None if tensor.starts_with("anchor_bias_mlp.") || tensor.starts_with("chain.") => 1,
        None => components.len().saturating_sub(1).max(1),
    };
    components.get(..end).unwrap_or(&components).join(".")
}

/// Returns the sort key of a part: embeddings first, then layers by number, then the rest.
fn order(part: &str) -> (u8, usize, String) {
    let number = part.rsplit('.').next().and_then(|last| last.parse().ok());
    match number {
        _ if part.contains("embed") || part.contains("embd") => (0, 0, part.into()),
        Some(layer) => (1, layer, part.into()),
        None if part.ends_with("norm") => (2, 0, part.into()),
        None => (3, 0, part.into()),
    }
}

/// Returns the number of elements of a tensor that are infinite or NaN.
fn non_finite(tensor: &Tensor) -> usize {
    match tensor.elements() {
        Elements::F32(x) => x.par_iter().filter(|x| !x.is_finite()).count(),
        Elements::F16(x) => x.par_iter().filter(|x| !x.is_finite()).count(),
        Elements::Bf16(x) => x.par_iter().filter(|x| !x.is_finite()).count(),
        Elements::Blocks(blocks) => (0..blocks.len().div_ceil(MAX_BLOCK_LEN))
            .into_par_iter()
            .map(|index| {
                let mut elements = [0.0; MAX_BLOCK_LEN];
                blocks.read_f32(index * MAX_BLOCK_LEN..(index + 1) * MAX_BLOCK_LEN, &mut elements);
                elements.iter().filter(|x| !x.is_finite()).count()
            })
            .sum(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let attention = config.attention;
        writeln!(f, "target   {}", self.target.path.display())?;
        writeln!(
            f,
            "  {}: {} layers, hidden {}, intermediate {}, vocabulary {}, context {}",
            config.architecture.name(),
            config.layers,
            config.hidden_size,
            config.intermediate_size,
            config.vocab_size,
            config.context_len
        )?;
        writeln!(
            f,
            "  attention: {} query and {} KV heads, head_dim {}{}{}",
            attention.q_heads,
            attention.kv_heads,
            attention.head_dim,
            if config.architecture.has_qk_norms() { ", q and k norms" } else { "" },
            if config.attention_bias { ", biases" } else { "" },
        )?;
        let head = if config.tied_embeddings { "the embedding (tied)" } else { "its own" };
        let eos: Vec<String> = config.eos_ids.iter().map(u32::to_string).collect();
        let eos = if eos.is_empty() { "none".to_owned() } else { eos.join(", ") };
        writeln!(f, "  lm_head: {head}; end-of-sequence ids: {eos}")?;
        match &self.tokenizer {
            Ok(ids) => writeln!(f, "  tokenizer: {ids} ids")?,
            Err(error) => writeln!(f, "  tokenizer: none ({error})")?,
        }
        match &self.chat_template {
            Ok(()) => writeln!(f, "  chat template: yes")?,
            Err(LoadError::NoChatTemplate { .. }) => writeln!(f, "  chat template: none")?,
            Err(error) => writeln!(f, "  chat template: none ({error})")?,
        }
        write!(f, "{}", self.target)?;
        unused_section(f, &self.target.unused, "")?;
        if !self.warnings.is_empty() {
            section(f, "warnings", &self.warnings.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        }
        if let Some(drafter) = &self.drafter {
            write!(f, "\n{drafter}")?;
        }
        Ok(())
    }
}

impl fmt::Display for DrafterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "drafter  {}", self.tensors.path.display())?;
        let DrafterConfig { kind, tail_layers, block_size } = self.config;
        match (kind, self.calibrator_rank) {
            (DrafterKind::FlexDraft, Some(rank)) => {
                write!(f, "  last {tail_layers} layers, block size {block_size}, calibrator of rank {rank}")?;
            }
            (DrafterKind::FlexDraft, None) => {
                write!(f, "  last {tail_layers} layers, block size {block_size}, no calibrator")?;
            }
            (DrafterKind::Orthrus, _) => write!(
                f,
                "  Orthrus, in the target's checkpoint: all {tail_layers} layers, block size {block_size}"
            )?,
        }
        if let Some((ChainConfig { kind, top_k }, rank)) = self.chain {
            write!(f, ", {} chain of rank {rank} over the {top_k} most likely ids", kind.name())?;
        }
        writeln!(f)?;
        write!(f, "{}", self.tensors)?;
        unused_section(f, &self.tensors.unused, " (a drafter uses the target's own MLPs and norms)")
    }
}

/// Writes everything about a checkpoint except its unused tensors, which mean something else for a target than
/// for a drafter.
impl fmt::Display for TensorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self.files.as_slice() {
            [_] => "1 file".to_owned(),
            files => format!("{} files", files.len()),
        };
        writeln!(f, "  {} parameters, {}, {files}", thousands(self.parameters()), size(self.bytes()))?;
        let width = self.parts.iter().map(|part| part.name.len()).max().unwrap_or(0);
        for part in &self.parts {
            let dtypes = part.dtypes.keys().map(String::as_str).collect::<Vec<_>>().join(" + ");
            writeln!(
                f,
                "    {:width$}  {:>3} {}  {:>15}  {dtypes}",
                part.name,
                part.tensors,
                if part.tensors == 1 { "tensor " } else { "tensors" },
                thousands(part.parameters),
            )?;
        }
        if !self.converted.is_empty() {
            writeln!(f, "  become bf16 when loaded: tensors of {}", self.converted.join(", "))?;
        }
        section(
            f,
            "missing or misshapen",
            &self.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )?;
        let non_finite = self.non_finite.iter();
        let non_finite: Vec<_> =
            non_finite.map(|(name, count)| format!("{name}: {} elements", thousands(*count))).collect();
        section(f, "not finite", &non_finite)
    }
}

/// Writes a heading with the number of entries and the entries below it, or "none" if there are no entries.
fn section(f: &mut fmt::Formatter<'_>, heading: &str, entries: &[String]) -> fmt::Result {
    if entries.is_empty() {
        return writeln!(f, "  {heading}: none");
    }
    writeln!(f, "  {heading}: {}", entries.len())?;
    entries.iter().try_for_each(|entry| writeln!(f, "    {entry}"))
}

/// Writes the names of the unused tensors. Tensors that differ only in their layer number share a line.
fn unused_section(f: &mut fmt::Formatter<'_>, unused: &[String], why: &str) -> fmt::Result {
    if unused.is_empty() {
        return writeln!(f, "  unused: none");
    }
    writeln!(f, "  unused: {}{why}", unused.len())?;
    let mut patterns: BTreeMap<String, usize> = BTreeMap::new();
    for name in unused {
        let numbered = |component: &str| component.parse::<u32>().is_ok();
        let parts = name.split('.').scan(false, |after_layers, component| {
            let star = *after_layers && numbered(component);
            *after_layers = matches!(component, "layers" | "blk");
            Some(if star { "*" } else { component })
        });
        *patterns.entry(parts.collect::<Vec<_>>().join(".")).or_default() += 1;
    }
    patterns.iter().try_for_each(|(pattern, count)| match (pattern.contains('*'), count) {
        (false, _) => writeln!(f, "    {pattern}"),
        (true, 1) => writeln!(f, "    {pattern} (1 layer)"),
        (true, _) => writeln!(f, "    {pattern} ({count} layers)"),
    })
}

/// Formats a number with commas: 1234567 as `1,234,567`.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a size in bytes in binary units.
fn size(bytes: usize) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units.get(unit).copied().unwrap_or_default())
}
