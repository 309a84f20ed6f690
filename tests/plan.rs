//! Plans as data, without a device: limits obeyed, nothing aliased, every read finds what its producer wrote, loops short.

mod common;

use common::{Rng, affine, conv, linear, projected, residual};
use proptest::prelude::*;
use signstep::attack::Rule;
use signstep::kernel::{Access, Dispatch, Grid};
use signstep::model::{Conv2d, Dims, Layer, Linear, Model, Params, Shortcut, output};
use signstep::plan::{CoopMatrix, Math, Plan, Tile};
use signstep::{Error, Kind, Limits, Resource, Storage, Target, Variant, weights};
use std::collections::{BTreeMap, HashMap};

const MAX_ROUNDS: u64 = 32_000;

/// A model of zero weights. Shapes may be nonsense: that is the plan's to notice.
fn model(input: Dims, layers: Vec<Layer>) -> Model {
    fn fill<'a>(layers: impl IntoIterator<Item = &'a Layer>, params: &mut BTreeMap<String, Params>) {
        for layer in layers {
            let (name, outputs, each) = match layer {
                Layer::Conv2d(Conv2d { name, inputs, outputs, kernel, .. }) => {
                    (name, *outputs, inputs * kernel * kernel)
                }
                Layer::Linear(Linear { name, inputs, outputs, .. }) => (name, *outputs, *inputs),
                Layer::Affine { name, channels } => (name, *channels, 1),
                Layer::Residual { .. } => {
                    fill(layer.inner(), params);
                    continue;
                }
                _ => continue,
            };
            params.insert(name.clone(), Params { weight: vec![0.0; outputs * each], bias: vec![0.0; outputs] });
        }
    }
    let mut params = BTreeMap::new();
    fill(&layers, &mut params);
    Model { arch: "custom".into(), input, layers, params, classes: Vec::new(), eps: None, step_size: None }
}

/// Layers as they come, most of the time of shapes that fit; `depth` residual blocks may stand in one another.
struct Maker {
    rng: Rng,
    names: usize,
}

impl Maker {
    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.rng.range(1, n) == 1
    }

    fn conv(&mut self, x: Dims, outputs: usize, stride: usize) -> Layer {
        let name = self.name();
        let (kernel, padding) = [(1, 0), (5, 2), (3, 1), (3, 1), (3, 1)][self.rng.range(0, 4)];
        let inputs = if self.one_in(100) { x.c + 1 } else { x.c };
        conv(&name, inputs, outputs, kernel, stride, padding)
    }

    fn body(&mut self, x: Dims, added: usize, depth: usize) -> Vec<Layer> {
        let stride = if added > 0 { 2 } else { 1 };
        let out = x.c + added;
        if self.one_in(4) {
            return vec![self.conv(x, out, stride)];
        }
        let inner = if self.one_in(2) { x.c } else { self.rng.range(1, 20) };
        let mut body = Vec::new();
        if self.one_in(3) {
            body.push(affine(&self.name(), x.c));
            if !self.one_in(3) {
                body.push(Layer::Relu);
            }
        }
        body.push(self.conv(x, inner, stride));
        if !self.one_in(3) {
            body.push(Layer::Relu);
        }
        let mid = output(&body, x).unwrap_or(x);
        if depth > 0 && self.one_in(2) {
            body.push(residual(self.body(mid, 0, depth - 1), 0));
            body.push(Layer::Relu);
        }
        body.push(self.conv(mid, out, 1));
        if self.one_in(40) {
            body.push(Layer::Relu); // not supported
        }
        body
    }

    fn model(&mut self) -> Model {
        // Large sides and many channels, but not both.
        let side = [4, 9, 20, 300][self.rng.range(0, 3)];
        let widest = if side > 20 { 6 } else { [5, 20, 70][self.rng.range(0, 2)] };
        let input = Dims::new(self.rng.range(1, widest.min(12)), self.rng.range(1, side), self.rng.range(1, side));
        let mut layers = Vec::new();
        if self.one_in(2) {
            layers.push(Layer::Normalise { mean: vec![0.5; input.c], std: vec![0.25; input.c] });
        }
        let mut x = input;
        for _ in 0..self.rng.range(0, 5) {
            let more = match self.rng.range(0, 11) {
                0..=2 => {
                    let (outputs, stride) = (self.rng.range(1, widest), self.rng.range(1, 2));
                    vec![self.conv(x, outputs, stride)]
                }
                3 | 4 => vec![Layer::Relu],
                11 => {
                    let channels = if self.one_in(30) { x.c + 1 } else { x.c };
                    vec![affine(&self.name(), channels)]
                }
                5 => vec![Layer::MaxPool { size: 3, stride: self.rng.range(1, 3), padding: self.rng.range(0, 1) }],
                9 => vec![Layer::AvgPool { size: 2, stride: self.rng.range(1, 3), padding: self.rng.range(0, 1) }],
                10 => {
                    let added = self.rng.range(1, 9);
                    let body = self.body(x, added, 1);
                    let name = self.name();
                    let kernel = [1, 1, 3][self.rng.range(0, 2)];
                    vec![projected(body, conv(&name, x.c, x.c + added, kernel, 2, kernel / 2)), Layer::Relu]
                }
                6 => {
                    let added = 8 * self.rng.range(1, 2);
                    vec![residual(self.body(x, added, 1), added), Layer::Relu]
                }
                _ => vec![residual(self.body(x, 0, 2), 0)],
            };
            if let Ok(next) = output(&more, x) {
                x = next;
            } else if !self.one_in(20) {
                continue;
            }
            layers.extend(more);
        }
        if self.one_in(2) {
            layers.push(Layer::GlobalAvgPool);
            x = Dims::new(x.c, 1, 1);
        }
        if self.one_in(2) {
            layers.push(Layer::Flatten);
            x = Dims::new(x.len(), 1, 1);
        }
        if self.one_in(3) && x.len() < 5000 {
            layers.push(linear("last1", x.len(), 13));
            layers.push(Layer::Relu);
            x = Dims::new(13, 1, 1);
        }
        // Short weights for everything, but for linear layers that would be large.
        if x.len() < 200_000 && !self.one_in(20) {
            let inputs = if self.one_in(60) { x.len() + 1 } else { x.len() };
            layers.push(linear("last", inputs, self.rng.range(1, 7)));
        }
        let mut model = model(input, layers);
        if self.one_in(40) {
            model.params.pop_last();
        } else if self.one_in(40) {
            model.params.values_mut().for_each(|p| p.weight.truncate(p.weight.len() - 1));
        }
        model
    }

    fn limits(&mut self) -> Limits {
        let known = known_limits();
        if self.one_in(2) {
            return known[self.rng.range(0, known.len() - 1)].clone();
        }
        // Looking at bindings takes the text of every kernel.
        let is_tight = self.one_in(32);
        let mut pick = |usual: u64, others: &[u64]| {
            if self.rng.range(0, 1) == 0 { usual } else { others[self.rng.range(0, others.len() - 1)] }
        };
        let d = Limits::default();
        Limits {
            storage_binding: pick(d.storage_binding, &[1 << 12, 1 << 16, 1 << 20, 1 << 40]),
            uniform_binding: pick(d.uniform_binding, &[64, 1 << 12, 1 << 14, 1 << 20]),
            buffer: pick(d.buffer, &[1 << 12, 1 << 17, 1 << 24, 1 << 40]),
            texture_side: pick(d.texture_side, &[1024, 2048, 16_384]),
            workgroups: pick(d.workgroups, &[1, 8, 256, u64::from(u32::MAX)]),
            workgroup_size: pick(256, &[16, 64, 1024]) as u32,
            workgroup_storage: pick(16 << 10, &[0, 4 << 10, 64 << 10]) as u32,
            storage_buffers: if is_tight { pick(8, &[5, 6, 7]) as u32 } else { 8 },
            storage_textures: if is_tight { pick(4, &[1, 2, 3]) as u32 } else { 4 },
            bindings: if is_tight { pick(1000, &[7, 8, 9, 10]) as u32 } else { 1000 },
        }
    }
}

