//! Networks of the user's own, described in a file (`--arch FILE.toml`): what they are, what they run as, and what is refused.

#[path = "common/program.rs"]
mod program;

use program::{Bench, json, refused};
use signstep::data::Description;
use signstep::model::{Arch, Conv2d, Dims, Layer, Linear, Shortcut, known};
use signstep::{Reference, Training, attack::Engine, weights};
use std::fmt::Write;
use std::fs;

const README: &str = include_str!("../README.md");
const DIGITS_CNN: &str = include_str!("../examples/networks/digits-cnn.toml");
const WEIGHTS: &[u8] = include_bytes!("../weights/digits-cnn.safetensors");

fn read(bench: &Bench, text: &str) -> signstep::Result<Description> {
    let path = bench.path("net.toml");
    fs::write(&path, text).unwrap();
    Description::open(&path)
}

/// What the README tells its readers to write is the network inside the program: the same bytes come of it, and the report says
/// which description it was.
#[test]
fn the_readmes_description_runs_as_the_network_that_it_describes() {
    assert!(README.contains(DIGITS_CNN), "the README shows examples/networks/digits-cnn.toml");
    let bench = Bench::new();
    fs::write(bench.path("net.toml"), DIGITS_CNN).unwrap();
    fs::write(bench.path("net.safetensors"), WEIGHTS).unwrap();
    let line = "attack --method pgd --eps 0.2 --steps 3 --limit 40";
    bench.ok(&format!("{line} --out known"));
    let output = bench.ok(&format!("{line} --model net.safetensors --arch net.toml --out described --json"));
    let bytes = |out: &str| fs::read(bench.path(out).join("adversarial.safetensors")).unwrap();
    assert!(bytes("known") == bytes("described"));
    let known = json(&fs::read_to_string(bench.path("known/report.json")).unwrap());
    let described = json(&output);
    let sha256 = read(&bench, DIGITS_CNN).unwrap().sha256;
    assert_eq!(described["model"]["description_sha256"], sha256.as_str());
    assert!(known["model"].get("description_sha256").is_none());
    assert_eq!(known["model"]["sha256"], described["model"]["sha256"]);

    // Another description is another run, even of the same layers.
    fs::write(bench.path("other.toml"), format!("# mine\n{DIGITS_CNN}")).unwrap();
    let again = format!("{line} --model net.safetensors --out described");
    for arch in ["", " --arch other.toml"] {
        let line = format!("{again}{arch}");
        refused(&bench.run(&line), &line, 8, &["another run", "model.description_sha256"]);
    }
    bench.ok(&format!("{again} --arch net.toml"));
    // Every other command takes it too.
    let eval = json(
        &bench.ok("eval --attacks fgsm --limit 20 --model net.safetensors --arch net.toml --json --out evaluated"),
    );
    assert_eq!(eval["model"]["description_sha256"], sha256.as_str());
    let line = "eval --attacks fgsm --limit 20 --out evaluated";
    refused(&bench.run(line), line, 8, &["model.description_sha256"]);
    for line in ["info", "verify --limit 20", "study --limit 40 --rows 1"] {
        let alone = format!("{line} --arch net.toml");
        refused(&bench.run(&alone), &alone, 2, &["--arch net.toml needs --model"]);
        let told = json(&bench.ok(&format!("{line} --model net.safetensors --arch net.toml --json")));
        let place = if line == "info" { &told } else { &told["model"] };
        assert_eq!(place["description_sha256"], sha256.as_str(), "{line}: {told}");
    }
}

