//! Every kernel × shape × variant: checked against the naive kernel, then timed in rounds that are interleaved over all
//! rows.

use super::results::{KernelRow, ProbeRow, Spread};
use super::shape::{GRAMMAR, Pass, SHAPES, Shape};
use crate::Options;
use crate::cli::tell::counted;
use crate::coop;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::plan::{Math, Target, Tile, Tuning, Variant};
use crate::probe::{self, Probe};
use crate::trial::{self, Clock, Custom, Setup, Trial, Written};
use glob::Pattern;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Samples that a kernel is checked on: an odd number, so that whoever takes two at once meets an end.
const CHECKED: u32 = 3;

/// What a kernel is called that has no faster variant.
const ONLY: &str = "only";

/// Rows that a user asks for.
pub(super) struct Choice {
    pub kernels: Vec<String>,
    pub shapes: Vec<String>,
    pub variants: Vec<String>,
    pub storages: Vec<Storage>,
    pub maths: Vec<Math>,
    pub samples: u32,
}

/// A kernel of a user's own.
pub(super) struct Own {
    pub file: PathBuf,
    pub text: String,
    pub entry: String,
    pub grid: Option<(u32, u32)>,
    pub tolerance: Option<f64>,
}

/// Shape, place, arithmetic and pass.
type Key = (Shape, Storage, Math, &'static str);

/// One row before it is timed.
pub(super) struct Row {
    pub shape: Shape,
    pub variant: String,
    pub storage: Storage,
    pub math: Math,
    pub pass: Pass,
    pub samples: u32,
    custom: Option<Custom>,
    /// Runs in a measure, once that is known.
    runs: Option<u32>,
    time: Vec<f64>,
    wall: Vec<f64>,
}

/// The measured ceilings of a run.
pub(super) struct Ceilings {
    probes: Vec<Probe>,
    runs: Vec<Option<u32>>,
    /// Seconds of a run by the clock.
    time: Vec<Vec<f64>>,
    /// Seconds of wall time for one submission of one empty dispatch.
    submission: Vec<f64>,
}

/// What measures need to know.
pub(super) struct Bench<'a> {
    pub gpu: &'a Gpu,
    pub clock: Clock<'a>,
    pub device: Target,
    pub memory: u64,
    /// Tiles of whole steps; kernels are timed tile by tile.
    pub tuning: Tuning,
}

pub(super) fn name_of(storage: Storage) -> &'static str {
    match storage {
        Storage::Buffer => "buffer",
        Storage::Texture => "texture",
    }
}

impl Bench<'_> {
    fn software(&self) -> bool {
        self.gpu.summary().kind == "software"
    }

    /// What plans for the device are made for.
    fn target(&self, storage: Storage, variant: Variant, math: Math) -> Target {
        Target { storage, math, variant, ..self.device.clone() }
    }

    /// How networks are put on the device.
    pub(super) fn options(&self, math: Math) -> Options {
        Options { math, memory: self.memory, tuning: self.tuning.clone(), ..Options::default() }
    }

    /// Bytes that no cache holds.
    fn working_set(&self) -> u64 {
        if self.software() { 64 << 20 } else { 256 << 20 }
    }
}

/// Names of the kernels that networks use.
fn kernels() -> Vec<&'static str> {
    Kernel::entries().into_iter().filter(|e| !e.starts_with("probe_") && !e.ends_with("_check")).collect()
}

fn patterns(flag: &str, texts: &[String]) -> Result<Vec<Pattern>> {
    let read = |t: &String| Pattern::new(t).map_err(|e| Error::Usage(format!("{flag} {t}: {e}")));
    texts.iter().map(read).collect()
}

fn takes(patterns: &[Pattern], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|p| p.matches(name))
}

/// Every glob must name something.
fn check_names(flag: &str, patterns: &[Pattern], names: &[String]) -> Result<()> {
    match patterns.iter().find(|p| !names.iter().any(|n| p.matches(n))) {
        Some(p) => Err(Error::Usage(format!("{flag} {p}: there is none; there are {}", names.join(", ")))),
        None => Ok(()),
    }
}

