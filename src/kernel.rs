//! Kernels: the files in `shaders/`, the text that is made of them for one shape, pipelines, and [`Dispatch`], the noun
//! that plans are lists of.
//!
//! # Shader text
//! The files are WGSL with lines that begin with `//#`:
//!
//! | line | meaning |
//! |---|---|
//! | `//# kernel NAME [NAME…]` | what follows, up to the next such line, belongs to these entry points alone; `$entry` is the name. Text before the first such line belongs to all |
//! | `//# include FILE` | the text of `shaders/FILE.wgsl` |
//! | `//# enable NAME` | WGSL's `enable`, which stands before everything else |
//! | `//# NAME: activation read` or `write` | a binding; generates `NAME_at(i)` or `NAME_put(i, v)` over texels, from a buffer or a texture |
//! | `//# NAME: activation write pairs(EXTENT)` | the same; where EXTENT, that of the innermost dimension, is even, texels 2i and 2i + 1 are written together, by `NAME_put_pair(i, a, b)` |
//! | `//# NAME: texels read` | the same for texels that no batch changes |
//! | `//# NAME: storage read T`, `storage update T`, `uniform T` | a binding of that type |
//! | `//# NAME: weights T` | uniform where a slice of weights fits a uniform binding (constant `UNIFORM`), else storage |
//! | `//# for v in A..B` … `//# end` | the lines in between, once for each value; `$v` is the value, `$(2*v+1)` is arithmetic |
//! | `//# if A == B` (`<`, or a number) … `//# else` … `//# end` | one of the two |
//!
//! Bindings are numbered in the order in which they appear. Shapes enter as `const` lines; the batch size never does.

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Held, Pipeline, Storage};
use crate::tensor::{Allocated, Lent, Resource, Staged, texel_format};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

const FILES: &[(&str, &str)] = &[
    ("affine", include_str!("../shaders/affine.wgsl")),
    ("batch_norm", include_str!("../shaders/batch_norm.wgsl")),
    ("conv2d", include_str!("../shaders/conv2d.wgsl")),
    ("coop", include_str!("../shaders/coop.wgsl")),
    ("epilogue", include_str!("../shaders/epilogue.wgsl")),
    ("fab", include_str!("../shaders/fab.wgsl")),
    ("grey", include_str!("../shaders/grey.wgsl")),
    ("habits", include_str!("../shaders/habits.wgsl")),
    ("hand", include_str!("../shaders/hand.wgsl")),
    ("linear", include_str!("../shaders/linear.wgsl")),
    ("look", include_str!("../shaders/look.wgsl")),
    ("loss", include_str!("../shaders/loss.wgsl")),
    ("neighbours", include_str!("../shaders/neighbours.wgsl")),
    ("normal", include_str!("../shaders/normal.wgsl")),
    ("pad", include_str!("../shaders/pad.wgsl")),
    ("phase", include_str!("../shaders/phase.wgsl")),
    ("philox", include_str!("../shaders/philox.wgsl")),
    ("pointwise", include_str!("../shaders/pointwise.wgsl")),
    ("pool", include_str!("../shaders/pool.wgsl")),
    ("probe", include_str!("../shaders/probe.wgsl")),
    ("quantise", include_str!("../shaders/quantise.wgsl")),
    ("rules", include_str!("../shaders/rules.wgsl")),
    ("sample", include_str!("../shaders/sample.wgsl")),
    ("scale", include_str!("../shaders/scale.wgsl")),
    ("shared", include_str!("../shaders/shared.wgsl")),
    ("square", include_str!("../shaders/square.wgsl")),
    ("step", include_str!("../shaders/step.wgsl")),
    ("store", include_str!("../shaders/store.wgsl")),
    ("subgroup", include_str!("../shaders/subgroup.wgsl")),
    ("sums", include_str!("../shaders/sums.wgsl")),
    ("values", include_str!("../shaders/values.wgsl")),
    ("winograd", include_str!("../shaders/winograd.wgsl")),
    ("words", include_str!("../shaders/words.wgsl")),
    ("workgroup", include_str!("../shaders/workgroup.wgsl")),
];

/// One kernel for one shape: entry point, constants, and where activations lie. Equal kernels share a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// `<op>_<pass>[_<variant>]`
    pub entry: &'static str,
    /// Become `const NAME: u32 = …;`. Negative numbers are two's complement; text that uses one takes `i32(NAME)`.
    pub consts: Vec<(&'static str, u32)>,
    /// Where activations lie.
    pub storage: Storage,
    /// Bindings whose texels are four f16; the kernel's own text sees f32 all the same.
    pub halves: Vec<&'static str>,
    /// Whether texels are stored two words at a time, which takes a device with u64.
    pub wide: bool,
}