/// What WebGPU guarantees, what older hardware may have left of it, and what adapters say of themselves.
fn known_limits() -> [Limits; 5] {
    let usual = Limits::default();
    let downlevel =
        Limits { texture_side: 2048, uniform_binding: 16 << 10, workgroup_storage: 16_352, ..usual.clone() };
    // WebGL 2's, which has no compute: as small as limits come.
    let least = Limits { storage_binding: 1 << 16, workgroups: 256, workgroup_size: 64, ..downlevel.clone() };
    let lavapipe = Limits {
        uniform_binding: 64 << 10,
        buffer: i32::MAX as u64,
        texture_side: 16_384,
        workgroup_size: 1024,
        workgroup_storage: 32 << 10,
        ..usual.clone()
    };
    let desktop =
        Limits { storage_binding: i32::MAX as u64, buffer: 1 << 40, workgroup_storage: 48 << 10, ..lavapipe.clone() };
    [usual, downlevel, least, lavapipe, desktop]
}

/// All that a batch of `n` must obey, said again in words of its own.
fn fits(plan: &Plan, n: u64, memory: u64) -> Result<(), String> {
    let limits = &plan.target().limits;
    // Metal tells kernels of 32 bits of a binding's size.
    let binding = limits.storage_binding.min(u64::from(u32::MAX) / 16 * 16);
    let must = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
    must(n <= limits.workgroups, format!("{n} workgroups along z"))?;
    let mut total = 0;
    for Resource { label, kind, per_sample } in &plan.resources {
        // Allocated when a rule that remembers images first runs.
        if *kind == Kind::Memory {
            continue;
        }
        let elements = per_sample * n;
        must(elements <= 1 << 31, format!("{label}: {elements} elements"))?;
        let bytes = match kind {
            Kind::Activation | Kind::Samples => 16 * elements,
            Kind::Half => 8 * elements,
            Kind::Words | Kind::Floats => 4 * elements,
            // Whole rows of texels.
            Kind::Stage(more) => {
                let eights = elements + more;
                must(8 * eights <= binding, format!("{label}: {eights} eights"))?;
                let bytes = (8 * eights).next_multiple_of(2048 * 16);
                must(bytes <= limits.buffer, format!("{label}: {bytes} bytes"))?;
                total += bytes;
                continue;
            }
            Kind::Constant(data) | Kind::Texels(data) => data.len() as u64,
            Kind::Passing(texels) => 16 * texels,
            Kind::Uniform => 16,
            Kind::Whole(values) => 4 * values,
            Kind::Memory => unreachable!("passed by above"),
        };
        let texels = matches!(kind, Kind::Activation | Kind::Half | Kind::Passing(_) | Kind::Texels(_));
        if texels && plan.target().storage == Storage::Texture {
            let texel = if *kind == Kind::Half { 8 } else { 16 };
            // Odd, and three or more; drivers keep them in tiles four texels high.
            let rows = (bytes / texel).div_ceil(2048).max(3) | 1;
            total += rows.next_multiple_of(4) * 2048 * texel;
            must(rows <= limits.texture_side && 2048 <= limits.texture_side, format!("{label}: {rows} rows"))?;
        } else {
            total += bytes;
            must(bytes <= binding.min(limits.buffer), format!("{label}: {bytes} bytes"))?;
        }
    }
    for d in plan.dispatches() {
        if let Grid::Flat { items, samples, size, .. } = d.grid {
            let groups = (n.div_ceil(u64::from(samples)) * u64::from(items)).div_ceil(u64::from(size));
            must(groups <= limits.workgroups, format!("{d}: {groups} workgroups along x"))?;
        }
        if let Grid::Parts { part, items, each, size, .. } = d.grid {
            let groups = (n.min(u64::from(part)) * u64::from(items)).div_ceil(u64::from(each * size));
            must(groups <= limits.workgroups, format!("{d}: {groups} workgroups along x, for a part"))?;
        }
    }
    let floats = plan.resources.iter().filter(|r| r.kind == Kind::Floats).map(|r| r.per_sample).max().unwrap();
    must((4 * floats + 8) * n + 32 <= limits.buffer, "reading back".into())?;
    assert_eq!(total, plan.bytes(n), "what a plan says of {n} samples");
    must(total <= memory, format!("{total} bytes in all"))
}

