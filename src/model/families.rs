//! Families of networks that other people's checkpoints hold: recognised by the names and shapes of their tensors, and
//! built under these very names, so that nothing has to be renamed. Depth, widths and the number of classes are read
//! from shapes; what shapes do not tell (strides, pools, the side of an image) is what the layout is known for.
//!
//! A guess need not be right: whoever asks compares all names and shapes with those the guess asks for, and refuses by
//! name.

use super::networks::{halve, linear, norm};
use super::{Arch, Conv2d, Dims, Layer, Shortcut};
use std::collections::BTreeMap;

/// Names of tensors and their shapes, outermost axis first.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Names that [`families`] gives; `#` stands for a number.
pub const FAMILIES: [&str; 10] = [
    "resnet#",
    "resnet#-b",
    "preact-resnet#",
    "wrn-#-#",
    "torchvision-resnet#",
    "vgg#",
    "vgg#-bn",
    "wong-cnn",
    "madry-cnn",
    "trades-cnn",
];

/// Whether [`families`] may give a network of that name.
pub fn is_family(name: &str) -> bool {
    let mut pattern = String::new();
    for c in name.chars() {
        match c {
            '0'..='9' if pattern.ends_with('#') => {}
            '0'..='9' => pattern.push('#'),
            _ => pattern.push(c),
        }
    }
    FAMILIES.contains(&pattern.as_str())
}

/// The networks that these tensors may be, one or two of them; none where no tensor tells.
pub fn families(shapes: &Shapes) -> Vec<Arch> {
    let t = Tensors(shapes);
    [residual(t), wide(t), vgg(t), wong(t), madry(t), trades(t)].into_iter().flatten().collect()
}

/// Gives the last layer as many outputs as its tensor has rows.
pub fn with_classes_of(mut arch: Arch, shapes: &Shapes) -> Arch {
    if let Some(Layer::Linear(last)) = arch.layers.last_mut()
        && let Some(&[classes, _]) = shapes.get(&format!("{}.weight", last.name)).map(Vec::as_slice)
    {
        last.outputs = classes;
    }
    arch
}

#[derive(Clone, Copy)]
struct Tensors<'a>(&'a Shapes);

impl Tensors<'_> {
    fn has(self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Outputs of a layer: the first side of its weights.
    fn outputs(self, layer: &str) -> Option<usize> {
        self.side(layer, 0)
    }

    fn side(self, layer: &str, axis: usize) -> Option<usize> {
        self.0.get(&format!("{layer}.weight"))?.get(axis).copied()
    }
}

fn conv(name: &str, (inputs, outputs): (usize, usize), kernel: usize, stride: usize, padding: usize) -> Layer {
    Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding, bias: false })
}

fn conv_with_bias(name: &str, io: (usize, usize), kernel: usize, stride: usize, padding: usize) -> Layer {
    match conv(name, io, kernel, stride, padding) {
        Layer::Conv2d(conv) => Layer::Conv2d(Conv2d { bias: true, ..conv }),
        other => other,
    }
}

/// What the parts of a residual network are called, and what goes with these names.
struct Names {
    /// What stands around the number of a stage, before that of a block.
    stage: (&'static str, &'static str),
    /// The projection's convolution, and its batch norm.
    projection: (&'static str, &'static str),
    /// Batch norm behind the last block, where activations come first.
    last_norm: &'static str,
    last: &'static str,
}

impl Names {
    fn block(&self, stage: usize, block: usize) -> String {
        format!("{}{}{}.{block}", self.stage.0, stage + 1, self.stage.1)
    }
}

const CIFAR: Names =
    Names { stage: ("layer", ""), projection: ("shortcut.0", "shortcut.1"), last_norm: "bn", last: "linear" };
const TORCHVISION: Names =
    Names { stage: ("layer", ""), projection: ("downsample.0", "downsample.1"), last_norm: "bn", last: "fc" };
const WIDE: Names =
    Names { stage: ("block", ".layer"), projection: ("convShortcut", ""), last_norm: "bn1", last: "fc" };

/// What stands before the first block.
#[derive(Clone, Copy, PartialEq)]
enum Stem {
    /// A 3×3 convolution: images of 32×32.
    Small,
    /// A 7×7 convolution of stride 2 and a max-pool 3×3 of stride 2: images of 224×224.
    Large,
}

#[derive(Clone, Copy)]
struct Stage {
    blocks: usize,
    /// Channels between the convolutions of a block.
    inner: usize,
    outputs: usize,
}