/// The layers of a network, written down.
fn written(layers: &[Layer], to: &mut String) {
    for layer in layers {
        match layer {
            Layer::Normalise { .. } => panic!("mean and deviation stand above"),
            Layer::Conv2d(Conv2d { name, outputs, kernel, stride, padding, bias, .. }) => {
                let sides = format!("kernel = {kernel}, stride = {stride}, padding = {padding}");
                writeln!(to, "{{ conv = {name:?}, outputs = {outputs}, {sides}, bias = {bias} }},").unwrap();
            }
            Layer::BatchNorm { name, eps, .. } => {
                writeln!(to, "{{ batch_norm = {name:?}, eps = {eps:?} }},").unwrap();
            }
            Layer::Affine { name, .. } => writeln!(to, "{{ affine = {name:?} }},").unwrap(),
            Layer::Relu => *to += "\"relu\",\n",
            Layer::GlobalAvgPool => *to += "\"global_avg_pool\",\n",
            Layer::Flatten => *to += "\"flatten\",\n",
            Layer::MaxPool { size, stride, padding } => {
                writeln!(to, "{{ max_pool = {size}, stride = {stride}, padding = {padding} }},").unwrap();
            }
            Layer::AvgPool { size, stride, padding } => {
                writeln!(to, "{{ avg_pool = {size}, stride = {stride}, padding = {padding} }},").unwrap();
            }
            Layer::Linear(Linear { name, outputs, bias, .. }) => {
                writeln!(to, "{{ linear = {name:?}, outputs = {outputs}, bias = {bias} }},").unwrap();
            }
            Layer::Residual { body, shortcut } => {
                *to += "{ residual = [\n";
                written(body, to);
                *to += "], shortcut = ";
                match shortcut {
                    Shortcut::Identity => *to += "\"identity\"",
                    Shortcut::Subsample { added } => write!(to, "{{ subsample = {added} }}").unwrap(),
                    Shortcut::Projection(layers) => {
                        *to += "[\n";
                        written(layers, to);
                        *to += "]";
                    }
                }
                *to += " },\n";
            }
        }
    }
}

/// Every network that is known by name, and one with what these do not have, reads as it was written.
#[test]
fn every_layer_can_be_described() {
    let bench = Bench::new();
    let conv = |name: &str, inputs, outputs, kernel, stride, padding| {
        Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding, bias: true })
    };
    let inner = Layer::Residual { body: vec![conv("c", 4, 4, 1, 1, 0)], shortcut: Shortcut::Identity };
    let layers = vec![
        conv("a", 2, 4, 7, 3, 2),
        Layer::AvgPool { size: 3, stride: 1, padding: 1 },
        Layer::Affine { name: "g".into(), channels: 4 },
        Layer::Residual {
            body: vec![
                Layer::BatchNorm { name: "n".into(), channels: 4, eps: 1e-3 },
                conv("b", 4, 4, 3, 1, 1),
                inner,
                conv("d", 4, 4, 1, 1, 0),
            ],
            shortcut: Shortcut::Projection(vec![conv("e", 4, 4, 1, 1, 0)]),
        },
        Layer::MaxPool { size: 2, stride: 1, padding: 0 },
        Layer::Linear(Linear { name: "f".into(), inputs: 16, outputs: 3, bias: false }),
    ];
    let own = Arch { name: "own".into(), input: Dims::new(2, 9, 9), layers };
    for arch in known().into_iter().chain([own]) {
        let Dims { c, h, w } = arch.input;
        let mut text = format!("name = {:?}\ninput = [{c}, {h}, {w}]\nlayers = [\n", arch.name);
        written(&arch.layers, &mut text);
        text += "]\n";
        let read = read(&bench, &text).unwrap_or_else(|e| panic!("{}: {e}", arch.name));
        assert_eq!((&read.arch, read.classes.len()), (&arch, 0), "{}", arch.name);
    }
}