fn all(plan: &Plan) -> Vec<&Dispatch> {
    plan.forward
        .iter()
        .chain([&plan.logits])
        .chain(&plan.backward)
        .chain([&plan.start, &plan.step])
        .chain(plan.pixels.all())
        .collect()
}

fn check_dispatches(plan: &Plan) {
    let limits = &plan.target().limits;
    for d in plan.dispatches() {
        let what = format!("{d}");
        let constant = |name: &str| d.kernel.consts.iter().find(|(n, _)| *n == name).map(|(_, v)| u64::from(*v));
        let size = constant("WG").unwrap();
        assert!(size >= 1 && size <= u64::from(limits.workgroup_size), "{what}: {size} invocations");
        let [x, y, _] = d.grid.workgroups(1);
        assert!(x >= 1 && y >= 1 && u64::from(x.max(y)) <= limits.workgroups, "{what}: grid {x}×{y}");
        let source = d.kernel.source().unwrap();
        let (mut buffers, mut textures) = (0, 0);
        let (mut read, mut written) = (Vec::new(), Vec::new());
        for (name, access) in &source.bindings {
            let id =
                d.bindings.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{what}: {name} is unbound")).1;
            let resource = &plan.resources[id];
            let texels = matches!(resource.kind, Kind::Activation | Kind::Half | Kind::Passing(_) | Kind::Texels(_));
            assert_eq!(d.kernel.halves.iter().any(|h| h == name), resource.kind == Kind::Half, "{what}: {name}");
            let texture = texels && d.kernel.storage == Storage::Texture;
            match access {
                Access::Uniform => {
                    let bytes = resource.bytes(1, Storage::Buffer).unwrap();
                    assert!(bytes <= limits.uniform_binding, "{what}: {name} has {bytes} bytes in a uniform binding");
                }
                Access::ActivationRead if texture => textures += 1,
                _ => buffers += 1,
            }
            let activation = matches!(access, Access::ActivationRead | Access::ActivationWrite);
            assert_eq!(activation, texels, "{what}: {name}");
            match access {
                Access::ActivationWrite | Access::StorageUpdate => written.push(id),
                _ => read.push(id),
            }
        }
        assert!(buffers <= limits.storage_buffers.min(8), "{what}: {buffers} storage buffers");
        assert!(textures <= limits.storage_textures.min(4), "{what}: {textures} storage textures");
        assert!(
            source.bindings.len() <= limits.bindings.min(12) as usize,
            "{what}: {} bindings",
            source.bindings.len()
        );
        assert!(written.iter().all(|id| !read.contains(id)), "{what}: reads what it writes");
        written.sort_unstable();
        assert!(written.windows(2).all(|w| w[0] != w[1]), "{what}: binds one resource twice for writing");
        assert!(d.kernel.rounds() < MAX_ROUNDS, "{what}: {} rounds of loops", d.kernel.rounds());
        let (counted, told) = (rounds(d.kernel.entry, &source.text, &d.kernel.consts), d.kernel.rounds());
        // For who looks at whole samples the longest of its kinds is told: with sums, and with random numbers.
        let room = if source.text.contains("fn total(") { 5 * counted + 300 } else { 10 };
        assert!(counted <= told && told <= counted + room, "{what}: {counted} rounds counted, {told} told");
    }
}