/// A residual network but for its name.
struct Residual<'n> {
    names: &'n Names,
    stem: Stem,
    /// Channels of an image, and behind the stem.
    channels: (usize, usize),
    stages: Vec<Stage>,
    /// In a block: two, or three of which the outer ones are 1×1.
    convolutions: usize,
    /// Whether batch norm and ReLU come before a convolution, not behind it.
    activates_first: bool,
    /// Whether there is a batch norm behind the last block, where activations come first.
    last_norm: bool,
    /// Whether a block that grows is projected, not subsampled.
    projects: bool,
    classes: usize,
}

impl Residual<'_> {
    fn arch(&self, name: String) -> Arch {
        let (colours, mut inputs) = self.channels;
        let (side, mut layers) = match self.stem {
            Stem::Small => (32, vec![conv("conv1", (colours, inputs), 3, 1, 1)]),
            Stem::Large => (224, vec![conv("conv1", (colours, inputs), 7, 2, 3)]),
        };
        if !self.activates_first {
            layers.extend([norm("bn1", inputs), Layer::Relu]);
        }
        if self.stem == Stem::Large {
            layers.push(Layer::MaxPool { size: 3, stride: 2, padding: 1 });
        }
        for (s, stage) in self.stages.iter().enumerate() {
            for b in 0..stage.blocks {
                let stride = if s > 0 && b == 0 { 2 } else { 1 };
                let projects = self.projects && inputs != stage.outputs;
                self.block(&self.names.block(s, b), inputs, *stage, stride, projects, &mut layers);
                inputs = stage.outputs;
            }
        }
        if self.last_norm {
            layers.extend([norm(self.names.last_norm, inputs), Layer::Relu]);
        }
        layers.extend([Layer::GlobalAvgPool, Layer::Flatten, linear(self.names.last, inputs, self.classes)]);
        Arch { name, input: Dims::new(colours, side, side), layers }
    }

    fn block(&self, name: &str, inputs: usize, stage: Stage, stride: usize, projects: bool, layers: &mut Vec<Layer>) {
        let Stage { inner, outputs, .. } = stage;
        // (channels, kernel, stride) of each convolution; where there are three, the middle one strides.
        let convolutions = match self.convolutions {
            3 => vec![((inputs, inner), 1, 1), ((inner, inner), 3, stride), ((inner, outputs), 1, 1)],
            _ => vec![((inputs, inner), 3, stride), ((inner, outputs), 3, 1)],
        };
        let mut body = Vec::new();
        for (i, (io, kernel, stride)) in convolutions.into_iter().enumerate() {
            let this = conv(&format!("{name}.conv{}", i + 1), io, kernel, stride, kernel / 2);
            let norm = |channels| norm(&format!("{name}.bn{}", i + 1), channels);
            if self.activates_first {
                body.extend([norm(io.0), Layer::Relu, this]);
            } else {
                body.extend((i > 0).then_some(Layer::Relu));
                body.extend([this, norm(io.1)]);
            }
        }
        let (projection, its_norm) = self.names.projection;
        let projection = conv(&format!("{name}.{projection}"), (inputs, outputs), 1, stride, 0);
        let shortcut = match (projects, self.activates_first) {
            (true, true) => {
                // It takes what comes out of the first batch norm and ReLU, which thus stand before both ways.
                layers.extend(body.drain(..2));
                Shortcut::Projection(vec![projection])
            }
            (true, false) => Shortcut::Projection(vec![projection, norm(&format!("{name}.{its_norm}"), outputs)]),
            (false, _) if inputs != outputs => Shortcut::Subsample { added: outputs.saturating_sub(inputs) },
            (false, _) => Shortcut::Identity,
        };
        layers.push(Layer::Residual { body, shortcut });
        layers.extend((!self.activates_first).then_some(Layer::Relu));
    }
}

/// The stages that there are tensors of, and the convolutions in a block.
fn stages(t: Tensors<'_>, names: &Names) -> Option<(Vec<Stage>, usize)> {
    let conv = |s, b, i| format!("{}.conv{i}", names.block(s, b));
    let convolutions = if t.outputs(&conv(0, 0, 3)).is_some() { 3 } else { 2 };
    let mut stages = Vec::new();
    while let Some(inner) = t.outputs(&conv(stages.len(), 0, 1)) {
        let s = stages.len();
        let outputs = t.outputs(&conv(s, 0, convolutions))?;
        let blocks = (0..).take_while(|b| t.outputs(&conv(s, *b, 1)).is_some()).count();
        stages.push(Stage { blocks, inner, outputs });
    }
    // None has fewer than three: what the others are called is missed by name then.
    let mut last = *stages.last()?;
    while stages.len() < 3 {
        last = Stage { inner: last.inner.saturating_mul(2), outputs: last.outputs.saturating_mul(2), ..last };
        stages.push(last);
    }
    Some((stages, convolutions))
}