/// A linear layer without a bias is one whose bias is zero.
#[test]
fn the_last_layer_may_have_no_bias() {
    let bench = Bench::new();
    let without = DIGITS_CNN.replace("\"linear2\", outputs = 10", "\"linear2\", outputs = 10, bias = false");
    assert_ne!(without, DIGITS_CNN);
    let arch = read(&bench, &without).unwrap().arch;
    let error = weights::load_as(WEIGHTS, &arch).unwrap_err().to_string();
    assert!(error.contains("linear2.bias: this tensor is left over"), "{error}");

    let file = safetensors::SafeTensors::deserialize(WEIGHTS).unwrap();
    let written = |bias: Option<[f32; 10]>| {
        let of = |name: &str| bytemuck::pod_collect_to_vec::<u8, f32>(file.tensor(name).unwrap().data());
        let mut all: Vec<(&str, Vec<usize>, Vec<f32>)> = file
            .names()
            .into_iter()
            .map(|name| (name, file.tensor(name).unwrap().shape().to_vec(), of(name)))
            .collect();
        all.retain(|(name, ..)| *name != "linear2.bias");
        all.extend(bias.map(|zeros| ("linear2.bias", vec![10], zeros.to_vec())));
        let views: Vec<_> =
            all.iter().map(|(name, shape, values)| (*name, signstep::data::View::f32(shape, values))).collect();
        let path = bench.path("net.safetensors");
        signstep::data::write_safetensors(&path, &views, &Default::default()).unwrap();
        fs::read(path).unwrap()
    };
    let model = weights::load_as(&written(None), &arch).unwrap();
    let zero = weights::load_as(&written(Some([0.0; 10])), &read(&bench, DIGITS_CNN).unwrap().arch).unwrap();
    assert_eq!(model, zero);
    assert_eq!(model.params["linear2"].bias, [0.0; 10]);
}

const HEAD: &str = "input = [1, 8, 8]\nlayers = [\n";

#[test]
fn repeats_classes_and_normalisation() {
    let bench = Bench::new();
    let repeat = r##"
mean = [0.5]
std = [1]
classes = ["cat", "dog"]
input = [1, 8, 8]
layers = [
  { conv = "first", outputs = 4, kernel = 3 },
  { repeat = 2, from = 1, layers = [
    { residual = [{ conv = "block.#.a", outputs = 4, kernel = 1 }], shortcut = "identity" },
    "relu",
  ] },
  { linear = "last", outputs = 2 },
]
"##;
    let read_again = read(&bench, repeat).unwrap();
    assert_eq!(read_again.classes, ["cat", "dog"]);
    let layers = &read_again.arch.layers;
    assert_eq!(layers[0], Layer::Normalise { mean: vec![0.5], std: vec![1.0] });
    let labels: Vec<String> = layers.iter().flat_map(Layer::inner).map(Layer::label).collect();
    assert_eq!((layers.len(), labels), (7, vec!["block.1.a".to_string(), "block.2.a".to_string()]));

    // Mean and deviation of the file and of the weights: either, or the same.
    let mine = DIGITS_CNN.replace("classes = 10", "classes = 10\nmean = [0.25]\nstd = [2.0]");
    let arch = read(&bench, &mine).unwrap().arch;
    let with = |normalise: Option<(&str, &str)>| {
        let n = u64::from_le_bytes(WEIGHTS[..8].try_into().unwrap()) as usize;
        let mut header = json(std::str::from_utf8(&WEIGHTS[8..8 + n]).unwrap());
        let metadata = header["__metadata__"].as_object_mut().unwrap();
        metadata.retain(|key, _| key != "mean" && key != "std");
        if let Some((mean, std)) = normalise {
            metadata.extend([("mean".to_string(), mean.into()), ("std".to_string(), std.into())]);
        }
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &WEIGHTS[8 + n..]].concat()
    };
    let model = weights::load_as(&with(None), &arch).unwrap();
    assert_eq!(model.layers[0], Layer::Normalise { mean: vec![0.25], std: vec![2.0] });
    assert_ne!(model.layers, weights::load(&with(None)).unwrap().layers);
    assert_eq!(weights::load_as(&with(Some(("[0.25]", "[2.0]"))), &arch).unwrap(), model);
    for (mean, std) in [("[0.5]", "[2.0]"), ("[0.25]", "[1.0]")] {
        let other = weights::load_as(&with(Some((mean, std))), &arch).unwrap_err();
        assert!(other.to_string().contains("metadata `mean`, `std`"), "{other}");
    }
    // And in training mode.
    let gpu = signstep::Gpu::new(&signstep::Adapter::Auto).unwrap();
    let training = Training::load_as(&gpu, &with(None), &arch, &Default::default()).unwrap();
    assert_eq!(training.model().layers[0], model.layers[0]);
    // The same arithmetic as without a file.
    let images = vec![0.5; 64];
    let arch = read(&bench, DIGITS_CNN).unwrap().arch;
    let logits = |model| Reference::new(model).unwrap().logits(&images).unwrap().logits;
    assert_eq!(logits(weights::load_as(WEIGHTS, &arch).unwrap()), logits(weights::load(WEIGHTS).unwrap()));
}