/// Rounds of all loops in one function of generated text, with those of the functions that it calls, from lines and
/// constants.
fn rounds(entry: &str, text: &str, consts: &[(&'static str, u32)]) -> u64 {
    let value = |word: &str| -> u64 {
        let named = consts.iter().find(|(n, _)| *n == word).map(|(_, v)| u64::from(*v));
        // `K4` and its like are constants that the shader makes itself.
        let k4 = (word == "K4").then(|| consts.iter().find(|(n, _)| *n == "K")).flatten();
        // Tiles of workgroups go through slabs of lines; outputs of a phase meet every STEP-th tap.
        let c = |name: &str| consts.iter().find(|(n, _)| *n == name).map(|(_, v)| u64::from(*v)).unwrap();
        match word {
            "slabs + 1u" => return (c("IC4") * c("R").div_ceil(c("STEP"))).div_ceil(c("LS")) + 1,
            "slabs" => return (c("ICT") * c("R").div_ceil(c("STEP")) * c("S").div_ceil(c("STEP"))).div_ceil(c("LS")),
            "here" => return c("LS"),
            "rounds" => return c("IC4") * c("R").div_ceil(2), // kernel rows of one parity
            "columns" => return c("S").div_ceil(c("STEP")),
            _ => {}
        }
        named
            .or(k4.map(|(_, k)| u64::from(k.div_ceil(4))))
            .unwrap_or_else(|| word.trim_end_matches('u').parse().unwrap_or_else(|_| panic!("a loop up to {word:?}")))
    };
    let mut open: Vec<u64> = Vec::new(); // one for each brace: rounds of the loop, 1 where it is none
    let mut functions: Vec<(&str, u64)> = Vec::new(); // so far, and their rounds; the last is being read
    for line in text.lines().map(|l| l.split("//").next().unwrap().trim()) {
        assert!(!line.contains("while ") && !line.contains("loop {"), "a loop that is not counted: {line}");
        let header = line.strip_prefix("for (").map(|rest| {
            let condition = rest.split(';').nth(1).unwrap();
            let product = |text: &str| text.split('*').map(|f| value(f.trim())).product::<u64>();
            // Lanes of an invocation, and what comes together in halvings.
            let each = || value("LANES") / value("WG");
            let rounds = match condition.trim() {
                "half > 0u" if rest.contains("EACH") => return u64::from(each().ilog2()),
                "half > 0u" => return u64::from(value("WG").ilog2()),
                "k < half" => return (each() - 1).div_ceil(u64::from(each().ilog2()).max(1)),
                "part <= C / 128u" => return value("C") / 128 + 1,
                "i < first + LEN" | "i < (n + 1u) * LEN" => value("LEN"),
                "i < min(first + 128u * H * W, LEN)" => product("128 * H * W").min(value("LEN")),
                other => product(other.split_once('<').unwrap().1),
            };
            // A step by a constant that has a name.
            let by = rest.split("+= ").nth(1).map(|by| by.split(')').next().unwrap());
            let by = by.filter(|name| name.chars().all(|c| c.is_ascii_uppercase()));
            rounds.div_ceil(by.map_or(1, value))
        });
        if let Some(name) = line.strip_prefix("fn ") {
            functions.push((name.split('(').next().unwrap(), 0));
        }
        let calls = |name: &str| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let call = format!("{name}(");
            let before = line.match_indices(&call).map(|(at, _)| &line[..at]);
            before.filter(|before| !before.ends_with(is_part) && !before.ends_with("fn ")).count() as u64
        };
        let called: u64 = functions.iter().rev().skip(1).map(|(name, rounds)| calls(name) * rounds).sum();
        if let Some(n) = header {
            assert!(line.ends_with('{'), "{line}");
            functions.last_mut().unwrap().1 += n * open.iter().product::<u64>();
        }
        if let Some((_, rounds)) = functions.last_mut() {
            *rounds += called * open.iter().product::<u64>();
        }
        for c in line.chars() {
            match c {
                '{' => open.push(header.unwrap_or(1)),
                '}' => assert!(open.pop().is_some()),
                _ => {}
            }
        }
    }
    assert!(open.is_empty());
    functions.iter().find(|(name, _)| *name == entry).unwrap().1
}

/// What a slot holds: the number of the value last written there.
#[derive(Clone, Copy, Debug)]
struct Value {
    tag: usize,
    dims: Dims,
    signs: Option<usize>,
}

/// Replays a plan beside the layers it was made of.
struct Walk<'a> {
    plan: &'a Plan,
    list: Vec<&'a Dispatch>,
    at: usize,
    slots: HashMap<usize, usize>,
    tags: usize,
}

fn binding(d: &Dispatch, name: &str) -> Option<usize> {
    d.bindings.iter().find(|(n, _)| *n == name).map(|(_, id)| *id)
}

fn texels(d: Dims) -> u64 {
    (d.c.div_ceil(4) * d.h * d.w) as u64
}

