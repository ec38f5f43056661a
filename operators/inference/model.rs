//! The catalog of models: manifests found by name, their files found and verified, their labels read.
//!
//! A catalog searches a list of folders. The first folder that holds `NAME.toml` defines the model; the files that the
//! manifest names lie beside it or in any folder of the list, so that manifests may be kept apart from weights.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::address::masked;
use crate::error::{FieldError, StartError};
use crate::inference::decode::{fastestdet, ssd};
use crate::inference::download::{Cache, Fetch};
use crate::inference::hashes::HashCache;
use crate::inference::manifest::{
    Defaults, InputFields, InputSize, InputSpec, LabelSource, Manifest, OutputSpec, Question, takes_one_at_a_time,
};
use crate::item::ModelName;

/// The environment variable that lists folders of models, separated as in `PATH`.
pub const SEARCH_VARIABLE: &str = "ENGINE_MODELS";

/// A model that is ready to be loaded: its file is there and is the one that its manifest means.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: ModelName,
    /// The ONNX file.
    pub path: PathBuf,
    /// Size of the ONNX file in bytes.
    pub bytes: u64,
    pub licence: String,
    pub summary: Option<String>,
    /// Name of the model's input.
    pub input_name: String,
    /// How many pictures go in at once where nobody asks for another number: 1, or what the file is fixed to.
    pub batch: usize,
    /// The input as the manifest writes it, for nodes that override parts of it.
    pub input_fields: InputFields,
    pub input: InputSpec,
    pub output: OutputSpec,
    pub labels: Labels,
    pub defaults: Defaults,
    /// The one question that it answers on `/predict`, where it is there for that.
    pub predict: Option<Question>,
    pub evaluation: Option<toml::Table>,
}

impl Model {
    /// Upper bound, in bytes, of what one session takes that gets up to `batch` pictures at once: the weights as they
    /// are, once more rearranged for the CPU, and what lies between the layers.
    pub fn memory(&self, batch: usize) -> u64 {
        3 * self.bytes + 12 * self.input.bytes() * batch as u64 + (16 << 20)
    }
}

/// The classes of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    names: Vec<Arc<str>>,
    /// The model's own numbers, where they are not positions.
    ids: Option<BTreeMap<i64, usize>>,
}