/// Rounds of all loops of one invocation together. Some software adapters leave a loop after 65,535, and say nothing.
pub(crate) const MAX_ROUNDS: u64 = 32_000;

/// The largest batch whose samples have anything in common: kernels that look at all of them go round for each.
pub(crate) const MAX_BATCH: u64 = 1 << 16;

/// The largest f16.
const HALF_MOST: f32 = 65_504.0;

/// How a kernel sees a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Activation, read.
    ActivationRead,
    /// Activation, written: to a buffer, wherever it lies (`tensor.rs`).
    ActivationWrite,
    /// Storage buffer, read only.
    StorageRead,
    /// Storage buffer, read and written.
    StorageUpdate,
    /// Uniform buffer.
    Uniform,
}

impl Access {
    fn binding_type(self, storage: Storage, is_half: bool) -> wgpu::BindingType {
        let buffer = |ty| wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
        match (self, storage) {
            (Access::Uniform, _) => buffer(wgpu::BufferBindingType::Uniform),
            // Storage textures, though nothing is stored: they have no levels of detail, which some adapters compute for each load.
            (Access::ActivationRead, Storage::Texture) => wgpu::BindingType::StorageTexture {
                access: wgpu::StorageTextureAccess::ReadOnly,
                format: texel_format(is_half),
                view_dimension: wgpu::TextureViewDimension::D2,
            },
            (Access::StorageRead | Access::ActivationRead, _) => {
                buffer(wgpu::BufferBindingType::Storage { read_only: true })
            }
            (Access::StorageUpdate | Access::ActivationWrite, _) => {
                buffer(wgpu::BufferBindingType::Storage { read_only: false })
            }
        }
    }
}

/// Generated shader text and what it binds, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// WGSL.
    pub text: String,
    /// Names and access; the place is the binding number, the group is 0.
    pub bindings: Vec<(String, Access)>,
}

/// Extent of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// x and y workgroups for each sample; z is the sample.
    PerSample(u32, u32),
    /// `items` invocations for each group of `samples`, one after the other along x, `size` in a workgroup; `y` workgroups.
    Flat {
        /// Invocations for a group.
        items: u32,
        /// Samples in a group.
        samples: u32,
        /// Invocations in a workgroup.
        size: u32,
        /// Workgroups along y.
        y: u32,
    },
    /// `part` samples at a time: what is handed on from one dispatch to the next is of a part, and lies in memory that the next part
    /// gets, so that caches hold it. The length of `health` tells a kernel where its part ends. The items of all samples of a part
    /// lie side by side along x, `each` of them for an invocation.
    Parts {
        /// Samples in a part.
        part: u32,
        /// Items of a sample.
        items: u32,
        /// Items of an invocation.
        each: u32,
        /// Invocations in a workgroup.
        size: u32,
        /// Workgroups along y.
        y: u32,
    },
    /// So many workgroups, whatever the batch.
    Once(u32),
}

impl Grid {
    /// Parts that a batch of `n` is done in, and the samples of each.
    pub fn parts(self, n: u32) -> impl Iterator<Item = Range<u32>> {
        let size = if let Grid::Parts { part, .. } = self { part } else { n.max(1) };
        (0..n.div_ceil(size)).map(move |i| i * size..n.min((i + 1) * size))
    }

    /// Workgroups for a batch of `n`, or for a part of so many samples.
    pub fn workgroups(self, n: u32) -> [u32; 3] {
        match self {
            Grid::PerSample(x, y) => [x, y, n],
            Grid::Flat { items, samples, size, y } => [(n.div_ceil(samples) * items).div_ceil(size), y, 1],
            Grid::Parts { items, each, size, y, .. } => [(n * items).div_ceil(each * size), y, 1],
            Grid::Once(x) => [x, 1, 1],
        }
    }

    /// The largest batch that `limit` workgroups in a dimension allow.
    pub fn most(self, limit: u64) -> u64 {
        match self {
            Grid::PerSample(..) => limit,
            Grid::Flat { items, samples, size, .. } => limit * u64::from(size) / u64::from(items) * u64::from(samples),
            Grid::Parts { part, items, each, size, .. } => {
                let most = limit * u64::from(each * size) / u64::from(items);
                if most < u64::from(part) { most } else { u64::MAX }
            }
            Grid::Once(_) => u64::MAX,
        }
    }
}