impl Walk<'_> {
    /// The dispatches (slices of weights) that compute one value of shape `dims`, which must find `reads` in their slots.
    fn step(&mut self, layer: &str, reads: &[(&str, Value)], dims: Option<Dims>) -> Value {
        let first = self.list[self.at];
        assert_eq!(first.layer, layer, "{}", self.plan);
        let sliced = binding(first, "w").is_some();
        let y = dims.map(|_| binding(first, "y").unwrap());
        loop {
            let d = self.list[self.at];
            for (name, value) in reads {
                let slot = binding(d, name).unwrap_or_else(|| panic!("{d}: no {name}"));
                assert_eq!(self.slots.get(&slot), Some(&value.tag), "{d}: {name} is overwritten\n{}", self.plan);
                assert!(
                    texels(value.dims) <= self.plan.resources[slot].per_sample,
                    "{d}: {name} is larger than its slot"
                );
            }
            let known: Vec<&str> = reads.iter().map(|r| r.0).chain(["y"]).collect();
            for (name, id) in &d.bindings {
                let texels = matches!(self.plan.resources[*id].kind, Kind::Activation | Kind::Half);
                let other = texels && !known.contains(name);
                assert!(!other, "{d}: {name} is an activation that nobody asked for");
            }
            assert_eq!(binding(d, "y"), y.or(binding(d, "y")), "{d}");
            self.at += 1;
            let next = self.list.get(self.at);
            if !sliced || !next.is_some_and(|n| n.layer == layer && n.kernel == first.kernel && binding(n, "y") == y) {
                break;
            }
        }
        self.tags += 1;
        if let (Some(y), Some(dims)) = (y, dims) {
            assert!(texels(dims) <= self.plan.resources[y].per_sample, "{first}: y is larger than its slot");
            let constant = |name: &str| first.kernel.consts.iter().find(|(n, _)| *n == name).map(|(_, v)| *v as usize);
            if let (Some(c), Some(h), Some(w)) = (constant("OC4"), constant("OH"), constant("OW")) {
                assert_eq!((c, h, w), (dims.c.div_ceil(4), dims.h, dims.w), "{first}");
            }
            self.slots.insert(y, self.tags);
        }
        let signs = if first.kernel.consts.contains(&("RELU", 1)) { binding(first, "signs") } else { None };
        Value { tag: self.tags, dims: dims.unwrap_or(Dims::new(0, 0, 0)), signs }
    }

    /// Runs layers forward; `added` is the shortcut of the block whose body they are. Leaves (layer, what entered it).
    fn forward<'m>(
        &mut self,
        layers: &'m [Layer],
        mut x: Value,
        added: Option<Value>,
        tape: &mut Vec<(&'m Layer, Value)>,
    ) -> Value {
        let mut i = 0;
        while let Some(layer) = layers.get(i) {
            i += 1;
            let dims = layer.output(x.dims).unwrap();
            let entered = x;
            match layer {
                Layer::Flatten => continue,
                Layer::Conv2d(Conv2d { name, .. }) | Layer::Linear(Linear { name, .. }) => {
                    let mut reads = vec![("x", x)];
                    reads.extend(added.filter(|_| i == layers.len()).map(|r| ("res", r)));
                    x = self.step(name, &reads, Some(dims));
                }
                Layer::Affine { name, .. } => x = self.step(name, &[("x", x)], Some(dims)),
                Layer::Relu => x = self.step("relu", &[("x", x)], Some(dims)),
                Layer::MaxPool { .. } => x = self.step("max_pool", &[("x", x)], Some(dims)),
                Layer::AvgPool { .. } => x = self.step("avg_pool", &[("x", x)], Some(dims)),
                Layer::GlobalAvgPool => x = self.step("global_avg_pool", &[("x", x)], Some(dims)),
                Layer::Residual { body, .. } => {
                    let through = match projection(layer) {
                        Some(conv) => self.step(&conv.name, &[("x", x)], Some(dims)),
                        None => x,
                    };
                    x = self.forward(body, x, Some(through), &mut Vec::new());
                }
                Layer::Normalise { .. } | Layer::BatchNorm { .. } => unreachable!("refused"),
            }
            // The layer before it has done this ReLU already.
            let fused = fuses(layer) && matches!(layers.get(i), Some(Layer::Relu));
            i += usize::from(fused);
            let inner_relu = i == layers.len() && added.is_some();
            assert!(x.signs.is_some() == (fused || *layer == Layer::Relu) || inner_relu, "ReLU of {}", layer.label());
            tape.push((layer, entered));
        }
        x
    }

    /// The tape of a block's body, without running anything.
    fn tape<'m>(layers: &'m [Layer], entered: &[Value]) -> Vec<(&'m Layer, Value)> {
        layers.iter().filter(|l| !matches!(l, Layer::Relu | Layer::Flatten)).zip(entered.iter().copied()).collect()
    }

    fn backward(
        &mut self,
        layers: &[(&Layer, Value)],
        inner: &mut Vec<Vec<Value>>,
        mut g: Value,
        added: Option<Value>,
    ) -> Value {
        for (i, (layer, x)) in layers.iter().enumerate().rev() {
            let extra = added.filter(|_| i == 0).map(|r| ("res", r));
            let with =
                |name: &'static str, g: Value| [Some((name, g)), extra].into_iter().flatten().collect::<Vec<_>>();
            let at = self.at;
            g = match layer {
                Layer::Conv2d(Conv2d { name, .. }) | Layer::Linear(Linear { name, .. }) => {
                    self.step(name, &with("x", g), Some(x.dims))
                }
                Layer::Affine { name, .. } => self.step(name, &with("dy", g), Some(x.dims)),
                Layer::MaxPool { .. } => self.step("max_pool", &with("dy", g), Some(x.dims)),
                Layer::AvgPool { .. } => self.step("avg_pool", &with("dy", g), Some(x.dims)),
                Layer::GlobalAvgPool => self.step("global_avg_pool", &with("dy", g), Some(x.dims)),
                Layer::Residual { body, .. } => {
                    let entered = inner.pop().unwrap();
                    let through = match projection(layer) {
                        Some(conv) => {
                            let d = self.list[self.at];
                            assert!(d.kernel.consts.contains(&("MASK", 0)), "{d}: half a gradient is masked");
                            // A convolution that skips pixels leaves its gradient where dy is.
                            let dense = (conv.kernel, conv.stride, conv.padding) == (1, 2, 0);
                            let dims = if dense { Dims { c: x.dims.c, ..g.dims } } else { x.dims };
                            self.step(&conv.name, &[("x", g)], Some(dims))
                        }
                        None => g,
                    };
                    self.backward(&Self::tape(body, &entered), inner, g, Some(through))
                }
                Layer::Relu => continue,
                _ => unreachable!(),
            };
            if !matches!(layer, Layer::Residual { .. }) {
                let d = self.list[at];
                let masks = d.kernel.consts.contains(&("MASK", 1)).then(|| binding(d, "signs").unwrap());
                assert_eq!(masks, x.signs, "{d}: masked by the signs of another ReLU");
            }
        }
        g
    }
}

/// Whether a layer does the ReLU behind it.
fn fuses(layer: &Layer) -> bool {
    matches!(layer, Layer::Conv2d(_) | Layer::Linear(_) | Layer::Affine { .. } | Layer::Residual { .. })
}

/// The convolution on a block's shortcut.
fn projection(layer: &Layer) -> Option<&Conv2d> {
    match layer {
        Layer::Residual { shortcut: Shortcut::Projection(layers), .. } => match &layers[..] {
            [Layer::Conv2d(c)] => Some(c),
            _ => panic!("a projection is one convolution"),
        },
        _ => None,
    }
}