/// Each with what its message must name: the line, the layer, what is wrong.
#[test]
fn mistakes_are_told_with_their_line_and_layer() {
    let bench = Bench::new();
    let cases: [(&str, &[&str]); 42] = [
        ("", &["`input` is missing"]),
        ("input = [1, 8]\nlayers = []", &["line 1, input", "channels, height, width"]),
        ("input = [1, 8, 0]\nlayers = []", &["line 1", "1 or more"]),
        ("input = [4294967295, 4294967295, 4294967295]\nlayers = []", &["line 1", "at most"]),
        ("input = [1, 8, 8]\n", &["`layers` is missing"]),
        ("input = [1, 8, 8]\nlayers = []", &["line 2, layers", "none"]),
        ("input = [1, 8, 8]\nlayers = 3", &["line 2, layers", "a list"]),
        ("input = [1, 8, 8\nlayers = 3", &["line"]),
        ("input = [1, 8, 8]\ninputs = 3", &["line 2", "no key \"inputs\""]),
        ("input = [1, 8, 8]\ninput = [1, 8, 8]", &["line 2", "duplicate"]),
        ("HEAD'relu']", &["line 2, layers", "1×8×8", "a classifier"]),
        ("HEAD{ linear = 'a', outputs = 4 },\n 'relu']", &["line 4, layers[1]", "a ReLU is behind the last layer"]),
        ("HEAD{ linear = 'a', outputs = 4 }, 'relu',\n 'flatten']", &["line 4, layers[2]", "a ReLU is behind"]),
        ("HEAD'gelu']", &["line 3, layers[0]", "no layer \"gelu\"", "relu"]),
        ("HEAD'dropout']", &["line 3, layers[0]", "leave it out"]),
        ("HEAD{ dropout = 0.5 }]", &["line 3, layers[0]", "leave it out"]),
        ("HEAD'relu',\n 7]", &["line 4, layers[1]", "integer is no layer"]),
        ("HEAD{ kernel = 3 }]", &["line 3, layers[0]", "conv, batch_norm"]),
        ("HEAD{ conv = 'a', linear = 'b' }]", &["line 3, layers[0]", "conv and linear"]),
        ("HEAD{ conv = 'a', outputs = 4 }]", &["line 3, layers[0]", "`kernel` is missing"]),
        ("HEAD{ conv = 'a', outputs = 4, kernel = -3 }]", &["line 3, layers[0].kernel", "whole number"]),
        ("HEAD{ conv = 'a', outputs = 4, kernel = 3.0 }]", &["line 3, layers[0].kernel", "whole number"]),
        ("HEAD{ conv = 'a', outputs = 4, kernel = 3, bias = 1 }]", &["line 3, layers[0]", "bias", "true or false"]),
        ("HEAD{ linear = 'a', outputs = 4, bias = 1 }]", &["line 3, layers[0]", "bias", "true or false"]),
        ("HEAD{ conv = 'a', outputs = 4,\n kernel = 3, dilation = 2 }]", &["line 4, layers[0]", "no key \"dilation\""]),
        ("HEAD{ conv = 'a', outputs = 4, kernel = 9 }]", &["line 3, layers[0]: a", "kernel 9"]),
        ("HEAD'relu',\n{ conv = 'a', outputs = 4000000000, kernel = 1 }]", &["line 4, layers[1]: a", "too large"]),
        ("HEAD{ conv = '', outputs = 4, kernel = 3 }]", &["line 3, layers[0]", "a name is expected"]),
        ("HEAD{ conv = \"a\\u001b[2J\", outputs = 4, kernel = 3 }]", &["line 3, layers[0]", "control characters"]),
        ("HEAD{ linear = 'a', outputs = 4 },\n{ linear = 'a', outputs = 4 }]", &["line 4, layers[1]", "`a`", "line 3"]),
        ("HEAD{ batch_norm = 'n', eps = -1e-5 }]", &["line 3, layers[0]: n", "eps -0.00001", "0 or more"]),
        ("HEAD{ batch_norm = 'n', eps = 'small' }]", &["line 3, layers[0].eps", "a finite number"]),
        ("HEAD{ max_pool = 99 }]", &["line 3, layers[0]: max_pool 99×99/99", "windows"]),
        (
            "HEAD{ residual = ['relu'], shortcut = 'identity' }]",
            &["line 3, layers[0]: residual", "end with a convolution"],
        ),
        (
            "HEAD{ residual = [\n{ conv = 'a', outputs = 4, kernel = 3 }], shortcut = 'identity' }]",
            &["line 3, layers[0]: residual", "the body gives 4×6×6, the shortcut 1×8×8"],
        ),
        (
            "HEAD{ residual = [\n{ conv = 'a', outputs = 4, kernel = 10 }], shortcut = 'identity' }]",
            &["line 4, layers[0].residual[0]: a", "kernel 10"],
        ),
        (
            "HEAD{ residual = [{ conv = 'a', outputs = 4, kernel = 3 }], shortcut = 'option C' }]",
            &["line 3, layers[0].shortcut", "\"identity\", { subsample"],
        ),
        (
            "HEAD{ repeat = 0, layers = ['relu'] }]",
            &["line 3, layers[0]", "`repeat` must be 1 to 4096, `from` at most 4096"],
        ),
        (
            "HEAD{ repeat = 2, layers = [{ repeat = 2, layers = ['relu'] }] }]",
            &["layers[0].layers[0]", "inside another"],
        ),
        ("HEAD{ repeat = 2, layers = [\n{ linear = 'a', outputs = 4 }] }]", &["line 4, layers[0].layers[0]", "`a`"]),
        ("mean = [0.5]\nHEAD{ linear = 'a', outputs = 4 }]", &["line 1, mean", "no `std`"]),
        ("mean = [0.5]\nstd = [0]\nHEAD{ linear = 'a', outputs = 4 }]", &["line 1, mean, std: normalise", "positive"]),
    ];
    for (text, words) in cases {
        let text = text.replace("HEAD", HEAD);
        let error = read(&bench, &text).map(|_| ()).expect_err(&text);
        let told = error.to_string();
        assert_eq!(error.exit_code(), 3, "{told}");
        assert!(told.contains("net.toml") && !told.contains('\n'), "{text}\n{told}");
        words.iter().for_each(|word| assert!(told.contains(word), "{text}\n`{word}` is missing from\n{told}"));
    }
    // Bounds: what somebody made to do harm ends at once.
    let many = format!("{HEAD}{}]", "'relu',\n".repeat(4097));
    let repeated = format!("{HEAD}{{ repeat = 4096, layers = ['relu', 'relu'] }}]");
    let deep = format!("{HEAD}{}'relu'{}]", "{ residual = [".repeat(6), "], shortcut = 'identity' }".repeat(6));
    let deeper = format!("{HEAD}{}", "[".repeat(100_000));
    let large = " ".repeat((1 << 18) + 1);
    let limits = [
        (many, "entries"),
        (repeated, "more than 4096 layers"),
        (deep, "more than 4 residual"),
        (deeper, "recursion"),
        (large, "at most"),
    ];
    for (text, word) in limits {
        let told = read(&bench, &text).map(|_| ()).unwrap_err().to_string();
        assert!(told.contains(word), "{word}: {told}");
    }
    fs::write(bench.path("net.toml"), b"input = [1,\n \xff").unwrap();
    let info = |arch: &str| bench.run(&format!("info --model net.safetensors --arch {arch}"));
    refused(&info("net.toml"), "info", 3, &["net.toml: line 2", "not UTF-8"]);
    // Weights that are not of the described layers.
    fs::write(bench.path("net.toml"), DIGITS_CNN.replace("outputs = 48", "outputs = 50")).unwrap();
    fs::write(bench.path("net.safetensors"), WEIGHTS).unwrap();
    refused(&info("net.toml"), "info", 3, &["linear1.weight", "[48, 128]", "[50, 128]"]);
    refused(&info("none.toml"), "info", 3, &["none.toml"]);
}