/// Pipeline, bindings and grid of one piece of work, as data: what a plan is a list of.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// What runs.
    pub kernel: Kernel,
    /// Which layer it is for.
    pub layer: String,
    /// Names in the shader, and resources of the plan.
    pub bindings: Vec<(&'static str, usize)>,
    /// How often.
    pub grid: Grid,
    /// Floating-point operations for one sample (a multiply-add counts two).
    pub flops: u64,
}

/// A dispatch that needs only memory to be bound.
#[derive(Debug)]
pub(crate) struct Ready {
    pipeline: Arc<Pipeline>,
    bindings: Vec<(String, Access)>,
}

/// What a run of a dispatch needs on the device.
#[derive(Debug)]
pub(crate) struct Bound {
    pipeline: Arc<Pipeline>,
    /// Bindings and workgroups of each part of the batch.
    parts: Vec<(Held<wgpu::BindGroup>, [u32; 3])>,
    /// To where the texels go that it writes.
    staged: Option<Held<Staged>>,
    /// Whether what it writes is of a part, for the dispatch behind it.
    hands_on: bool,
}

impl Kernel {
    /// A kernel whose texels are all of f32.
    pub fn new(entry: &'static str, consts: Vec<(&'static str, u32)>, storage: Storage) -> Self {
        Kernel { entry, consts, storage, halves: Vec::new(), wide: false }
    }

    /// Every entry point there is.
    pub fn entries() -> Vec<&'static str> {
        let lines = FILES.iter().flat_map(|(_, text)| text.lines());
        let names = lines.filter_map(|l| l.strip_prefix("//# kernel ")).flat_map(str::split_whitespace);
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    fn types(&self, source: &Source) -> Vec<wgpu::BindingType> {
        let is_half = |name: &String| self.halves.iter().any(|half| half == name);
        source.bindings.iter().map(|(name, access)| access.binding_type(self.storage, is_half(name))).collect()
    }

    /// The value of a constant, where there is one of that name.
    pub fn constant(&self, name: &str) -> Option<u32> {
        self.consts.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// Bytes of a sample that it writes to `y`, where its constants tell.
    fn writes(&self, name: &str) -> Option<u64> {
        if name != "y" {
            return None;
        }
        let [blocks, h, w] = ["OC4", "OH", "OW"].map(|side| self.constant(side).map(u64::from));
        Some(blocks? * h? * w? * if self.halves.contains(&name) { 8 } else { 16 })
    }

    /// Rounds that the loops of one invocation take together, those within others included.
    pub fn rounds(&self) -> u64 {
        let c = |name| u64::from(self.constant(name).unwrap_or(0));
        match self.entry {
            "conv2d_forward" | "conv2d_input_grad" => c("IC4") * (1 + c("R") * (1 + c("S") * 5)) + 18,
            "conv2d_forward_tiled" | "conv2d_input_grad_tiled" => c("IC4") * c("R"),
            "conv2d_input_grad_parity" => c("IC4"),
            "conv2d_forward_broadcast" | "conv2d_input_grad_broadcast" => c("IC4") * c("R"),
            "conv2d_input_grad_parity_broadcast" => c("IC4") * c("R").div_ceil(2),
            // Columns, rows and places of a block; what leaves at the end.
            "conv2d_forward_winograd" | "conv2d_input_grad_winograd" => c("IC4") * (1 + 6 + 6 + 72) + 72 + 28,
            "conv2d_forward_winograd_products" | "conv2d_input_grad_winograd_products" => c("IC4"),
            "conv2d_forward_coop" | "conv2d_input_grad_coop" => {
                let steps = c("ICT") * c("R").div_ceil(c("STEP")) * c("S").div_ceil(c("STEP"));
                steps.div_ceil(c("LS")) + c("WORDS").div_ceil(c("WG")) + c("STEP")
            }
            "linear_forward_broadcast" | "linear_input_grad_broadcast" => c("L"),
            "linear_forward" | "linear_input_grad" => c("L"),
            "conv2d_forward_workgroup"
            | "conv2d_input_grad_workgroup"
            | "linear_forward_workgroup"
            | "linear_input_grad_workgroup" => {
                let slabs = (c("IC4") * c("R").div_ceil(c("STEP"))).div_ceil(c("LS")) + 1;
                slabs * (1 + c("LS") * (1 + c("WIDEST").div_ceil(c("TAPS")))) + 2 * c("WORDS").div_ceil(c("WG")) + 4
            }
            "scale_input_grad" => 2 * c("K").div_ceil(4),
            "cross_entropy_forward" => 2 * c("K") + c("K").div_ceil(4),
            "margin_forward" | "dlr_forward" | "difference_forward" => c("K") + c("K").div_ceil(4),
            // Rounds over the image, halvings of the sums, and those of the random numbers.
            "momentum_step" | "l2_step" | "apgd_step" => 6 * c("LEN").div_ceil(c("WG").max(1)) + 64,
            "fab_step" => 20 * c("LEN").div_ceil(c("WG").max(1)) + 256,
            "fab_look" => 3 * c("LEN").div_ceil(c("WG").max(1)) + 16,
            "quantise_l2" => 10 * (c("LEN").div_ceil(c("WG").max(1)) + 9),
            "ball_start" => 24 * c("LEN").div_ceil(c("WG").max(1)) + 32,
            "square_start" if c("NORM") == 0 => (c("C") * c("W")).div_ceil(c("WG").max(1)) * (c("H") + 11) + 16,
            "square_start" => c("TILES") * (11 + c("C") * (11 + (c("TILE") * c("TILE")).div_ceil(c("WG").max(1)))) + 16,
            "square_step" if c("NORM") == 1 => c("C") * (7 * (c("H") * c("W")).div_ceil(c("WG").max(1)) + 30) + 80,
            "square_step" => c("LEN").div_ceil(c("WG").max(1)) + 12 * (c("C") / 128 + 1) + 10,
            "batch_norm_forward_sample" | "batch_norm_input_grad_sample" => {
                2 * c("PIXELS").div_ceil(c("WG").max(1)) + 32
            }
            "batch_norm_forward_batch" | "batch_norm_input_grad_batch" => 2 * MAX_BATCH.div_ceil(c("WG").max(1)) + 32,
            "global_avg_pool_forward" => c("IH") * c("IW"),
            "max_pool_forward" | "max_pool_input_grad" | "avg_pool_forward" | "avg_pool_input_grad" => {
                c("SIZE") * (1 + c("SIZE"))
            }
            "shared_sum" => c("MOST"),
            "probe_fma" => c("ROUNDS"),
            _ => 10,
        }
    }

    /// The WGSL of this kernel.
    ///
    /// # Errors
    /// [`Error::Internal`] when the file or the constants are at fault.
    pub fn source(&self) -> Result<Source> {
        let declares = |text: &str| {
            text.lines().any(|l| {
                l.strip_prefix("//# kernel ").is_some_and(|names| names.split_whitespace().any(|n| n == self.entry))
            })
        };
        let (_, file) = FILES
            .iter()
            .find(|(_, text)| declares(text))
            .ok_or_else(|| Error::Internal(format!("no kernel {}", self.entry)))?;
        let mut lines = Vec::new();
        let mut ours = true;
        for line in file.lines() {
            if let Some(names) = line.strip_prefix("//# kernel ") {
                ours = names.split_whitespace().any(|n| n == self.entry);
            } else if !ours {
                continue;
            } else if let Some(name) = line.strip_prefix("//# include ") {
                let (_, text) = FILES
                    .iter()
                    .find(|(f, _)| *f == name.trim())
                    .ok_or_else(|| Error::Internal(format!("no shader file {name}")))?;
                lines.extend(text.lines());
            } else {
                lines.push(line);
            }
        }
        let mut out = Expander { kernel: self, text: String::new(), bindings: Vec::new(), vars: Vec::new() };
        for name in lines.iter().filter_map(|l| l.strip_prefix("//# enable ")) {
            let _ = writeln!(out.text, "enable {name};");
        }
        for (name, value) in &self.consts {
            let _ = writeln!(out.text, "const {name}: u32 = {value}u;");
        }
        if !self.halves.is_empty() {
            out.text.push_str(include_str!("../shaders/half.wgsl"));
        }
        if self.wide {
            out.text.push_str(include_str!("../shaders/wide.wgsl"));
        }
        let rest = out.block(&lines, true)?;
        if !rest.is_empty() {
            return out.fail(rest[0]);
        }
        Ok(Source { text: out.text, bindings: out.bindings })
    }
}