impl Labels {
    /// Labels whose numbers are their positions.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Labels {
        Labels { names: names.into_iter().map(label).collect(), ids: None }
    }

    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Position of the label `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|label| **label == *name)
    }

    /// Position of the class that the model calls `id`.
    pub fn position_of_id(&self, id: i64) -> Option<usize> {
        match &self.ids {
            Some(ids) => ids.get(&id).copied(),
            None => usize::try_from(id).ok().filter(|index| *index < self.names.len()),
        }
    }
}

/// A label is what stands before the first comma: synonyms follow it.
fn label(line: &str) -> Arc<str> {
    line.split(',').next().unwrap_or_default().trim().into()
}

/// What is wrong with a text file whose bytes are no text.
const NOT_TEXT: &str = "it is not UTF-8 text";

/// Why a model cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelError {
    /// No folder holds a manifest of that name.
    Unknown { name: String, known: Vec<String>, searched: Vec<PathBuf> },
    /// The manifest is not what a manifest should be.
    Manifest { name: String, path: PathBuf, message: String },
    /// The manifest names a file that no folder holds.
    FileMissing { name: String, file: String, searched: Vec<PathBuf> },
    /// The manifest names an address, and what is there was not fetched yet.
    NotPulled { name: String, url: String },
    /// What the manifest names could not be fetched.
    Download { name: String, message: String, hint: String },
    /// A file is there but cannot be read.
    Unreadable { name: String, path: PathBuf, message: String },
    /// The file is another one than the manifest means.
    HashWrong { name: String, path: PathBuf, expected: String, actual: String },
    /// The label file does not fit the model.
    LabelCount { name: String, path: PathBuf, expected: usize, actual: usize },
}

impl fmt::Display for ModelError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::Unknown { name, .. } => write!(formatter, "there is no model `{name}`"),
            ModelError::Manifest { name, path, message } => {
                write!(formatter, "the manifest of model `{name}`, {}, cannot be used: {message}", path.display())
            }
            ModelError::FileMissing { name, file, searched } => {
                write!(formatter, "model `{name}` needs the file `{file}`, which is in none of {}", folders(searched))
            }
            ModelError::NotPulled { name, url } => {
                write!(formatter, "model `{name}` is not here yet; it comes from {url}")
            }
            ModelError::Download { message, .. } => formatter.write_str(message),
            ModelError::Unreadable { name, path, message } => {
                write!(formatter, "model `{name}`: {} cannot be read: {message}", path.display())
            }
            ModelError::HashWrong { name, path, expected, actual } => write!(
                formatter,
                "model `{name}`: {} has the SHA-256 {actual}, but its manifest expects {expected}",
                path.display()
            ),
            ModelError::LabelCount { name, path, expected, actual } => write!(
                formatter,
                "model `{name}`: the labels in {} are {actual}, but the model has {expected} classes",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ModelError {}

impl ModelError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            ModelError::Unknown { name, known, searched } => {
                let closest = closest(name, known.iter().map(String::as_str));
                match (closest, known.is_empty()) {
                    (Some(closest), _) => format!("did you mean `{closest}`?"),
                    (None, false) => format!("known models: {}", known.join(", ")),
                    (None, true) => format!(
                        "no manifests are in {}; set {SEARCH_VARIABLE} to the folders of your models",
                        folders(searched)
                    ),
                }
            }
            ModelError::Manifest { .. } => "correct the manifest; `models/` has examples".into(),
            ModelError::FileMissing { file, .. } => {
                format!("put `{file}` beside the manifest, or set {SEARCH_VARIABLE} to the folder that holds it")
            }
            ModelError::NotPulled { name, .. } => format!("run `engine models pull {name}`"),
            ModelError::Download { hint, .. } => hint.clone(),
            ModelError::Unreadable { message, .. } if message == NOT_TEXT => "save it as UTF-8 text".into(),
            ModelError::Unreadable { .. } => "make the file readable for this user".into(),
            ModelError::HashWrong { .. } => {
                "fetch the file again, or put the new hash into the manifest if the change is meant".into()
            }
            ModelError::LabelCount { .. } => "use the label file that belongs to this model".into(),
        }
    }

    /// The same as a mistake in a node's field `field`.
    pub fn at(&self, field: &str) -> FieldError {
        FieldError::new(field, self.to_string()).hint(self.hint())
    }
}

fn folders(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return "the search path (it is empty)".into();
    }
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The candidate that `name` may be a misspelling of: at most one wrong letter in three.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Every model that graphs may name. The default one is empty.
#[derive(Default)]
pub struct Catalog {
    folders: Vec<PathBuf>,
    manifests: BTreeMap<String, PathBuf>,
    hashes: HashCache,
    /// Where files that manifests name by an address are kept.
    cache: Cache,
    /// Fetches what is missing; `None`: nothing is fetched.
    fetch: Option<Box<dyn Fetch>>,
    /// Models that were asked for and are sound.
    loaded: Mutex<BTreeMap<String, Arc<Model>>>,
}

/// What `engine models` tells of a model without loading it.
pub struct Found {
    pub manifest: Manifest,
    /// Where the manifest is.
    pub manifest_path: PathBuf,
    /// The ONNX file, or why there is none.
    pub file: Result<PathBuf, ModelError>,
}

impl Catalog {
    /// The catalog of `folders`, first come first served; folders that are not there are passed over. Remembers
    /// hashes in the user's cache folder.
    pub fn open(folders: impl IntoIterator<Item = PathBuf>) -> Catalog {
        Catalog::with_hashes(folders, HashCache::open(HashCache::user_file()))
    }

    /// As [`Catalog::open`], with a cache of hashes of the caller's choice.
    pub fn with_hashes(folders: impl IntoIterator<Item = PathBuf>, hashes: HashCache) -> Catalog {
        let mut unique: Vec<PathBuf> = Vec::new();
        for folder in folders {
            if folder.is_dir() && !unique.contains(&folder) {
                unique.push(folder);
            }
        }
        let mut manifests = BTreeMap::new();
        for folder in &unique {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let is_manifest = path.extension().is_some_and(|extension| extension == "toml");
                if let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
                    && is_manifest
                {
                    manifests.entry(name.to_owned()).or_insert(path);
                }
            }
        }
        let (cache, loaded) = (Cache::of_user(), Mutex::default());
        Catalog { folders: unique, manifests, hashes, cache, fetch: None, loaded }
    }

    /// With another place for fetched files.
    #[must_use]
    pub fn with_cache(mut self, cache: Cache) -> Catalog {
        self.cache = cache;
        self
    }

    /// Fetches with `fetch` what a manifest names by an address and is not here yet, when its model is asked for.
    #[must_use]
    pub fn fetching(mut self, fetch: Box<dyn Fetch>) -> Catalog {
        self.fetch = Some(fetch);
        self
    }

    /// Where models are looked for: the folders of `ENGINE_MODELS`, `models` of the working directory, and those of
    /// the installation: `models` beside the binary or in a folder above it, and `../share/engine/models`.
    pub fn search_path() -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = std::env::var_os(SEARCH_VARIABLE)
            .map(|list| std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect())
            .unwrap_or_default();
        folders.push(PathBuf::from("models"));
        if let Ok(binary) = std::env::current_exe() {
            folders.extend(binary.ancestors().skip(1).map(|folder| folder.join("models")).find(|path| path.is_dir()));
            folders.extend(binary.parent().and_then(Path::parent).map(|prefix| prefix.join("share/engine/models")));
        }
        folders
    }

    /// The names of all manifests, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.manifests.keys().map(String::as_str)
    }

    /// The files that models consist of: every manifest, and what belongs to the models that were asked for.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.manifests.values().cloned().collect();
        for (name, model) in self.loaded.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            files.push(model.path.clone());
            let labels = self.manifest(name).ok().and_then(|manifest| manifest.labels.file);
            files.extend(labels.and_then(|labels| self.find(name, &self.manifests[name], &labels).ok()));
        }
        files
    }

    /// The folders that are searched.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The model `name`, with its file verified and its labels read.
    pub fn get(&self, name: &str) -> Result<Arc<Model>, ModelError> {
        if let Some(model) = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(model.clone());
        }
        let model = Arc::new(self.load(name)?);
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), model.clone());
        Ok(model)
    }

    /// The manifest of `name`, without looking at the files that it names.
    pub fn manifest(&self, name: &str) -> Result<Manifest, ModelError> {
        let path = self.manifests.get(name).ok_or_else(|| ModelError::Unknown {
            name: name.to_owned(),
            known: self.names().map(str::to_owned).collect(),
            searched: self.folders.clone(),
        })?;
        let text = fs::read_to_string(path).map_err(|error| unreadable(name, path, &error))?;
        toml::from_str(&text).map_err(|error| ModelError::Manifest {
            name: name.to_owned(),
            path: path.clone(),
            message: error.to_string().trim_end().to_owned(),
        })
    }

    /// What is known of `name` without reading its ONNX file.
    pub fn look_up(&self, name: &str) -> Result<Found, ModelError> {
        let manifest = self.manifest(name)?;
        let manifest_path = self.manifests[name].clone();
        let file = self.onnx_file(name, &manifest_path, &manifest);
        Ok(Found { manifest, manifest_path, file })
    }

    /// Hexadecimal SHA-256 of a file, remembered.
    pub fn sha256(&self, path: &Path) -> std::io::Result<String> {
        self.hashes.sha256(path)
    }

    /// The ONNX file of `name` where it came from an address: fetched where it is not here.
    pub fn pull(&self, name: &str, fetch: &dyn Fetch) -> Result<PathBuf, ModelError> {
        let manifest = self.manifest(name)?;
        match self.onnx_file(name, &self.manifests[name], &manifest) {
            Err(ModelError::NotPulled { .. }) => self.fetched(name, &manifest, fetch),
            found => found,
        }
    }

    fn fetched(&self, name: &str, manifest: &Manifest, fetch: &dyn Fetch) -> Result<PathBuf, ModelError> {
        fetch.fetch(name, &manifest.file, &manifest.sha256.to_ascii_lowercase(), &self.cache).map_err(
            |StartError { message, hint }| ModelError::Download {
                name: name.to_owned(),
                message,
                hint: hint.unwrap_or_default(),
            },
        )
    }

    /// The ONNX file of a manifest: where the search path has it, else in the cache where it is named by an address.
    fn onnx_file(&self, name: &str, path: &Path, manifest: &Manifest) -> Result<PathBuf, ModelError> {
        let Some(url) = address(&manifest.file) else { return self.find(name, path, &manifest.file) };
        // What the user put beside the manifest under the address's own name wins.
        let own = url.path.rsplit('/').next().filter(|file| !file.is_empty());
        if let Some(found) = own.and_then(|file| self.find(name, path, file).ok()) {
            return Ok(found);
        }
        let cached = self.cache.path(&manifest.sha256.to_ascii_lowercase());
        match cached.filter(|cached| cached.is_file()) {
            Some(cached) => Ok(cached),
            None => Err(ModelError::NotPulled { name: name.to_owned(), url: url.shown }),
        }
    }

    fn load(&self, name: &str) -> Result<Model, ModelError> {
        let manifest = self.manifest(name)?;
        let manifest_path = &self.manifests[name];
        let wrong =
            |message: String| ModelError::Manifest { name: name.to_owned(), path: manifest_path.clone(), message };

        let input = manifest.input.resolve().map_err(|mistakes| {
            let messages: Vec<String> = mistakes.into_iter().map(|mistake| mistake.message).collect();
            wrong(format!("[input]: {}", messages.join("; ")))
        })?;
        let input_name = manifest.input.name.clone().ok_or_else(|| wrong("[input] has no `name`".into()))?;
        check_output(&manifest, &input).map_err(wrong)?;
        let labels = self.labels(name, manifest_path, &manifest.labels)?;

        if let Some(Question { label, .. }) = &manifest.predict
            && (manifest.output.is_classifier() || labels.position(label).is_none())
        {
            return Err(wrong(format!("[predict]: only a detector that knows `{label}` can be asked for it")));
        }
        let path = match (self.onnx_file(name, manifest_path, &manifest), &self.fetch) {
            (Err(ModelError::NotPulled { .. }), Some(fetch)) => self.fetched(name, &manifest, &**fetch)?,
            (found, _) => found?,
        };
        let bytes = fs::metadata(&path).map_err(|error| unreadable(name, &path, &error))?.len();
        let actual = self.hashes.sha256(&path).map_err(|error| unreadable(name, &path, &error))?;
        let expected = manifest.sha256.to_ascii_lowercase();
        if actual != expected {
            return Err(ModelError::HashWrong { name: name.to_owned(), path, expected, actual });
        }
        Ok(Model {
            name: ModelName { name: name.into(), sha256: actual.into() },
            path,
            bytes,
            licence: manifest.licence,
            summary: manifest.summary,
            input_name,
            batch: manifest.input.batch.unwrap_or(1) as usize,
            input_fields: manifest.input,
            input,
            output: manifest.output,
            labels,
            defaults: manifest.defaults,
            predict: manifest.predict,
            evaluation: manifest.evaluation,
        })
    }

    fn labels(&self, name: &str, manifest: &Path, source: &LabelSource) -> Result<Labels, ModelError> {
        let wrong = |message: &str| ModelError::Manifest {
            name: name.to_owned(),
            path: manifest.to_owned(),
            message: format!("[labels]: {message}"),
        };
        let (mut labels, path) = match (&source.file, &source.names) {
            (Some(file), None) => {
                let path = self.find(name, manifest, file)?;
                let text = fs::read_to_string(&path).map_err(|error| unreadable(name, &path, &error))?;
                (Labels::new(text.lines().filter(|line| !line.trim().is_empty())), path)
            }
            (None, Some(names)) => (Labels::new(names.iter().map(String::as_str)), manifest.to_owned()),
            _ => return Err(wrong("write either `file` or `names`")),
        };
        let count_wrong = |expected| ModelError::LabelCount {
            name: name.to_owned(),
            path: path.clone(),
            expected,
            actual: labels.len(),
        };
        if let Some(expected) = source.count.filter(|count| *count != labels.len()) {
            return Err(count_wrong(expected));
        }
        if labels.is_empty() {
            return Err(wrong("a model has at least one class"));
        }
        if let Some(ids) = &source.ids {
            if ids.len() != labels.len() {
                return Err(count_wrong(ids.len()));
            }
            let by_id: BTreeMap<i64, usize> = ids.iter().copied().zip(0..).collect();
            if by_id.len() != ids.len() {
                return Err(wrong("`ids` holds a number twice"));
            }
            labels.ids = Some(by_id);
        }
        Ok(labels)
    }

    /// The file that a manifest names: beside it, or in the first folder of the search path that holds it.
    fn find(&self, name: &str, manifest: &Path, file: &str) -> Result<PathBuf, ModelError> {
        let beside = manifest.parent().map(Path::to_owned);
        let mut searched = Vec::new();
        for folder in beside.into_iter().chain(self.folders.iter().cloned()) {
            let path = folder.join(file);
            if path.is_file() {
                return Ok(path);
            }
            if !searched.contains(&folder) {
                searched.push(folder);
            }
        }
        Err(ModelError::FileMissing { name: name.to_owned(), file: file.to_owned(), searched })
    }
}

/// An address that a manifest names.
struct Address<'a> {
    /// Without query and fragment.
    path: &'a str,
    /// Without a name and password in front of the host.
    shown: String,
}

/// `file` as an address; `None` where it is the name of a file.
fn address(file: &str) -> Option<Address<'_>> {
    let (scheme, rest) = file.split_once("://")?;
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once('/').map_or("", |(_, path)| path);
    Some(Address { path, shown: masked(&format!("{scheme}://{}", without_credentials(rest))) })
}

/// What follows `://`, without a name and password in front of the host.
pub(super) fn without_credentials(rest: &str) -> &str {
    let host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    rest[..host].rfind('@').map_or(rest, |at| &rest[at + 1..])
}