/// Shapes by name or glob, in order, each once.
fn shapes(texts: &[String]) -> Result<Vec<Shape>> {
    let mut shapes: Vec<Shape> = Vec::new();
    let all = SHAPES.map(String::from);
    for text in if texts.is_empty() { &all[..] } else { texts } {
        let globs = text.contains(['*', '?', '[']);
        let pattern = patterns("--shape", std::slice::from_ref(text))?;
        let named: Vec<&str> = SHAPES.into_iter().filter(|s| globs && takes(&pattern, s)).collect();
        if globs && named.is_empty() {
            let known = SHAPES.join(", ");
            return Err(Error::Usage(format!("--shape {text}: none of {known}; others are written as {GRAMMAR}")));
        }
        for name in if globs { named } else { vec![text.as_str()] } {
            let shape = name.parse()?;
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
    }
    Ok(shapes)
}

/// Variants on a device, by name.
fn variants(target: &Target) -> Vec<Variant> {
    let tiles = Tile::all(target).into_iter().map(Variant::Only);
    [Variant::Naive, Variant::Fast].into_iter().chain(tiles).collect()
}

/// The rows asked for. A variant or an arithmetic that comes to the same kernel as one before it is left out.
pub(super) fn rows(bench: &Bench<'_>, choice: &Choice) -> Result<Vec<Row>> {
    let by_kernel = patterns("--kernel", &choice.kernels)?;
    check_names("--kernel", &by_kernel, &kernels().into_iter().map(String::from).collect::<Vec<_>>())?;
    let by_variant = patterns("--variant", &choice.variants)?;
    let every = variants(&bench.target(choice.storages[0], Variant::Fast, Math::F32));
    let every: Vec<String> = every.iter().map(ToString::to_string).collect();
    check_names("--variant", &by_variant, &every)?;
    let mut rows: Vec<Row> = Vec::new();
    for shape in shapes(&choice.shapes)? {
        let model = shape.model()?;
        for &storage in &choice.storages {
            let first = rows.len();
            let mut passes: Vec<&'static str> = Vec::new();
            let variants = variants(&bench.target(storage, Variant::Fast, Math::F32));
            for (&math, variant) in choice.maths.iter().flat_map(|math| variants.iter().map(move |v| (math, *v))) {
                if !takes(&by_variant, &variant.to_string()) {
                    continue;
                }
                for pass in shape.passes(&model, &bench.target(storage, variant, math))? {
                    if !passes.contains(&pass.name) {
                        passes.push(pass.name);
                    }
                    let known = rows[first..].iter_mut().find(|r| same(&r.pass.dispatches, &pass.dispatches));
                    match known {
                        Some(row) if variant == Variant::Fast && row.math == math => row.variant = ONLY.into(),
                        None if pass.names().any(|name| takes(&by_kernel, name)) => {
                            rows.push(Row::new(shape, variant.to_string(), storage, math, pass, choice.samples));
                        }
                        _ => {}
                    }
                }
            }
            // What computes the same stands together.
            rows[first..].sort_by_key(|r| passes.iter().position(|p| *p == r.pass.name));
        }
    }
    if rows.is_empty() {
        let (kernels, shapes) = (choice.kernels.join(", "), choice.shapes.join(", "));
        return Err(Error::Usage(format!("no kernel {kernels} runs on the shape {shapes} in the variants asked for")));
    }
    Ok(rows)
}

fn same(a: &[Dispatch], b: &[Dispatch]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.kernel == b.kernel && a.grid == b.grid)
}