/// Turns lines with directives into WGSL.
struct Expander<'a> {
    kernel: &'a Kernel,
    text: String,
    bindings: Vec<(String, Access)>,
    vars: Vec<(char, i64)>,
}

impl Expander<'_> {
    fn fail<T>(&self, line: &str) -> Result<T> {
        Err(Error::Internal(format!("shader text of {}: {line}", self.kernel.entry)))
    }

    /// Expands lines up to the `//# end` or `//# else` that closes this block, and returns what is left from there on.
    fn block<'l>(&mut self, mut lines: &'l [&'l str], emit: bool) -> Result<&'l [&'l str]> {
        while let Some((&line, rest)) = lines.split_first() {
            let Some(directive) = line.trim_start().strip_prefix("//# ") else {
                if emit {
                    let expanded = self.substitute(line)?;
                    self.text.push_str(&expanded);
                    self.text.push('\n');
                }
                lines = rest;
                continue;
            };
            let words: Vec<&str> = directive.split_whitespace().collect();
            lines = match words[..] {
                ["end" | "else"] => return Ok(lines),
                ["if", ..] => {
                    let yes = emit && self.condition(&words[1..].join(" "))?;
                    let mut after = self.block(rest, yes)?;
                    if after.first().is_some_and(|l| l.trim() == "//# else") {
                        after = self.block(&after[1..], emit && !yes)?;
                    }
                    self.close(after, line)?
                }
                ["for", var, "in", ..] => {
                    let range = words[3..].join("");
                    let (Some((from, to)), Some(name)) = (range.split_once(".."), var.chars().next()) else {
                        return self.fail(line);
                    };
                    let after = self.block(rest, false)?;
                    if emit {
                        for value in self.evaluate(from)?..self.evaluate(to)? {
                            self.vars.push((name, value));
                            self.block(rest, true)?;
                            self.vars.pop();
                        }
                    }
                    self.close(after, line)?
                }
                ["enable", _] => rest,
                [name, ..] if name.ends_with(':') => {
                    if emit {
                        self.binding(name.trim_end_matches(':'), &words[1..])?;
                    }
                    rest
                }
                _ => return self.fail(line),
            };
        }
        Ok(lines)
    }

    fn close<'l>(&self, lines: &'l [&'l str], opened: &str) -> Result<&'l [&'l str]> {
        match lines.split_first() {
            Some((end, rest)) if end.trim() == "//# end" => Ok(rest),
            _ => self.fail(opened),
        }
    }

    fn binding(&mut self, name: &str, words: &[&str]) -> Result<()> {
        let k = self.bindings.len();
        let at = format!("@group(0) @binding({k})");
        let texture = self.kernel.storage == Storage::Texture;
        let half = self.kernel.halves.contains(&name);
        let (format, texel) = if half { ("rgba16float", "vec2<u32>") } else { ("rgba32float", "vec4<f32>") };
        // Names of the conversions, where there are any.
        let [packed, unpacked] = if half { ["to_half", "from_half"] } else { [""; 2] };
        let (access, text) = match words {
            ["activation" | "texels", "read", ..] if texture => (
                Access::ActivationRead,
                format!(
                    "{at} var {name}_tex: texture_storage_2d<{format}, read>;\n\
                     fn {name}_at(i: u32) -> vec4<f32> {{ return textureLoad({name}_tex, vec2<u32>(i & 2047u, i >> 11u)); }}"
                ),
            ),
            ["activation" | "texels", "read", ..] => (
                Access::ActivationRead,
                format!(
                    "{at} var<storage, read> {name}_buf: array<{texel}>;\n\
                     fn {name}_at(i: u32) -> vec4<f32> {{ return {unpacked}({name}_buf[i]); }}"
                ),
            ),
            ["activation", "write", more @ ..] => {
                let extent = more.first().and_then(|word| word.strip_prefix("pairs"));
                let pairs = extent.map(|extent| self.evaluate(extent)).transpose()?.is_some_and(|n| n % 2 == 0);
                let (put, values): (_, &[&str]) = match pairs {
                    true => ("put_pair(i: u32, a: vec4<f32>, b: vec4<f32>)", &["a", "b"]),
                    false => ("put(i: u32, v: vec4<f32>)", &["v"]),
                };
                let (element, body) = if self.kernel.wide {
                    let wide = |v: &&str| match half {
                        true => format!("wide(to_half({v}))"),
                        false => format!("wide(bitcast<vec2<u32>>({v}.xy)), wide(bitcast<vec2<u32>>({v}.zw))"),
                    };
                    let element = match (half, pairs) {
                        (true, false) => "u64",
                        (true, true) | (false, false) => "vec2<u64>",
                        (false, true) => "vec4<u64>",
                    };
                    let words: Vec<String> = values.iter().map(wide).collect();
                    (element, format!("{name}_buf[i] = {element}({});", words.join(", ")))
                } else {
                    let index = |k| if pairs { format!("2u * i + {k}u") } else { "i".into() };
                    let one = |(k, v)| format!("{name}_buf[{}] = {packed}({v});", index(k));
                    (texel, values.iter().enumerate().map(one).collect::<Vec<_>>().join(" "))
                };
                (
                    Access::ActivationWrite,
                    format!(
                        "{at} var<storage, read_write> {name}_buf: array<{element}>;\n\
                         fn {name}_{put} {{ {body} }}"
                    ),
                )
            }
            ["storage", "read", ty, ..] => (Access::StorageRead, format!("{at} var<storage, read> {name}: {ty};")),
            ["storage", "update", ty, ..] => {
                (Access::StorageUpdate, format!("{at} var<storage, read_write> {name}: {ty};"))
            }
            ["weights", ty, ..] if self.evaluate("UNIFORM")? == 0 => {
                (Access::StorageRead, format!("{at} var<storage, read> {name}: {ty};"))
            }
            ["uniform" | "weights", ty, ..] => (Access::Uniform, format!("{at} var<uniform> {name}: {ty};")),
            _ => return self.fail(name),
        };
        if access == Access::ActivationWrite {
            let most = if half { HALF_MOST } else { f32::MAX };
            let _ = writeln!(self.text, "const {}_MOST: u32 = {}u;", name.to_uppercase(), most.to_bits());
        }
        self.bindings.push((name.to_string(), access));
        self.text.push_str(&text);
        self.text.push('\n');
        Ok(())
    }

    /// `$v`, `$(expression)`, `$entry`.
    fn substitute(&self, line: &str) -> Result<String> {
        let mut out = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix("entry") {
                out.push_str(self.kernel.entry);
                rest = tail;
            } else if rest.starts_with('(') {
                let mut depth = 0_i32;
                let close = rest.char_indices().find(|(_, c)| {
                    depth += i32::from(*c == '(') - i32::from(*c == ')');
                    depth == 0
                });
                let Some((close, _)) = close else { return self.fail(line) };
                let _ = write!(out, "{}", self.evaluate(&rest[1..close])?);
                rest = &rest[close + 1..];
            } else {
                let _ = write!(out, "{}", self.evaluate(&rest[..1])?);
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn condition(&self, text: &str) -> Result<bool> {
        for (sign, holds) in
            [("==", i64::eq as fn(&i64, &i64) -> bool), ("!=", i64::ne), (">=", i64::ge), ("<", i64::lt)]
        {
            if let Some((a, b)) = text.split_once(sign) {
                return Ok(holds(&self.evaluate(a)?, &self.evaluate(b)?));
            }
        }
        Ok(self.evaluate(text)? != 0)
    }

    /// Whole-number arithmetic over constants and loop variables: + - * / % and parentheses.
    fn evaluate(&self, text: &str) -> Result<i64> {
        let compact: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        let mut at = 0;
        match self.sum(&compact, &mut at) {
            Some(value) if at == compact.len() => Ok(value),
            _ => self.fail(text),
        }
    }

    fn sum(&self, t: &[char], at: &mut usize) -> Option<i64> {
        let mut value = self.product(t, at)?;
        while let Some(op @ ('+' | '-')) = t.get(*at) {
            *at += 1;
            let right = self.product(t, at)?;
            value = if *op == '+' { value + right } else { value - right };
        }
        Some(value)
    }

    fn product(&self, t: &[char], at: &mut usize) -> Option<i64> {
        let mut value = self.atom(t, at)?;
        while let Some(op @ ('*' | '/' | '%')) = t.get(*at) {
            *at += 1;
            let right = self.atom(t, at)?;
            value = match op {
                '*' => value * right,
                '/' => value.checked_div(right)?,
                _ => value.checked_rem(right)?,
            };
        }
        Some(value)
    }

    fn atom(&self, t: &[char], at: &mut usize) -> Option<i64> {
        if t.get(*at) == Some(&'(') {
            *at += 1;
            let value = self.sum(t, at)?;
            (t.get(*at) == Some(&')')).then(|| *at += 1)?;
            return Some(value);
        }
        let word: String = t[*at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
        *at += word.len();
        if let Ok(number) = word.parse() {
            return Some(number);
        }
        let mut letters = word.chars();
        if let (Some(c), None) = (letters.next(), letters.next())
            && let Some((_, value)) = self.vars.iter().rev().find(|(v, _)| *v == c)
        {
            return Some(*value);
        }
        self.kernel.consts.iter().find(|(name, _)| *name == word).map(|(_, v)| i64::from(v.cast_signed()))
    }
}

impl Dispatch {
    /// Binds this dispatch to memory for a batch of `n`, which `lent` gives for each resource.
    pub(crate) fn bind<'a>(&self, gpu: &Gpu, n: u32, lent: impl Fn(usize) -> Lent<'a>) -> Result<Bound> {
        self.bind_ready(gpu, n, &self.ready(gpu, None)?, lent)
    }

    /// What binding this dispatch takes, however often; with a pipeline of other text ([`Dispatch::pipeline_of`]) where one
    /// is given.
    pub(crate) fn ready(&self, gpu: &Gpu, other: Option<Arc<Pipeline>>) -> Result<Ready> {
        let source = self.kernel.source()?;
        let types = self.kernel.types(&source);
        let make = || gpu.pipeline(format!("{:?}", self.kernel), || Ok((self.kernel.entry, source.text, types)));
        Ok(Ready { pipeline: other.map_or_else(make, Ok)?, bindings: source.bindings })
    }

    /// Binds this dispatch, once that it is ready, to memory.
    pub(crate) fn bind_ready<'a>(
        &self,
        gpu: &Gpu,
        n: u32,
        ready: &Ready,
        lent: impl Fn(usize) -> Lent<'a>,
    ) -> Result<Bound> {
        let fail = |what: String| Error::Internal(format!("{}: {what}", self.kernel.entry));
        let mut bound = Vec::with_capacity(ready.bindings.len());
        let (mut staged, mut hands_on) = (None, false);
        for (name, access) in &ready.bindings {
            let Some((_, id)) = self.bindings.iter().find(|(given, _)| given == name) else {
                return Err(fail(format!("nothing is bound to {name}")));
            };
            let Lent { mut memory, bytes, stage, is_passing } = lent(*id);
            hands_on |= is_passing && *access == Access::ActivationWrite;
            if let (Access::ActivationWrite, Allocated::Texture(texels)) = (access, memory) {
                let stage = stage.ok_or_else(|| fail(format!("no stage for {name}")))?;
                // What it writes may be smaller than the largest that ever lies there.
                let bytes = self.kernel.writes(name).map_or(bytes, |each| bytes.min(each * u64::from(n)));
                staged = Some(gpu.hold(Staged::new(stage, texels, bytes)));
                memory = stage;
            }
            bound.push((name, memory, bytes));
        }
        let part = |part: Range<u32>| {
            let mut entries = Vec::with_capacity(bound.len());
            for (binding, (name, memory, bytes)) in (0..).zip(&bound) {
                let bytes = if *name == "health" { 4 * u64::from(part.end) } else { *bytes };
                entries.push(wgpu::BindGroupEntry { binding, resource: memory.binding(bytes) });
            }
            let group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(self.kernel.entry),
                layout: &ready.pipeline.layout,
                entries: &entries,
            });
            (gpu.hold(group), self.grid.workgroups(part.len() as u32))
        };
        Ok(Bound { pipeline: ready.pipeline.clone(), parts: self.grid.parts(n).map(part).collect(), staged, hands_on })
    }

    /// A pipeline of someone else's text that takes the bindings of this dispatch.
    pub(crate) fn pipeline_of(&self, gpu: &Gpu, entry: &str, text: &str) -> Result<Arc<Pipeline>> {
        let types = self.kernel.types(&self.kernel.source()?);
        gpu.scope(entry, || Ok(Arc::new(Pipeline::new(gpu, None, entry, text.into(), &types))))
    }
}

