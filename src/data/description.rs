//! A network of the user's own as a file: its layers in TOML, which become the same data that networks known by name
//! are made of. Written for people, so every mistake is told with its line and its layer; and read as any file of
//! unknown origin, so size, depth and number of layers are bounded, and nothing is left out silently.

use super::{read, sha256};
use crate::error::{Error, Result};
use crate::model::{Arch, BATCH_NORM_EPS, Conv2d, Dims, Layer, Linear, Shortcut};
use crate::weights;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeFloat, DeInteger, DeTable, DeValue};

/// Largest description that is read, in bytes.
const MAX_FILE: u64 = 1 << 18;
/// Most layers of a network, repeated ones and those inside residual blocks counted.
const MAX_LAYERS: usize = 4096;
/// Residual blocks inside one another.
const MAX_DEPTH: usize = 4;
/// Longest name, in bytes.
const MAX_NAME: usize = 256;
/// What stands for the number of a repeat in names.
const NUMBER: char = '#';

/// Layers that are a word alone.
const WORDS: [&str; 3] = ["relu", "global_avg_pool", "flatten"];
/// What the other layers are told by.
const KINDS: [&str; 8] = ["conv", "batch_norm", "affine", "max_pool", "avg_pool", "linear", "residual", "repeat"];

const DROPOUT: &str = "dropout lets everything through when a network is evaluated: leave it out";

/// A network as a file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Its layers, [`Layer::Normalise`] first where the file has mean and deviation: what [`weights::load_as`] takes.
    pub arch: Arch,
    /// Names of the classes; empty where the file has none.
    pub classes: Vec<String>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

impl Description {
    /// Reads a description. In TOML, `layers` in the order in which they run:
    ///
    /// ```toml
    /// name = "small"                  # how reports call it [default: custom]
    /// input = [3, 32, 32]             # channels, height, width
    /// classes = 10                    # their number, or a list of their names [default: what the last layer gives]
    /// mean = [0.5, 0.5, 0.5]          # with `std`: the network reads (x - mean) / std [default: what the weights say]
    /// std = [0.25, 0.25, 0.25]
    /// layers = [
    ///   { conv = "conv1", outputs = 16, kernel = 3, stride = 1, padding = 1, bias = false },   # [1, 0, true]
    ///   { batch_norm = "bn1", eps = 1e-5 },   # [1e-5]; also affine: a gain and a bias for each channel
    ///   "relu",                       # also "flatten", "global_avg_pool"
    ///   { max_pool = 2, stride = 2, padding = 0 },                                             # [size, 0]; also avg_pool
    ///   { repeat = 2, from = 0, layers = [                                                     # `#`: 0, then 1
    ///     { residual = [
    ///         { conv = "layer1.#.conv1", outputs = 16, kernel = 3, padding = 1 },
    ///         "relu",
    ///         { conv = "layer1.#.conv2", outputs = 16, kernel = 3, padding = 1 },
    ///       ], shortcut = "identity" },   # or { subsample = 16 }, the channels it adds, or [ a convolution, its batch norm ]
    ///     "relu",
    ///   ] },
    ///   "global_avg_pool",
    ///   "flatten",
    ///   { linear = "fc", outputs = 10, bias = true },                                          # [true]
    /// ]
    /// ```
    ///
    /// Names are those of the tensors (`conv1.weight`). What enters a layer follows from those before it.
    ///
    /// # Errors
    /// [`Error::Model`] naming file, line and layer: what is no TOML, a key that is not known, a layer that cannot take
    /// what enters it, two layers of one name, more than 4096 layers, more than 4 residual blocks inside one another.
    pub fn open(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let bytes = read(path, MAX_FILE).map_err(|e| match e {
            Error::Data { place, detail } => Error::Model { place, detail },
            other => other,
        })?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            Error::model(format!("{place}: line {line}"), "not UTF-8")
        })?;
        Reader { place, text, layers: 0, number: None, names: BTreeMap::new() }.description(sha256([&bytes[..]]))
    }
}