/// Adds a kernel of a user's own in the place of the one naive kernel that was asked for, and keeps the rows beside it.
pub(super) fn add_own(bench: &Bench<'_>, rows: &mut Vec<Row>, own: &Own) -> Result<()> {
    let named: Vec<&Row> = rows.iter().filter(|r| r.is_naive()).collect();
    let [naive] = named[..] else {
        let names: Vec<String> = named.iter().map(|r| format!("{} on {}", r.pass.kernel(), r.shape)).collect();
        let which = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(Error::Usage(format!(
            "--wgsl stands in for one naive kernel on one shape: name them with --kernel and --shape (now: {which})"
        )));
    };
    let place = own.file.display().to_string();
    super::language::check(&own.text, &own.entry, &place)?;
    let mut pass = naive.pass.clone();
    if let Some((x, y)) = own.grid {
        pass.dispatches.iter_mut().for_each(|d| d.grid = Grid::PerSample(x, y));
    }
    let custom =
        Custom::compile(bench.gpu, &pass.dispatches[0], &own.entry, &own.text).map_err(|e| e.in_file(&place))?;
    let (shape, storage, math, samples) = (naive.shape, naive.storage, naive.math, naive.samples);
    let setup = Setup::once(CHECKED);
    let want = Trial::new(bench.gpu, &naive.pass.dispatches, &naive.pass.resources, &setup)?.outputs()?;
    let got = Trial::with_custom(bench.gpu, &pass.dispatches, &pass.resources, &setup, &custom)?.outputs()?;
    trial::compare(&got, &want, own.tolerance).map_err(|said| {
        Error::Threshold(format!("{place}: {} is not {} on {shape}: {said}", own.entry, naive.pass.kernel()))
    })?;
    let variant = own.file.file_stem().map_or_else(|| own.entry.clone(), |s| s.to_string_lossy().into_owned());
    let mut row = Row::new(shape, format!("own:{variant}"), storage, math, pass, samples);
    row.custom = Some(custom);
    rows.push(row);
    Ok(())
}

/// Checks every row against the naive kernel of its shape and place, bit by bit, before anything is timed. Rows that
/// are wrong are taken out, and told.
pub(super) fn check(bench: &Bench<'_>, rows: &mut Vec<Row>, mut told: impl FnMut(&Row)) -> Result<Vec<String>> {
    let outputs =
        |pass: &Pass| Trial::new(bench.gpu, &pass.dispatches, &pass.resources, &Setup::once(CHECKED))?.outputs();
    // What the naive kernel gives, of the shapes so far.
    let mut known: Vec<(Key, Vec<Written>)> = Vec::new();
    let mut wrong = Vec::new();
    let mut sound = Vec::new();
    for row in rows.drain(..) {
        told(&row);
        if row.custom.is_some() {
            sound.push(row);
            continue;
        }
        let got = outputs(&row.pass)?;
        if !known.iter().any(|(key, _)| *key == row.key()) {
            let want = if row.is_naive() { got.clone() } else { outputs(&naive(bench, &row)?)? };
            known.push((row.key(), want));
        }
        let (_, want) = known.iter().find(|(key, _)| *key == row.key()).expect("put there above");
        // Units that multiply matrices add up in an order of their own.
        let tolerance = (row.math == Math::Coop).then_some(coop::TOLERANCE);
        match trial::compare(&got, want, tolerance) {
            Ok(_) => sound.push(row),
            Err(said) => wrong.push(format!(
                "{} ({}) on {} is not what the naive kernel gives: {said}",
                row.pass.kernel(),
                row.variant(),
                row.shape
            )),
        }
    }
    *rows = sound;
    Ok(wrong)
}

/// The naive kernel of a row.
fn naive(bench: &Bench<'_>, row: &Row) -> Result<Pass> {
    let passes = row.shape.passes(&row.shape.model()?, &bench.target(row.storage, Variant::Naive, row.math))?;
    let same = passes.into_iter().find(|p| p.name == row.pass.name);
    same.ok_or_else(|| Error::Internal(format!("no naive {} on {}", row.pass.name, row.shape)))
}

/// Where rows are of fewer samples than were asked for, for their plans take no more at once: what there is to say of it.
pub(super) fn cut(rows: &[Row], asked: u32) -> Option<String> {
    let fewer = rows.iter().map(|row| row.samples).filter(|n| *n < asked);
    let (least, most) = (fewer.clone().min()?, fewer.clone().max()?);
    let number = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let (cut, all) = (fewer.count(), counted(rows.len() as u64, "row", "rows"));
    Some(format!("--samples {asked}: more than the device takes at once; {cut} of {all} have {number}"))
}