impl Bound {
    /// Whether a copy follows it.
    pub fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// How often it runs.
    pub fn runs(&self) -> usize {
        self.parts.len()
    }
}

/// Records dispatches, and behind each the copy of what it leaves on the stage. Those that hand on a part of the batch wait for the
/// one that ends with it, and are recorded part by part.
pub(crate) struct Recorder<'r> {
    encoder: &'r mut wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    waiting: Vec<&'r Bound>,
    /// Timestamps for the next pass.
    stamps: Option<wgpu::ComputePassTimestampWrites<'r>>,
}

impl<'r> Recorder<'r> {
    /// One whose first pass writes `stamps`.
    pub fn new(encoder: &'r mut wgpu::CommandEncoder, stamps: Option<wgpu::ComputePassTimestampWrites<'r>>) -> Self {
        Recorder { encoder, pass: None, waiting: Vec::new(), stamps }
    }

    /// Records one dispatch.
    pub fn dispatch(&mut self, bound: &'r Bound) {
        self.waiting.push(bound);
        if !bound.hands_on {
            self.parts();
        }
    }

    /// Whether a dispatch waits for others.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records what waits, one part of the batch after the other.
    pub fn parts(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let parts = waiting.iter().map(|bound| bound.parts.len()).max().unwrap_or(0);
        for part in 0..parts {
            for bound in &waiting {
                self.part(bound, part);
            }
        }
    }