fn unreadable(name: &str, path: &Path, error: &std::io::Error) -> ModelError {
    let message = match error.kind() {
        std::io::ErrorKind::InvalidData => NOT_TEXT.to_owned(),
        _ => error.to_string(),
    };
    ModelError::Unreadable { name: name.to_owned(), path: path.to_owned(), message }
}

/// Whether outputs and defaults make sense together with the input.
fn check_output(manifest: &Manifest, input: &InputSpec) -> Result<(), String> {
    let Defaults { threshold, nms } = manifest.defaults;
    for (field, value) in [("threshold", threshold), ("nms", nms)] {
        if value.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
            return Err(format!("[defaults]: `{field}` must be 0 to 1"));
        }
    }
    if let Some(Question { threshold, .. }) = manifest.predict
        && !(0.0..=1.0).contains(&threshold)
    {
        return Err("[predict]: `threshold` must be 0 to 1".into());
    }
    if manifest.input.batch.is_some_and(|batch| batch > 1)
        && let Some(why) = takes_one_at_a_time(input, &manifest.output)
    {
        return Err(format!("[input]: `batch` cannot be more than 1: {why}"));
    }
    let fixed = |decode: &str| match input.size {
        InputSize::Fixed { width, height } => Ok((width, height)),
        InputSize::Source { .. } => Err(format!("[output]: `{decode}` needs an input with `width` and `height`")),
    };
    match &manifest.output {
        OutputSpec::Yolox { strides, .. } => check_strides(fixed("yolox")?, strides),
        OutputSpec::Fastestdet { .. } => check_strides(fixed("fastestdet")?, &[fastestdet::STRIDE]),
        OutputSpec::Ssd { layers, variances, .. } => {
            fixed("ssd")?;
            check_anchors(layers, variances)
        }
        // Their boxes come in pixels of whatever input they got.
        OutputSpec::Yolov5 { .. }
        | OutputSpec::Yolov8 { .. }
        | OutputSpec::BoxesLabelsScores { .. }
        | OutputSpec::Softmax { .. }
        | OutputSpec::None { .. } => Ok(()),
    }
}