/// ResNets whose stages are called `layerN`. Where batch norm comes last there is one behind the stem, `bn1`.
fn residual(t: Tensors<'_>) -> Option<Arch> {
    let names = if t.has("fc.weight") && !t.has("linear.weight") { &TORCHVISION } else { &CIFAR };
    let stem = t.outputs("conv1")?;
    let (stages, convolutions) = stages(t, names)?;
    let activates_first = !t.has("bn1.weight");
    let small = stages.len() == 3;
    let large = names.last == "fc" && !small;
    let projected = |s| t.has(&format!("{}.{}.weight", names.block(s, 0), names.projection.0));
    let network = Residual {
        names,
        stem: if large { Stem::Large } else { Stem::Small },
        channels: (t.side("conv1", 1)?, stem),
        convolutions,
        activates_first,
        last_norm: activates_first && t.has("bn.weight"),
        // Three stages may do without any projection; in four none may be missing.
        projects: !small || (0..stages.len()).any(projected),
        classes: t.outputs(names.last)?,
        stages,
    };
    let depth = convolutions * network.stages.iter().map(|s| s.blocks).sum::<usize>() + 2;
    Some(network.arch(match (activates_first, large) {
        (true, _) => format!("preact-resnet{depth}"),
        (_, true) => format!("torchvision-resnet{depth}"),
        _ if small && network.projects => format!("resnet{depth}-b"),
        _ => format!("resnet{depth}"),
    }))
}

/// Pre-activation ResNets for 3×32×32 images (He et al. 2016): four stages of 64 to 512 channels, `layerN.B.bn1`,
/// `.conv1`, `.bn2`, `.conv2`, and `shortcut.0` that takes what the first batch norm and ReLU of a block give. There
/// are two layouts, with a batch norm `bn` behind the last block and without.
pub fn preact_resnet(blocks: [usize; 4], last_norm: bool, classes: usize) -> Arch {
    let widths = [64, 128, 256, 512];
    let stage = |s: usize| Stage { blocks: blocks[s], inner: widths[s], outputs: widths[s] };
    Residual {
        names: &CIFAR,
        stem: Stem::Small,
        channels: (3, 64),
        stages: (0..4).map(stage).collect(),
        convolutions: 2,
        activates_first: true,
        last_norm,
        projects: true,
        classes,
    }
    .arch(format!("preact-resnet{}", 2 * blocks.iter().sum::<usize>() + 2))
}

/// Wide ResNets for 3×32×32 images (Zagoruyko and Komodakis 2016): three stages of 16, 32 and 64 times `width` channels
/// with `blocks` blocks each, 6·blocks + 4 layers deep; `wrn-28-10` has four blocks. `blockN.layer.B.bn1`, …,
/// `.convShortcut`, `bn1`, `fc`.
pub fn wide_resnet(blocks: usize, width: usize, classes: usize) -> Arch {
    let stage = |channels: usize| Stage { blocks, inner: channels * width, outputs: channels * width };
    wide_resnet_of([16, 32, 64].map(stage).to_vec(), (3, 16), classes)
}

fn wide_resnet_of(stages: Vec<Stage>, channels: (usize, usize), classes: usize) -> Arch {
    let depth = 2 * stages.iter().map(|s| s.blocks).sum::<usize>() + 4;
    let width = stages.first().and_then(|s| s.outputs.checked_div(channels.1)).unwrap_or(0);
    Residual {
        names: &WIDE,
        stem: Stem::Small,
        channels,
        stages,
        convolutions: 2,
        activates_first: true,
        last_norm: true,
        projects: true,
        classes,
    }
    .arch(format!("wrn-{depth}-{width}"))
}

fn wide(t: Tensors<'_>) -> Option<Arch> {
    let stem = t.outputs("conv1")?;
    let (stages, _) = stages(t, &WIDE)?;
    Some(wide_resnet_of(stages, (t.side("conv1", 1)?, stem), t.outputs(WIDE.last)?))
}

/// VGG: `features.N` in the order of `Sequential`, pools counted, then `classifier`, a layer or three. Convolutions
/// between the five pools, by depth.
const VGG: [(usize, [usize; 5]); 4] =
    [(11, [1, 1, 2, 2, 2]), (13, [2, 2, 2, 2, 2]), (16, [2, 2, 3, 3, 3]), (19, [2, 2, 4, 4, 4])];