/// What entered the layers of every residual body, by replaying the shapes and signs that the forward walk found.
fn check_liveness(plan: &Plan, model: &Model) {
    let mut walk = Walk { plan, list: all(plan), at: 0, slots: HashMap::new(), tags: 0 };
    let layers = match model.layers.split_first() {
        Some((Layer::Normalise { .. }, rest)) => rest,
        _ => &model.layers[..],
    };
    let image = walk.step("normalise", &[], Some(model.input));
    let mut tape = Vec::new();
    let z = walk.forward(layers, image, None, &mut tape);
    walk.step("logits", &[("x", z)], None);
    let mut dz = walk.step("cross_entropy", &[("x", z)], Some(z.dims));
    if plan.target().math.keeps_f16() {
        dz = walk.step("scale", &[("dy", dz)], Some(z.dims));
    }
    let mut inner = Vec::new();
    bodies(&mut Replay { plan, at: 1 }, layers, image, &mut inner);
    let dimage = walk.backward(&tape, &mut inner, dz, None);
    assert!(inner.is_empty());
    walk.step("normalise", &[("dy", dimage)], None);
    walk.step("start", &[], None);
    walk.step("step", &[], None);
    // (Workgroups may be too small for the last.)
    for layer in ["inspect", "inspect", "snap", "quantise", "quantise"].into_iter().take(plan.pixels.all().count()) {
        walk.step(layer, &[], None);
    }
    assert_eq!(walk.at, walk.list.len(), "dispatches are left over");
}

struct Replay<'a> {
    plan: &'a Plan,
    at: usize,
}

/// Pushes, for every residual block in forward order (an outer one after those inside it), what entered its body's layers.
fn bodies(r: &mut Replay<'_>, layers: &[Layer], mut x: Value, found: &mut Vec<Vec<Value>>) -> (Value, Vec<Value>) {
    let mut entered = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let fused = i > 0 && fuses(&layers[i - 1]);
        match layer {
            Layer::Flatten => continue,
            Layer::Relu if fused => continue,
            Layer::Relu => {}
            _ => entered.push(x),
        }
        let dims = layer.output(x.dims).unwrap();
        if let Layer::Residual { body, .. } = layer {
            if let Some(conv) = projection(layer) {
                r.at += r.plan.forward[r.at..].iter().take_while(|d| d.layer == conv.name).count();
            }
            let (y, inside) = bodies(r, body, x, found);
            found.push(inside);
            x = y;
            continue;
        }
        let first = &r.plan.forward[r.at];
        let signs = if first.kernel.consts.contains(&("RELU", 1)) { binding(first, "signs") } else { None };
        r.at += 1;
        while r.plan.forward.get(r.at).is_some_and(|d| d.layer == first.layer && binding(first, "w").is_some()) {
            r.at += 1;
        }
        x = Value { tag: 0, dims, signs };
    }
    (x, entered)
}

fn target(limits: Limits, storage: Storage, variant: Variant) -> Target {
    Target { limits, storage, variant, ..Target::default() }
}

fn check(plan: &Plan, model: &Model, memory: u64) {
    check_dispatches(plan);
    check_liveness(plan, model);
    check_limits(plan, memory);
}