fn check_strides((width, height): (u32, u32), strides: &[u32]) -> Result<(), String> {
    if strides.is_empty() {
        return Err("[output]: `strides` is empty".into());
    }
    match strides.iter().find(|stride| **stride == 0 || width % **stride != 0 || height % **stride != 0) {
        Some(stride) => {
            Err(format!("[output]: the input of {width}x{height} pixels is no multiple of the stride {stride}"))
        }
        None => Ok(()),
    }
}

fn check_anchors(layers: &[ssd::Layer], variances: &[f32; 4]) -> Result<(), String> {
    /// More than any detector has; a larger number is a slip of the pen.
    const MOST_ANCHORS: u64 = 1 << 20;
    let positive = |value: &f32| value.is_normal() && *value > 0.0;
    if layers.is_empty() || layers.iter().any(|layer| layer.sizes.is_empty() || layer.grid.contains(&0)) {
        return Err("[output]: every one of `layers` needs a `grid` and `sizes`, and there must be one at least".into());
    }
    if !layers.iter().flat_map(|layer| &layer.sizes).flatten().all(positive) {
        return Err("[output]: every one of `sizes` must be positive, in pixels of the input".into());
    }
    if !variances.iter().all(positive) {
        return Err("[output]: all four `variances` must be positive".into());
    }
    let cells = |layer: &ssd::Layer| u64::from(layer.grid[0]) * u64::from(layer.grid[1]);
    let anchors = layers.iter().map(|layer| cells(layer).saturating_mul(layer.sizes.len() as u64));
    if anchors.fold(0, u64::saturating_add) > MOST_ANCHORS {
        return Err(format!("[output]: `layers` have more than {MOST_ANCHORS} anchors"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn manifest(changes: &[(&str, &str)]) -> String {
        let mut text = format!(
            "file = \"m.onnx\"\nsha256 = \"{ABC}\"\nlicence = \"MIT\"\n[input]\nname = \"x\"\nwidth = 64\nheight = 32\n\
             [output]\ndecode = \"yolox\"\nname = \"y\"\nstrides = [8, 16]\n[labels]\nfile = \"l.txt\"\ncount = 2\n"
        );
        for (from, to) in changes {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        text
    }

    /// A catalog of two folders: manifests in one, weights in the other.
    fn catalog(text: &str, labels: &str) -> (tempfile::TempDir, Catalog) {
        let folder = tempfile::tempdir().unwrap();
        let (manifests, weights) = (folder.path().join("manifests"), folder.path().join("weights"));
        fs::create_dir(&manifests).unwrap();
        fs::create_dir(&weights).unwrap();
        fs::write(manifests.join("small.toml"), text).unwrap();
        fs::write(weights.join("m.onnx"), "abc").unwrap();
        fs::write(weights.join("l.txt"), labels).unwrap();
        let catalog = Catalog::with_hashes([manifests, weights, folder.path().join("none")], HashCache::default());
        (folder, catalog)
    }

    #[test]
    fn a_manifest_and_its_files_may_lie_in_different_folders() {
        let (_folder, catalog) = catalog(&manifest(&[]), "cat, Felis catus\ndog\n");
        assert_eq!(catalog.names().collect::<Vec<_>>(), ["small"]);
        let model = catalog.get("small").unwrap();
        assert_eq!(&*model.name.sha256, ABC);
        assert_eq!(model.labels.names().iter().map(|label| &**label).collect::<Vec<_>>(), ["cat", "dog"]);
        assert_eq!(model.labels.position("dog"), Some(1));
        assert_eq!((model.labels.position_of_id(1), model.labels.position_of_id(2)), (Some(1), None));
        assert_eq!(model.labels.position_of_id(-1), None);
        assert!(Arc::ptr_eq(&model, &catalog.get("small").unwrap()));
    }

    #[test]
    fn a_models_own_numbers_are_mapped() {
        let (_folder, catalog) = catalog(&manifest(&[("count = 2", "ids = [1, 18]")]), "person\ndog\n");
        let model = catalog.get("small").unwrap();
        assert_eq!(model.labels.position_of_id(18), Some(1));
        assert_eq!(model.labels.position_of_id(0), None);
    }

    #[test]
    fn each_way_to_be_unusable_has_its_own_error() {
        let (_folder, found) = catalog(&manifest(&[]), "a\nb\n");
        let error = found.get("smal").unwrap_err();
        assert!(matches!(&error, ModelError::Unknown { known, .. } if known == &["small"]));
        assert_eq!(error.hint(), "did you mean `small`?");
        assert!(Catalog::default().get("small").unwrap_err().hint().contains(SEARCH_VARIABLE));

        let (_folder, found) = catalog(&manifest(&[]), "a\nb\nc\n");
        assert!(matches!(found.get("small"), Err(ModelError::LabelCount { expected: 2, actual: 3, .. })));

        let (_folder, found) = catalog(&manifest(&[(ABC, &ABC.replace('b', "c"))]), "a\nb\n");
        let error = found.get("small").unwrap_err();
        assert!(matches!(&error, ModelError::HashWrong { actual, .. } if actual == ABC));
        assert!(error.to_string().contains(ABC) && error.to_string().contains(&ABC.replace('b', "c")));

        let (folder, found) = catalog(&manifest(&[]), "a\nb\n");
        let mut bytes = manifest(&[]).into_bytes();
        bytes.extend(b"# caf\xe9\n");
        fs::write(folder.path().join("manifests/small.toml"), bytes).unwrap();
        let error = found.get("small").unwrap_err();
        assert!(error.to_string().contains("it is not UTF-8 text"), "{error}");
        assert_eq!(error.hint(), "save it as UTF-8 text");

        let (_folder, found) = catalog(&manifest(&[("m.onnx", "n.onnx")]), "a\nb\n");
        let error = found.get("small").unwrap_err();
        assert!(matches!(&error, ModelError::FileMissing { searched, .. } if searched.len() == 2));
        assert!(error.hint().contains(SEARCH_VARIABLE));

        for (changes, says) in [
            (("width = 64", "wdith = 64"), "wdith"),
            (("width = 64", "width = 60"), "no multiple of the stride 8"),
            (("strides = [8, 16]", "strides = [0]"), "stride 0"),
            (("strides = [8, 16]", "strides = []"), "empty"),
            (("name = \"x\"\n", ""), "no `name`"),
            (("file = \"l.txt\"\n", ""), "either `file` or `names`"),
            (("count = 2", "ids = [3, 3]"), "twice"),
            (("count = 2", "[defaults]\nnms = 2.0"), "0 to 1"),
            (("licence = \"MIT\"\n", ""), "licence"),
            (("width = 64\nheight = 32\n", ""), "needs an input with `width` and `height`"),
            (("count = 2", "[predict]\nlabel = \"c\"\nthreshold = 0.5"), "only a detector that knows `c`"),
            (("count = 2", "[predict]\nlabel = \"a\"\nthreshold = 5"), "0 to 1"),
            (("width = 64\nheight = 32\n", "width = 64\nheight = 32\nbatch = 1000\n"), "`batch` is 1000"),
            (
                (
                    "[output]\ndecode = \"yolox\"\nname = \"y\"\nstrides = [8, 16]",
                    "batch = 4\n[output]\ndecode = \"boxes_labels_scores\"\nboxes = \"b\"\nlabels = \"l\"\nscores = \"s\"",
                ),
                "which of several pictures",
            ),
        ] {
            let (_folder, found) = catalog(&manifest(&[changes]), "a\nb\n");
            let error = found.get("small").unwrap_err();
            assert!(matches!(error, ModelError::Manifest { .. }), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn heads_that_cannot_be_read_are_refused() {
        let yolox = "decode = \"yolox\"\nname = \"y\"\nstrides = [8, 16]";
        let ssd = |layers: &str| format!("decode = \"ssd\"\nboxes = \"b\"\nscores = \"s\"\nlayers = {layers}");
        let with = |output: &str| {
            let (_folder, found) = catalog(&manifest(&[(yolox, output)]), "a\nb\n");
            found.get("small").map(|model| model.output.clone()).map_err(|error| error.to_string())
        };
        assert!(with("decode = \"fastestdet\"\nname = \"y\"").is_ok());
        assert!(with("decode = \"yolov5\"\nname = \"y\"").is_ok());
        assert!(with("decode = \"yolov8\"\nname = \"y\"").is_ok());
        let sound = with(&ssd("[{ grid = [8, 4], sizes = [[10, 20], [7.5, 8]] }]")).unwrap();
        let OutputSpec::Ssd { layers, variances, background, .. } = sound else { panic!("{sound:?}") };
        assert_eq!((ssd::anchors(&layers), variances, background), (64, [0.1, 0.1, 0.2, 0.2], true));
        for (output, says) in [
            (ssd("[]"), "needs a `grid` and `sizes`"),
            (ssd("[{ grid = [0, 4], sizes = [[1, 1]] }]"), "needs a `grid` and `sizes`"),
            (ssd("[{ grid = [1, 1], sizes = [] }]"), "needs a `grid` and `sizes`"),
            (ssd("[{ grid = [1, 1], sizes = [[0, 1]] }]"), "must be positive"),
            (ssd("[{ grid = [99999, 99999], sizes = [[1, 1]] }]"), "more than"),
            (ssd("[{ grid = [1, 1], sizes = [[1, 1]] }]\nvariances = [0, 1, 1, 1]"), "`variances`"),
            (ssd("[{ grid = [1, 1], sizes = [[1, 1]], size = 3 }]"), "size"),
            ("decode = \"yolov9000\"\nname = \"y\"".to_owned(), "yolov9000"),
        ] {
            let error = with(&output).unwrap_err();
            assert!(error.contains(says), "{output}: {error}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        let shown = |file: &str| address(file).map(|address| (address.shown, address.path.to_owned()));
        assert_eq!(shown("m.onnx"), None);
        let expected = ("https://host:1/a/m.onnx?x=@".to_owned(), "a/m.onnx".to_owned());
        assert_eq!(shown("https://me:secret@host:1/a/m.onnx?x=@"), Some(expected));
        assert_eq!(shown("http://host"), Some(("http://host".to_owned(), String::new())));
    }

    #[test]
    fn every_shipped_manifest_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        let catalog = Catalog::with_hashes([folder], HashCache::default());
        assert!(catalog.names().count() >= 5);
        for name in catalog.names() {
            let manifest = catalog.manifest(name).unwrap();
            manifest.input.resolve().unwrap();
            assert_eq!(manifest.sha256.len(), 64, "{name}");
        }
    }
}