fn vgg(t: Tensors<'_>) -> Option<Arch> {
    let of_features = |name: &&String| name.starts_with("features.") && name.ends_with(".weight");
    let count = |axes| t.0.iter().filter(|(n, s)| of_features(n) && s.len() == axes).count();
    let (convolutions, norms) = (count(4), count(1));
    let (depth, blocks) = VGG.into_iter().find(|(depth, _)| *depth == convolutions + 3)?;
    let mut inputs = t.side("features.0", 1)?;
    let colours = inputs;
    let (mut layers, mut at) = (Vec::new(), 0);
    for (block, width) in blocks.into_iter().zip([64, 128, 256, 512, 512]) {
        for _ in 0..block {
            layers.push(conv_with_bias(&format!("features.{at}"), (inputs, width), 3, 1, 1));
            if norms > 0 {
                layers.push(norm(&format!("features.{}", at + 1), width));
                at += 1;
            }
            layers.push(Layer::Relu);
            at += 2;
            inputs = width;
        }
        layers.push(halve());
        at += 1;
    }
    // A layer of its own; three, of which dropout comes before the first; three, before the second.
    let heads: [&[&str]; 3] = [
        &["classifier"],
        &["classifier.1", "classifier.4", "classifier.6"],
        &["classifier.0", "classifier.3", "classifier.6"],
    ];
    let head = heads.into_iter().find(|head| head.iter().all(|name| t.outputs(name).is_some()))?;
    // 512 values of 32×32 pixels, and 512·7·7 of 224×224.
    let side = if t.side(head[0], 1)? == 512 { 32 } else { 224 };
    layers.push(Layer::Flatten);
    for (i, name) in head.iter().enumerate() {
        layers.extend((i > 0).then_some(Layer::Relu));
        layers.push(linear(name, t.side(name, 1)?, t.outputs(name)?));
    }
    let suffix = if norms > 0 { "-bn" } else { "" };
    Some(Arch { name: format!("vgg{depth}{suffix}"), input: Dims::new(colours, side, side), layers })
}

/// The small network of Wong and Kolter (2018), `Sequential`: convolutions 4×4 of stride 2 called `0` and `2`, linear
/// layers `5` and `7`. For 1×28×28 and 3×32×32 images.
fn wong(t: Tensors<'_>) -> Option<Arch> {
    let [first, second, hidden, classes] = ["0", "2", "5", "7"].map(|name| t.outputs(name));
    let (first, second, hidden, classes) = (first?, second?, hidden?, classes?);
    let colours = t.side("0", 1)?;
    let side = if colours == 1 { 28 } else { 32 };
    let layers = vec![
        conv_with_bias("0", (colours, first), 4, 2, 1),
        Layer::Relu,
        conv_with_bias("2", (first, second), 4, 2, 1),
        Layer::Relu,
        Layer::Flatten,
        linear("5", second.saturating_mul(side / 4 * (side / 4)), hidden),
        Layer::Relu,
        linear("7", hidden, classes),
    ];
    Some(Arch { name: "wong-cnn".into(), input: Dims::new(colours, side, side), layers })
}

/// The network of Madry et al. (2018) for MNIST: convolutions 5×5 of 32 and 64 channels, each with a max-pool behind
/// it, and two linear layers, of 1,024 and the classes. As `Sequential` (`0`, `3`, `7`, `9`), or `conv1`, `conv2`,
/// `fc1`, `fc2`.
fn madry(t: Tensors<'_>) -> Option<Arch> {
    let names = [["0", "3", "7", "9"], ["conv1", "conv2", "fc1", "fc2"]];
    let names = names.into_iter().find(|names| names.iter().all(|name| t.outputs(name).is_some()))?;
    let [first, second, hidden, last] = names;
    let layers = vec![
        conv_with_bias(first, (1, 32), 5, 1, 2),
        Layer::Relu,
        halve(),
        conv_with_bias(second, (32, 64), 5, 1, 2),
        Layer::Relu,
        halve(),
        Layer::Flatten,
        linear(hidden, 64 * 7 * 7, 1024),
        Layer::Relu,
        linear(last, 1024, t.outputs(last)?),
    ];
    Some(Arch { name: "madry-cnn".into(), input: Dims::new(1, 28, 28), layers })
}

/// The network of Zhang et al. (2019) for MNIST: four convolutions 3×3 without padding, a max-pool behind each second
/// one, and three linear layers. `feature_extractor.convN`, `classifier.fcN`.
fn trades(t: Tensors<'_>) -> Option<Arch> {
    let classes = t.outputs("classifier.fc3")?;
    let conv = |i: usize, io| conv_with_bias(&format!("feature_extractor.conv{i}"), io, 3, 1, 0);
    let layers = vec![
        conv(1, (1, 32)),
        Layer::Relu,
        conv(2, (32, 32)),
        Layer::Relu,
        halve(),
        conv(3, (32, 64)),
        Layer::Relu,
        conv(4, (64, 64)),
        Layer::Relu,
        halve(),
        Layer::Flatten,
        linear("classifier.fc1", 64 * 4 * 4, 200),
        Layer::Relu,
        linear("classifier.fc2", 200, 200),
        Layer::Relu,
        linear("classifier.fc3", 200, classes),
    ];
    Some(Arch { name: "trades-cnn".into(), input: Dims::new(1, 28, 28), layers })
}