/// What depends on limits: grids, loops, sizes, and the largest batch.
fn check_limits(plan: &Plan, memory: u64) {
    for d in plan.dispatches() {
        let [x, y, _] = d.grid.workgroups(1);
        assert!(u64::from(x.max(y)) <= plan.target().limits.workgroups && d.kernel.rounds() < MAX_ROUNDS, "{d}");
    }
    let limits = &plan.target().limits;
    for memory in [u64::MAX, memory] {
        match plan.largest_batch(memory) {
            Ok(n) => {
                let n = n as u64;
                assert!(n >= 1);
                fits(plan, n, memory).unwrap_or_else(|e| panic!("a batch of {n}: {e}\n{limits:?}\n{plan}"));
                let more = n == 1 << 30 || fits(plan, n + 1, memory).is_err();
                assert!(more, "{n} is not the largest batch\n{limits:?}\n{plan}");
            }
            Err(Error::OutOfMemory { .. }) => {
                assert!(memory != u64::MAX, "planned, but nothing fits");
                assert!(fits(plan, 1, memory).is_err(), "one sample fits\n{limits:?}\n{plan}");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_obeys_the_limits_or_says_why_there_is_none(seed in any::<u64>(), memory in 1_u64..1 << 32) {
        let mut maker = Maker { rng: Rng::new(seed), names: 0 };
        let model = maker.model();
        let limits = maker.limits();
        let storage = [Storage::Buffer, Storage::Texture][maker.rng.range(0, 1)];
        let (subgroup, is_software) = ([0, 4, 8, 32][maker.rng.range(0, 3)], maker.rng.range(0, 1) == 0);
        let math = [Math::F32, Math::Fast, Math::F16, Math::Coop][maker.rng.range(0, 3)];
        let (side, lanes) = [(8, 8), (16, 32), (16, 64)][maker.rng.range(0, 2)];
        let coop = Some(CoopMatrix { side, lanes });
        let registers = [128, 256][maker.rng.range(0, 1)];
        let device = Target { math, coop, subgroup, is_software, registers, ..target(limits, storage, Variant::Fast) };
        let tiles = Tile::all(&device);
        let tile = Variant::Only(tiles[maker.rng.range(0, tiles.len() - 1)]);
        let variant = [Variant::Naive, Variant::Fast, tile][maker.rng.range(0, 2)];
        match Plan::new(&model, &Target { variant, ..device }) {
            // The text of shaders takes most of the time, and depends on few of the numbers.
            // Winograd's three kernels for a layer are not replayed.
            Ok(plan) if seed % 8 == 0 && math != Math::Fast => check(&plan, &model, memory),
            Ok(plan) => check_limits(&plan, memory),
            Err(Error::Model { place, detail }) => prop_assert!(!place.is_empty() && !detail.is_empty()),
            Err(Error::OutOfMemory { what, .. }) => prop_assert!(!what.is_empty()),
            Err(e) => prop_assert!(false, "{e}"),
        }
    }
}

/// Winograd's convolutions, whose memory does not grow with the batch, at limits that are known and at tight ones.
#[test]
fn parts_of_a_batch_obey_the_limits() {
    let layers = vec![conv("a", 64, 72, 3, 1, 1), Layer::GlobalAvgPool, linear("z", 72, 3)];
    let model = model(Dims::new(64, 19, 32), layers);
    let (mut refused, mut planned) = (0, 0);
    for side in 5..16 {
        for limits in known_limits().into_iter().chain([Limits { workgroups: 7 * side, ..Limits::default() }]) {
            let limits = Limits { texture_side: limits.texture_side.min(1 << side), ..limits };
            let device = target(limits, Storage::Texture, Variant::Fast);
            let device = Target { math: Math::Fast, subgroup: 8, is_software: true, ..device };
            match Plan::new(&model, &device) {
                Ok(plan) => {
                    assert!(plan.is_fast());
                    check_limits(&plan, 1 << 25);
                    planned += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(planned > 10 && refused > 10, "{planned} planned, {refused} refused");
}

/// A limit that is met to the last workgroup and the last byte is no limit exceeded; one less is.
#[test]
fn limits_are_used_to_the_last() {
    // Of more classes than pixels logits are what takes most to be read back.
    let wide = model(Dims::new(1, 1, 1), vec![linear("z", 1, 1000)]);
    let limits = Limits { buffer: 1_000_000, ..Limits::default() };
    check_limits(&Plan::new(&wide, &target(limits, Storage::Buffer, Variant::Naive)).unwrap(), 1 << 30);
    let layers = vec![conv("a", 3, 64, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool, linear("z", 64, 4)];
    let model = model(Dims::new(3, 32, 32), layers);
    let planned = |limits: Limits| Plan::new(&model, &target(limits, Storage::Buffer, Variant::Naive));
    let plan = planned(Limits::default()).unwrap();
    let most = plan.dispatches().flat_map(|d| d.grid.workgroups(1)).max().unwrap();
    let with = |workgroups: u32| planned(Limits { workgroups: workgroups.into(), ..Limits::default() });
    assert!(with(most).is_ok() && with(most - 1).unwrap_err().to_string().contains("workgroups"));
    // Memory, with what rules remember and without.
    for n in [1, 7, 33] {
        let (bytes, more) = (plan.bytes(n), plan.remembered_bytes_per_sample());
        for (rule, memory) in [(Rule::Sign, bytes), (Rule::L2, bytes), (Rule::Momentum, bytes + n * more)] {
            assert_eq!(plan.largest_batch_of(rule, memory).unwrap() as u64, n, "{rule:?}");
            let less = plan.largest_batch_of(rule, memory - 1);
            assert!(less.is_err() == (n == 1) && less.is_ok_and(|less| less as u64 == n - 1) == (n > 1), "{rule:?}");
        }
    }
}

/// Rules that look at a sample as a whole take workgroups of 256: where there are none the others run all the same.
#[test]
fn a_device_of_small_workgroups_does_without_some_rules() {
    let model = model(Dims::new(1, 6, 6), vec![Layer::GlobalAvgPool, linear("z", 1, 2)]);
    for (workgroup_size, all) in [(64, false), (255, false), (256, true)] {
        let limits = Limits { workgroup_size, ..Limits::default() };
        let plan = Plan::new(&model, &target(limits, Storage::Buffer, Variant::Fast)).unwrap();
        assert_eq!((plan.rules.len(), plan.pixels.quantise_l2.is_some()), (if all { 9 } else { 0 }, all));
    }
}

/// The generator above must not live on refusals.
#[test]
fn most_random_models_can_be_planned() {
    let planned = (0..200)
        .filter(|seed| {
            let model = Maker { rng: Rng::new(*seed), names: 0 }.model();
            Plan::new(&model, &Target::default()).is_ok()
        })
        .count();
    assert!((100..200).contains(&planned), "{planned} of 200");
}

fn shipped() -> [Model; 2] {
    [
        weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap(),
        weights::load(include_bytes!("golden/resnet20-random.weights.safetensors")).unwrap(),
    ]
}

#[test]
fn the_shipped_networks_obey_everything() {
    for model in shipped() {
        for (storage, subgroup) in [(Storage::Buffer, 8), (Storage::Texture, 8), (Storage::Texture, 16)] {
            let device = Target { subgroup, ..target(Limits::default(), storage, Variant::Fast) };
            let tiles = Tile::all(&device).into_iter().map(Variant::Only);
            for variant in [Variant::Naive, Variant::Fast].into_iter().chain(tiles) {
                check(&Plan::new(&model, &Target { variant, ..device.clone() }).unwrap(), &model, 1 << 30);
            }
        }
    }
}

#[test]
fn memory_of_a_sample_stays_small() {
    for (model, most) in shipped().iter().zip([20_000, 500_000]) {
        let plan = Plan::new(model, &Target::default()).unwrap();
        println!("{}: {} bytes a sample", model.arch, plan.bytes_per_sample());
        assert!(plan.bytes_per_sample() <= most, "{plan}");
        let growth = plan.bytes(11) - plan.bytes(1);
        assert_eq!(growth, 10 * plan.bytes_per_sample());
    }
}

fn refused(model: &Model, limits: Limits) -> String {
    Plan::new(model, &target(limits, Storage::Buffer, Variant::Fast)).expect_err("must be refused").to_string()
}

/// Sizes whose products do not fit into 64 bits, in models that nobody checked: refused before anything is made of them.
#[test]
fn sizes_beyond_all_memory_are_refused_and_do_not_wrap_round() {
    let (half, root) = (usize::MAX / 2 + 1, 1_usize << 32);
    let empty = |input: Dims, layers: Vec<Layer>| {
        let named = |name: &str| (name.to_string(), Params::default());
        let params = BTreeMap::from([named("a"), named("z")]);
        Model { params, layers, ..model(input, Vec::new()) }
    };
    let small = Dims::new(1, 4, 4);
    for (input, layers) in [
        (Dims::new(root, root, 1), vec![Layer::GlobalAvgPool]),
        (Dims::new(2, half, 1), vec![Layer::Flatten, linear("z", 0, 2)]),
        (Dims::new(half, 2, 2), vec![Layer::Relu]),
        (small, vec![conv("a", 1, usize::MAX, 3, 1, 1), Layer::GlobalAvgPool, linear("z", usize::MAX, 2)]),
        (small, vec![conv("a", 1, half, 1, 1, 0), Layer::Flatten, linear("z", 0, 2)]),
        (small, vec![Layer::Flatten, linear("z", 16, usize::MAX)]),
        (small, vec![Layer::Flatten, linear("z", 16, 1 << 60)]),
        (Dims::new(8, 4, 4), vec![residual(vec![conv("a", 8, half, 1, 2, 0)], half - 8), Layer::GlobalAvgPool]),
    ] {
        let what = format!("{input} {layers:?}");
        let refused = Plan::new(&empty(input, layers), &Target::default()).expect_err(&what);
        assert!(matches!(refused, Error::Model { .. } | Error::OutOfMemory { .. }), "{what}: {refused}");
    }
}

/// Names come from whoever builds a network: none of their text is in a shader.
#[test]
fn no_name_reaches_a_shader() {
    let evil = "x; @compute @workgroup_size(1) fn evil() {} //# include secret";
    let layers = vec![conv(evil, 1, 4, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool, linear("evil\n//# end", 4, 3)];
    let plan = Plan::new(&model(Dims::new(1, 5, 5), layers), &Target::default()).unwrap();
    for d in plan.dispatches() {
        let text = d.kernel.source().unwrap().text;
        assert!(!text.contains("evil") && !text.contains("secret"), "{d}");
        assert!(d.kernel.consts.iter().all(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')));
    }
}

#[test]
fn what_cannot_run_is_refused_by_name() {
    let usual = Limits::default();
    // 65,568 workgroups of the step along x, more than there are.
    let wide = model(Dims::new(1, 2048, 2049), vec![Layer::GlobalAvgPool, linear("z", 1, 2)]);
    assert!(refused(&wide, usual.clone()).contains("workgroups"));
    // Loops that a software adapter would leave without a word.
    let mean = model(Dims::new(1, 200, 160), vec![Layer::GlobalAvgPool, linear("z", 1, 2)]);
    assert!(
        refused(&mean, usual.clone()).contains("global_avg_pool") && refused(&mean, usual.clone()).contains("rounds")
    );
    let long = model(Dims::new(1, 200, 160), vec![Layer::Flatten, linear("z", 32_000, 2)]);
    assert!(refused(&long, usual.clone()).contains("model: z"));
    // More channels than fit a uniform binding.
    let many = model(Dims::new(8200, 1, 1), vec![linear("z", 8200, 2)]);
    assert!(refused(&many, usual.clone()).contains("uniform"));
    // A ReLU at the end of a residual body would swallow the shortcut.
    let swallowed =
        vec![residual(vec![conv("a", 4, 4, 3, 1, 1), Layer::Relu], 0), Layer::GlobalAvgPool, linear("z", 4, 2)];
    assert!(refused(&model(Dims::new(4, 5, 5), swallowed), usual.clone()).contains("must end with a convolution"));
    // Models that were put together by hand.
    assert!(refused(&model(Dims::new(0, 4, 4), vec![Layer::Flatten]), usual.clone()).contains("input"));
    assert!(refused(&model(Dims::new(1, 1, 1), vec![]), usual.clone()).contains("layers"));
    assert!(refused(&model(Dims::new(1, 2, 2), vec![linear("z", 5, 2)]), usual.clone()).contains("model: z"));
    let mut short = model(Dims::new(1, 2, 2), vec![linear("z", 4, 2)]);
    short.params.get_mut("z").unwrap().weight.pop();
    assert!(refused(&short, usual.clone()).contains("model: z"));
    short.params.clear();
    assert!(refused(&short, usual.clone()).contains("model: z"));
    assert!(refused(&model(Dims::new(1, 2, 2), vec![Layer::Relu]), usual.clone()).contains("last layer"));
    // Logits are numbers, and of either sign.
    assert!(refused(&model(Dims::new(1, 2, 2), vec![conv("a", 1, 3, 1, 1, 0)]), usual.clone()).contains("last layer"));
    let positive = vec![Layer::Flatten, linear("z", 4, 3), Layer::Relu];
    assert!(refused(&model(Dims::new(1, 2, 2), positive), usual.clone()).contains("last layer"));
    let shortcut = Shortcut::Subsample { added: 12 };
    let odd = vec![Layer::Residual { body: vec![conv("a", 1, 13, 3, 2, 1)], shortcut }, Layer::GlobalAvgPool];
    assert!(refused(&model(Dims::new(1, 4, 4), odd), usual.clone()).contains("multiples of eight"));
    // Nothing fits.
    let small = model(Dims::new(3, 32, 32), vec![Layer::GlobalAvgPool, linear("z", 3, 2)]);
    assert!(refused(&small, Limits { storage_binding: 4096, ..usual.clone() }).contains("out of memory"));
    assert!(refused(&small, Limits { workgroup_size: 16, ..usual }).contains("invocations in a workgroup"));
}