    fn part(&mut self, bound: &Bound, part: usize) {
        let Some((group, [x, y, z])) = bound.parts.get(part) else { return };
        let mut pass = self.pass.take().unwrap_or_else(|| self.begin());
        pass.set_pipeline(&bound.pipeline.pipeline);
        pass.set_bind_group(0, &**group, &[]);
        pass.dispatch_workgroups(*x, *y, *z);
        match &bound.staged {
            // What is of the whole batch is copied when it is whole.
            Some(staged) if bound.hands_on || part + 1 == bound.parts.len() => {
                drop(pass);
                staged.record(self.encoder);
            }
            _ => self.pass = Some(pass),
        }
    }

    fn begin(&mut self) -> wgpu::ComputePass<'static> {
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: self.stamps.take() };
        self.encoder.begin_compute_pass(&descriptor).forget_lifetime()
    }

    /// Ends it; where there are `stamps`, with a pass of its own for them.
    pub fn end(mut self, stamps: Option<wgpu::ComputePassTimestampWrites<'r>>) {
        self.parts();
        self.pass = None;
        if stamps.is_some() {
            self.stamps = stamps;
            self.begin();
        }
    }
}

impl std::fmt::Display for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = if let Grid::Parts { part, .. } = self.grid { format!(" {part} at a time") } else { String::new() };
        let grid = match self.grid {
            Grid::PerSample(x, y) => format!("{x}×{y}×N"),
            Grid::Once(x) => format!("{x}"),
            Grid::Flat { items: 1, samples: 1, size, y: 1 } => format!("⌈N/{size}⌉"),
            Grid::Flat { items, samples: 1, size, y } => format!("⌈{items}·N/{size}⌉×{y}"),
            Grid::Flat { items, samples, size, y } => format!("⌈{items}·⌈N/{samples}⌉/{size}⌉×{y}"),
            Grid::Parts { items, each, size, y, .. } => format!("⌈{items}·N/{}⌉×{y}", each * size),
        };
        write!(f, "{:<32} {:<18} {grid:<10}{parts}", self.kernel.entry, self.layer)
    }
}