struct Reader<'a> {
    place: String,
    text: &'a str,
    /// How many there are so far.
    layers: usize,
    /// Of the repeat that is under way.
    number: Option<usize>,
    /// Names of layers, and the lines where they are.
    names: BTreeMap<String, usize>,
}

/// Layers one after the other, as far as they are read.
struct Chain {
    layers: Vec<Layer>,
    /// What left it.
    left: Dims,
    /// Residual blocks around them.
    depth: usize,
}

impl Chain {
    fn new(x: Dims, depth: usize) -> Self {
        Chain { layers: Vec::new(), left: x, depth }
    }

    /// Adds a layer, if it can stand there.
    fn push(&mut self, layer: Layer) -> Result<()> {
        let is_outermost = self.depth == 0;
        self.left =
            weights::check_layers(std::slice::from_ref(&layer), self.left, weights::Norms::Folded, is_outermost)?;
        self.layers.push(layer);
        Ok(())
    }
}

/// A table of the file, with the place that messages name.
struct Table<'a> {
    path: &'a str,
    span: Range<usize>,
    entries: &'a DeTable<'a>,
}

impl Reader<'_> {
    fn description(mut self, sha256: String) -> Result<Description> {
        let table = DeTable::parse(self.text).map_err(|e| {
            let line = self.line(e.span().unwrap_or_default().start);
            Error::model(format!("{}: line {line}", self.place), e.message().replace('\n', " "))
        })?;
        let table = Table { path: "", span: 0..0, entries: table.get_ref() };
        self.only(&table, &["name", "input", "classes", "mean", "std", "layers"])?;
        let name = match table.entries.get("name") {
            None => "custom".into(),
            Some(value) => self.text_of("name", value)?,
        };
        let (place, input) = self.wanted(&table, "input")?;
        let sides = self.list("input", input)?.iter().map(|v| self.whole("input", v)).collect::<Result<Vec<_>>>()?;
        let [c, h, w] = sides[..] else {
            return self.fail(&place, "input", "three whole numbers are expected: channels, height, width");
        };
        let input = Dims::new(c, h, w);
        weights::check_size("input", input).map_err(|e| self.at(&place, "", e))?;

        let mut chain = Chain::new(input, 0);
        if let Some((span, normalise)) = self.normalise(&table)? {
            chain.push(normalise).map_err(|e| self.at(&span, "mean, std", e))?;
        }
        let (place, list) = self.wanted(&table, "layers")?;
        self.sequence("layers", list, &mut chain)?;
        let Chain { layers, left: x, .. } = chain;
        if (x.h, x.w) != (1, 1) || x.c < 2 {
            return self.fail(&place, "layers", &format!("give {x}; a classifier ends with K×1×1, K at least 2"));
        }
        if matches!(layers.iter().rfind(|layer| **layer != Layer::Flatten), Some(Layer::Relu)) {
            let items = self.list("layers", list)?;
            let (last, path) = (items.last().map_or(place, Spanned::span), format!("layers[{}]", items.len() - 1));
            let detail = "a ReLU is behind the last layer, which must give plain numbers, one a class";
            return self.fail(&last, &path, detail);
        }
        let classes = match table.entries.get("classes") {
            None => Vec::new(),
            Some(value) => self.classes(value, x.c)?,
        };
        Ok(Description { arch: Arch { name, input, layers }, classes, sha256 })
    }

    fn normalise(&self, table: &Table<'_>) -> Result<Option<(Range<usize>, Layer)>> {
        let list = |key: &str, value| self.list(key, value)?.iter().map(|v| self.number(key, v)).collect::<Result<_>>();
        match (table.entries.get("mean"), table.entries.get("std")) {
            (None, None) => Ok(None),
            (Some(mean), Some(std)) => {
                Ok(Some((mean.span(), Layer::Normalise { mean: list("mean", mean)?, std: list("std", std)? })))
            }
            (Some(mean), None) => self.fail(&mean.span(), "mean", "there is no `std` beside it"),
            (None, Some(std)) => self.fail(&std.span(), "std", "there is no `mean` beside it"),
        }
    }

    /// Names of the classes, if they have any, as many as there are logits.
    fn classes(&self, value: &Spanned<DeValue<'_>>, logits: usize) -> Result<Vec<String>> {
        let names = match value.get_ref() {
            DeValue::Array(_) => {
                self.list("classes", value)?.iter().map(|v| self.text_of("classes", v)).collect::<Result<Vec<_>>>()?
            }
            _ => Vec::new(),
        };
        let number = if names.is_empty() { self.whole("classes", value)? } else { names.len() };
        if number != logits {
            return self.fail(&value.span(), "classes", &format!("{number}, but the last layer gives {logits}"));
        }
        Ok(names)
    }

    /// Layers one after the other, behind those of `chain`.
    fn sequence(&mut self, path: &str, list: &Spanned<DeValue<'_>>, chain: &mut Chain) -> Result<()> {
        let items = self.list(path, list)?;
        if items.is_empty() {
            return self.fail(&list.span(), path, "there are none");
        }
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            if let DeValue::Table(entries) = item.get_ref()
                && entries.contains_key("repeat")
            {
                let table = Table { path: &path, span: item.span(), entries };
                self.repeat(&table, chain)?;
                continue;
            }
            self.layers += 1;
            if self.layers > MAX_LAYERS {
                return self.fail(&item.span(), &path, &format!("more than {MAX_LAYERS} layers"));
            }
            let layer = self.layer(&path, item, chain.left, chain.depth)?;
            chain.push(layer).map_err(|e| self.at(&item.span(), &path, e))?;
        }
        Ok(())
    }

    /// The same layers several times over, each time with another number in their names.
    fn repeat(&mut self, table: &Table<'_>, chain: &mut Chain) -> Result<()> {
        self.only(table, &["repeat", "from", "layers"])?;
        if self.number.is_some() {
            return self.fail(&table.span, table.path, "a repeat inside another");
        }
        let times = self.size(table, "repeat", None)?;
        let from = self.size(table, "from", Some(0))?;
        if !(1..=MAX_LAYERS).contains(&times) || from > MAX_LAYERS {
            return self.fail(
                &table.span,
                table.path,
                &format!("`repeat` must be 1 to {MAX_LAYERS}, `from` at most {MAX_LAYERS}"),
            );
        }
        let (_, list) = self.wanted(table, "layers")?;
        for number in from..from + times {
            self.number = Some(number);
            self.sequence(&format!("{}.layers", table.path), list, chain)?;
        }
        self.number = None;
        Ok(())
    }

    fn layer(&mut self, path: &str, item: &Spanned<DeValue<'_>>, x: Dims, depth: usize) -> Result<Layer> {
        let span = item.span();
        let entries = match item.get_ref() {
            DeValue::String(word) => {
                return match &**word {
                    "relu" => Ok(Layer::Relu),
                    "global_avg_pool" => Ok(Layer::GlobalAvgPool),
                    "flatten" => Ok(Layer::Flatten),
                    "dropout" => self.fail(&span, path, DROPOUT),
                    word => self.fail(&span, path, &format!("no layer {word:?}; there are {}", known())),
                };
            }
            DeValue::Table(entries) => entries,
            other => return self.fail(&span, path, &format!("{} is no layer", other.type_str())),
        };
        if entries.contains_key("dropout") {
            return self.fail(&span, path, DROPOUT);
        }
        let kinds: Vec<&str> = KINDS.into_iter().filter(|kind| entries.contains_key(*kind)).collect();
        let [kind] = kinds[..] else {
            let found = if kinds.is_empty() { "none".into() } else { kinds.join(" and ") };
            return self.fail(&span, path, &format!("a layer is told by one of {}; here is {found}", known()));
        };
        let table = Table { path, span, entries };
        match kind {
            "conv" => {
                self.only(&table, &["conv", "outputs", "kernel", "stride", "padding", "bias"])?;
                Ok(Layer::Conv2d(Conv2d {
                    name: self.layer_name(&table, kind)?,
                    inputs: x.c,
                    outputs: self.size(&table, "outputs", None)?,
                    kernel: self.size(&table, "kernel", None)?,
                    stride: self.size(&table, "stride", Some(1))?,
                    padding: self.size(&table, "padding", Some(0))?,
                    bias: self.bias(&table)?,
                }))
            }
            "batch_norm" => {
                self.only(&table, &[kind, "eps"])?;
                let name = self.layer_name(&table, kind)?;
                let eps = table.entries.get("eps").map(|value| self.number(&joined(path, "eps"), value)).transpose()?;
                Ok(Layer::BatchNorm { name, channels: x.c, eps: eps.unwrap_or(BATCH_NORM_EPS) })
            }
            "affine" => {
                self.only(&table, &[kind])?;
                Ok(Layer::Affine { name: self.layer_name(&table, kind)?, channels: x.c })
            }
            "linear" => {
                self.only(&table, &[kind, "outputs", "bias"])?;
                Ok(Layer::Linear(Linear {
                    name: self.layer_name(&table, kind)?,
                    inputs: x.len(),
                    outputs: self.size(&table, "outputs", None)?,
                    bias: self.bias(&table)?,
                }))
            }
            "max_pool" | "avg_pool" => {
                self.only(&table, &[kind, "stride", "padding"])?;
                let size = self.size(&table, kind, None)?;
                let (stride, padding) =
                    (self.size(&table, "stride", Some(size))?, self.size(&table, "padding", Some(0))?);
                Ok(match kind {
                    "max_pool" => Layer::MaxPool { size, stride, padding },
                    _ => Layer::AvgPool { size, stride, padding },
                })
            }
            _ => self.residual(&table, x, depth),
        }
    }

    /// Whether a layer has a bias: it does unless the file says that it does not.
    fn bias(&self, table: &Table<'_>) -> Result<bool> {
        match table.entries.get("bias").map(|value| (value.get_ref(), value.span())) {
            None => Ok(true),
            Some((DeValue::Boolean(bias), _)) => Ok(*bias),
            Some((_, span)) => self.fail(&span, table.path, "bias: true or false is expected"),
        }
    }

    fn residual(&mut self, table: &Table<'_>, x: Dims, depth: usize) -> Result<Layer> {
        self.only(table, &["residual", "shortcut"])?;
        if depth >= MAX_DEPTH {
            let detail = format!("more than {MAX_DEPTH} residual blocks inside one another");
            return self.fail(&table.span, table.path, &detail);
        }
        let mut body = Chain::new(x, depth + 1);
        let (_, list) = self.wanted(table, "residual")?;
        self.sequence(&format!("{}.residual", table.path), list, &mut body)?;
        let path = format!("{}.shortcut", table.path);
        let (span, value) = self.wanted(table, "shortcut")?;
        let shortcut = match value.get_ref() {
            DeValue::String(word) if &**word == "identity" => Shortcut::Identity,
            DeValue::Table(entries) => {
                let table = Table { path: &path, span, entries };
                self.only(&table, &["subsample"])?;
                Shortcut::Subsample { added: self.size(&table, "subsample", None)? }
            }
            DeValue::Array(_) => {
                let mut projection = Chain::new(x, depth + 1);
                self.sequence(&path, value, &mut projection)?;
                Shortcut::Projection(projection.layers)
            }
            _ => {
                let detail = "\"identity\", { subsample = CHANNELS } or a list of a convolution and its batch norm";
                return self.fail(&span, &path, &format!("{detail} is expected"));
            }
        };
        Ok(Layer::Residual { body: body.layers, shortcut })
    }

    /// The name of a layer, which no other has, with the number of the repeat in it.
    fn layer_name(&mut self, table: &Table<'_>, kind: &str) -> Result<String> {
        let (span, value) = self.wanted(table, kind)?;
        let name = self.text_of(table.path, value)?;
        let name = match self.number {
            Some(number) => name.replace(NUMBER, &number.to_string()),
            None => name,
        };
        let line = self.line(span.start);
        match self.names.insert(name.clone(), line) {
            Some(other) => self.fail(
                &span,
                table.path,
                &format!("`{name}`: in line {other} there is a layer of that name already"),
            ),
            None => Ok(name),
        }
    }

    /// Refuses keys that are not known: a misspelt one would be a default silently.
    fn only(&self, table: &Table<'_>, known: &[&str]) -> Result<()> {
        match table.entries.iter().find(|(key, _)| !known.contains(&&**key.get_ref())) {
            None => Ok(()),
            Some((key, _)) => {
                let detail = format!("no key {:?} here; there are {}", key.get_ref(), known.join(", "));
                self.fail(&key.span(), table.path, &detail)
            }
        }
    }

    fn wanted<'a>(&self, table: &Table<'a>, key: &str) -> Result<(Range<usize>, &'a Spanned<DeValue<'a>>)> {
        match table.entries.get(key) {
            Some(value) => Ok((value.span(), value)),
            None => self.fail(&table.span, table.path, &format!("`{key}` is missing")),
        }
    }

    /// A whole number of a layer.
    fn size(&self, table: &Table<'_>, key: &str, default: Option<usize>) -> Result<usize> {
        match (table.entries.get(key), default) {
            (Some(value), _) => self.whole(&joined(table.path, key), value),
            (None, Some(default)) => Ok(default),
            (None, None) => self.fail(&table.span, table.path, &format!("`{key}` is missing")),
        }
    }

    fn whole(&self, path: &str, value: &Spanned<DeValue<'_>>) -> Result<usize> {
        let number = value.get_ref().as_integer().and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
        match number {
            Some(number) => Ok(number as usize),
            None => self.fail(&value.span(), path, &format!("a whole number is expected, of at most {}", u32::MAX)),
        }
    }

    fn number(&self, path: &str, value: &Spanned<DeValue<'_>>) -> Result<f64> {
        let text = value.get_ref().as_float().map(DeFloat::as_str);
        let text = text.or_else(|| value.get_ref().as_integer().filter(|n| n.radix() == 10).map(DeInteger::as_str));
        match text.and_then(|text| text.parse().ok()).filter(|number: &f64| number.is_finite()) {
            Some(number) => Ok(number),
            None => self.fail(&value.span(), path, "a finite number is expected"),
        }
    }

    fn list<'a>(&self, path: &str, value: &'a Spanned<DeValue<'a>>) -> Result<&'a [Spanned<DeValue<'a>>]> {
        match value.get_ref().as_array() {
            Some(list) if list.len() <= MAX_LAYERS => Ok(list),
            Some(list) => self.fail(&value.span(), path, &format!("{} entries, more than {MAX_LAYERS}", list.len())),
            None => self.fail(&value.span(), path, "a list is expected"),
        }
    }

    /// A name: it ends up in messages.
    fn text_of(&self, path: &str, value: &Spanned<DeValue<'_>>) -> Result<String> {
        match value.get_ref().as_str() {
            Some(text) if !text.is_empty() && text.len() <= MAX_NAME && !text.contains(char::is_control) => {
                Ok(text.into())
            }
            _ => {
                let detail = format!("a name is expected, of 1 to {MAX_NAME} bytes without control characters");
                self.fail(&value.span(), path, &detail)
            }
        }
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }

    fn fail<T>(&self, span: &Range<usize>, path: &str, detail: &str) -> Result<T> {
        // What is missing from the whole file has no line.
        let line = if *span == (0..0) { String::new() } else { format!(": line {}", self.line(span.start)) };
        let path = if path.is_empty() { String::new() } else { format!(", {path}") };
        Err(Error::model(format!("{}{line}{path}", self.place), detail))
    }

    /// The same error with its place in the file.
    fn at(&self, span: &Range<usize>, path: &str, error: Error) -> Error {
        let path = if path.is_empty() { String::new() } else { format!(", {path}") };
        error.in_file(&format!("{}: line {}{path}", self.place, self.line(span.start)))
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

fn known() -> String {
    [&WORDS[..], &KINDS[..]].concat().join(", ")
}