impl Row {
    fn new(shape: Shape, variant: String, storage: Storage, math: Math, pass: Pass, samples: u32) -> Self {
        let samples = samples.min(pass.most);
        let (time, wall) = (Vec::new(), Vec::new());
        Row { shape, variant, storage, math, pass, samples, custom: None, runs: None, time, wall }
    }

    /// What all rows have in common that must give the same bits.
    fn key(&self) -> Key {
        (self.shape, self.storage, self.math, self.pass.name)
    }

    /// The variant, and the arithmetic where it is not the usual one.
    fn variant(&self) -> String {
        match self.math {
            Math::F32 => self.variant.clone(),
            other => format!("{}, math {other}", self.variant),
        }
    }

    fn is_naive(&self) -> bool {
        self.variant == "naive" || self.variant == ONLY
    }

    /// One measure. Memory is made for it and given back, so that however many rows take turns, one is there at a time.
    pub(super) fn measure(&mut self, bench: &Bench<'_>) -> Result<()> {
        let setup = Setup { samples: self.samples, working_set: bench.working_set(), memory: bench.memory };
        let (dispatches, resources) = (&self.pass.dispatches, &self.pass.resources);
        let trial = match &self.custom {
            Some(custom) => Trial::with_custom(bench.gpu, dispatches, resources, &setup, custom)?,
            None => Trial::new(bench.gpu, dispatches, resources, &setup)?,
        };
        let runs = match self.runs {
            Some(runs) => {
                trial.time(&bench.clock, runs.div_ceil(4))?;
                runs
            }
            None => *self.runs.insert(trial.runs(&bench.clock)?),
        };
        let measure = trial.time(&bench.clock, runs)?;
        self.time.push(measure.time);
        self.wall.push(measure.wall);
        Ok(())
    }

    /// Seconds for one sample: rows of one shape need not have as many, for what limits them differs by variant.
    fn time_each(&self) -> f64 {
        Spread::of(&self.time).median / f64::from(self.samples)
    }

    /// The row as it is told, beside the ceilings of the same run; `naive` is what the naive kernel takes for a sample.
    pub(super) fn told(&self, ceilings: &Ceilings, naive: Option<f64>) -> KernelRow {
        let n = u64::from(self.samples);
        let time = Spread::of(&self.time);
        let (flops, bytes) = (self.pass.flops(n) as f64, self.pass.bytes(n) as f64);
        let least = [
            ("fma", flops / 1e9 / ceilings.median("fma")),
            ("copy", bytes / 1e9 / ceilings.copy(self.storage)),
            ("dispatch", self.pass.dispatches.len() as f64 * 1e-6 * ceilings.median("dispatch")),
        ];
        let (bound, least) = least.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("three");
        KernelRow {
            kernel: self.pass.kernel().into(),
            shape: self.shape.to_string(),
            variant: self.variant(),
            tile: self.pass.tile().filter(|_| self.custom.is_none()),
            storage: name_of(self.storage).into(),
            samples: self.samples,
            dispatches: self.pass.dispatches.len(),
            time,
            wall: Spread::of(&self.wall),
            gflops_per_s: (flops > 0.0).then(|| flops / time.median / 1e9),
            gbytes_per_s: bytes / time.median / 1e9,
            bound: bound.into(),
            share: least / time.median,
            speedup: naive.map(|naive| naive / self.time_each()),
        }
    }
}

/// All rows as they are told.
pub(super) fn told(rows: &[Row], ceilings: &Ceilings) -> Vec<KernelRow> {
    let naive = |row: &Row| {
        let same =
            |r: &&Row| r.is_naive() && (r.shape, r.storage, r.pass.name) == (row.shape, row.storage, row.pass.name);
        // Other arithmetic is held against f32, where that was timed too.
        rows.iter().filter(same).min_by_key(|r| r.math != Math::F32).map(Row::time_each)
    };
    rows.iter().map(|row| row.told(ceilings, naive(row).filter(|_| row.variant != ONLY))).collect()
}