/// Runs one dispatch on its own for a batch of `n`, `data` being written to buffers first, and reads one back: for tests and
/// benches of single kernels. Resources that `data` does not name are zero. Activations cannot be written or read here
/// where they lie in textures.
///
/// # Errors
/// Those of the device.
pub fn run_alone(
    gpu: &Gpu,
    dispatch: &Dispatch,
    resources: &[Resource],
    n: u32,
    data: &[(usize, Vec<u8>)],
    read: usize,
) -> Result<Vec<u8>> {
    let storage = dispatch.kernel.storage;
    let memory = gpu.scope("memory for one kernel", || {
        resources.iter().map(|r| Allocated::new(gpu, r, u64::from(n), storage)).collect::<Result<Vec<_>>>()
    })?;
    let lent = |id: usize| Lent::new(&resources[id], n.into(), &memory[id], None);
    gpu.scope(dispatch.kernel.entry, || {
        for (id, bytes) in data {
            gpu.queue().write_buffer(memory[*id].buffer(), 0, bytes);
        }
        let bound = dispatch.bind(gpu, n, lent)?;
        gpu.wait(submit(gpu, [&bound])?)
    })?;
    Ok(gpu.read(&[(memory[read].buffer(), lent(read).bytes)])?.remove(0))
}

/// Records and submits dispatches.
pub(crate) fn submit<'b>(gpu: &Gpu, all: impl IntoIterator<Item = &'b Bound>) -> Result<wgpu::SubmissionIndex> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut recorder = Recorder::new(&mut encoder, None);
    all.into_iter().for_each(|bound| recorder.dispatch(bound));
    recorder.end(None);
    gpu.submit(encoder)
}

/// A number that changes when the text of any shader does.
pub fn fingerprint() -> u64 {
    FILES.iter().fold(0, |sum, (name, text)| sum ^ hash(name.as_bytes()).rotate_left(1) ^ hash(text.as_bytes()))
}

/// FNV-1a: for names of files, not for secrets.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