impl Ceilings {
    /// Of the device as it does best, and copies wherever rows have their activations.
    pub(super) fn new(bench: &Bench<'_>, rows: &[Row]) -> Self {
        let mut probes = probe::all(bench.gpu.storage(), bench.software());
        let other = rows.iter().map(|r| r.storage).find(|s| *s != bench.gpu.storage());
        probes.extend(other.map(probe::copy_in));
        Ceilings {
            runs: vec![None; probes.len()],
            time: vec![Vec::new(); probes.len()],
            submission: Vec::new(),
            probes,
        }
    }

    /// One measure of each.
    pub(super) fn measure(&mut self, bench: &Bench<'_>) -> Result<()> {
        for (i, probe) in self.probes.iter().enumerate() {
            let trial = probe.trial(bench.gpu, bench.working_set(), bench.memory)?;
            let runs = match self.runs[i] {
                Some(runs) => runs,
                None => *self.runs[i].insert(trial.runs(&bench.clock)?),
            };
            trial.time(&bench.clock, runs.div_ceil(4))?;
            self.time[i].push(trial.time(&bench.clock, runs)?.time);
            if probe.name == "dispatch" {
                self.submission.push(trial.time(&bench.clock, 1)?.wall);
            }
        }
        Ok(())
    }

    fn spread(&self, i: usize) -> Spread {
        Spread::of(&self.time[i]).map(|seconds| self.probes[i].figure(seconds))
    }

    /// GB/s of copies where activations lie.
    fn copy(&self, storage: Storage) -> f64 {
        let name = probe::copy_in(storage).name;
        self.median(if self.probes.iter().any(|p| p.name == name) { name } else { "copy" })
    }

    fn median(&self, name: &str) -> f64 {
        let i = self.probes.iter().position(|p| p.name == name).expect("one of the probes");
        self.spread(i).median
    }

    pub(super) fn told(&self) -> Vec<ProbeRow> {
        let of = |name: &str, unit: &str, value| ProbeRow { name: name.into(), unit: unit.into(), value };
        let mut rows: Vec<ProbeRow> =
            self.probes.iter().enumerate().map(|(i, p)| of(p.name, p.unit, self.spread(i))).collect();
        rows.push(of("submission", "us wall", Spread::of(&self.submission).map(|s| s * 1e6)));
        rows
    }
}

/// The kernels of all rows, by names that files can have. Slices of one layer, which differ only in what they bind, are
/// one.
pub(super) fn by_name(rows: &[Row]) -> BTreeMap<String, &Kernel> {
    let kernels = rows
        .iter()
        .flat_map(|row| row.pass.dispatches.iter().map(move |d| (file_name(row, d.kernel.entry), &d.kernel)));
    kernels.collect()
}

/// A name for the files of one kernel of a row.
fn file_name(row: &Row, entry: &str) -> String {
    let name = format!("{entry}--{}--{}--{}", row.shape, row.variant().replace(", ", "-"), name_of(row.storage));
    Path::new(&name.replace(['/', '\\', ':', ' '], "_")).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_that_name_nothing_are_told_what_there_is() {
        let names = kernels().into_iter().map(String::from).collect::<Vec<_>>();
        let one = |text: &str| patterns("--kernel", &[text.to_string()]);
        assert!(check_names("--kernel", &one("conv2d_*").unwrap(), &names).is_ok());
        let error = check_names("--kernel", &one("nonsense*").unwrap(), &names).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("conv2d_forward, "), "{error}");
        assert_eq!(one("a[").unwrap_err().exit_code(), 2);
        assert!(!names.iter().any(|n| n.starts_with("probe_")));
        let many = |texts: &[&str]| shapes(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(many(&[]).unwrap().len(), SHAPES.len());
        assert_eq!(many(&["linear-*", "linear-64-10", "linear-7-9"]).unwrap().len(), 4);
        assert!(many(&["x*"]).unwrap_err().to_string().contains("conv3x3s1-3-16-32x32"));
        assert_eq!(many(&["conv3x3s1-0-4-8x8"]).unwrap_err().exit_code(), 2);
    }
}
