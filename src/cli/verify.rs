//! `signstep verify`: is the network here the network that was trained? Clean accuracy, and logits beside another
//! program's.

use super::engine::{Place, PlaceArgs, Runner};
use super::flags::{bytes, positive};
use super::forecast;
use super::images::{DataArgs, Images, load_images};
use super::network::{NetworkArgs, load_model};
use super::tell::{answer, answer_json};
use crate::attack::argmax;
use crate::error::{Error, Result};
use crate::report::{Device, TensorFile, blank, grouped, percent, wilson};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Logits to compare with: a .safetensors with `logits` (f32 or f64, [N, K]), or with that one tensor
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// How far logits may differ: A + R times the largest |logit| of the image
    #[arg(long, value_name = "A,R", default_value = "1e-5,1e-4", allow_hyphen_values = true, requires = "logits")]
    tolerance: String,
    /// Read only the first N images
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Largest number of images that run at once; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Largest memory on the host, and as much on the device, weights included: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G")]
    memory: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How far logits may differ: `absolute` + `relative` · the largest |logit| of the image.
///
/// By default 1e-5 and 1e-4: programs add up the same products in other orders, which over the few thousand terms of a
/// layer, and some twenty layers, leaves a relative error of about 1e-6 to 1e-5 of the largest values; a wrong layout,
/// another mean or an eps of batch norm that is not the same gives 1e-2 and more.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tolerance {
    absolute: f64,
    relative: f64,
}

impl Tolerance {
    fn parse(text: &str) -> Result<Self> {
        let number = |t: &str| t.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0);
        let pair = text.split_once(',').and_then(|(a, r)| Some((number(a)?, number(r)?)));
        let (absolute, relative) = pair.ok_or_else(|| {
            Error::Usage(format!("--tolerance {text}: two numbers of zero or more, such as 1e-5,1e-4"))
        })?;
        Ok(Tolerance { absolute, relative })
    }
}

/// A difference, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Worst {
    value: f64,
    sample: usize,
    class: usize,
}

impl Worst {
    /// Keeps the larger one; NaN is larger than everything.
    fn see(&mut self, value: f64, sample: usize, class: usize) {
        if value > self.value || (value.is_nan() && !self.value.is_nan()) {
            *self = Worst { value, sample, class };
        }
    }

    fn json(&self) -> Value {
        // JSON has no NaN: null stands for it.
        json!({ "value": self.value, "sample": self.sample, "class": self.class })
    }
}

/// What became of a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
struct Compared {
    samples: usize,
    /// Samples for which both programs say the same class.
    agree: usize,
    /// Largest |a − b|.
    absolute: Worst,
    /// Largest |a − b| over the largest |logit| of the sample.
    relative: Worst,
    /// Samples with a logit outside of the tolerance.
    outside: usize,
}

impl Compared {
    fn see(&mut self, sample: usize, ours: &[f32], theirs: &[f64], tolerance: Tolerance) {
        let top = theirs.iter().fold(0.0, |m: f64, z| m.max(z.abs()));
        let mut within = true;
        for (class, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let difference = (f64::from(*a) - b).abs();
            self.absolute.see(difference, sample, class);
            self.relative.see(if difference == 0.0 { 0.0 } else { difference / top }, sample, class);
            within &= difference.is_finite() && difference <= tolerance.absolute + tolerance.relative * top;
        }
        let best = |a: usize, b: usize| if theirs[b] > theirs[a] { b } else { a };
        let said = (0..theirs.len()).reduce(best).unwrap_or(0);
        self.samples += 1;
        self.agree += usize::from(argmax(ours) == said && theirs.iter().all(|z| !z.is_nan()));
        self.outside += usize::from(!within);
    }

    fn passed(&self) -> bool {
        self.outside == 0
    }
}

pub(super) fn run(args: &VerifyArgs) -> Result<()> {
    let tolerance = Tolerance::parse(&args.tolerance)?;
    positive("--limit", args.limit)?;
    positive("--batch", args.batch)?;
    let memory = bytes("--memory", &args.memory)?;
    let (model, facts) = load_model(&args.network)?;
    let images = load_images(&args.data, args.limit, &model)?;
    let theirs = args
        .logits
        .as_deref()
        .map(|file| Theirs::open(file, images.samples, args.limit.is_some(), model.logits()))
        .transpose()?;
    let place = Place::open(&args.place.device, args.place.math)?;
    let (arch, data) = (model.arch.clone(), images.facts(&model));
    let source = &data.source;
    let runner = place.load(model, args.batch, memory)?;
    let n = images.samples;
    let (correct, compared) = check(&runner, images, theirs, tolerance, memory)?;

    let device = place.device();
    let interval = wilson(correct, n).unwrap_or((0.0, 1.0));
    if args.json {
        let Device { name, backend, kind, driver } = &device;
        answer_json(&json!({
            "schema_version": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "math": place.math(),
            "model": { "arch": arch, "sha256": facts.sha256, "description_sha256": facts.description_sha256 },
            "data": { "source": source, "sha256": data.sha256, "resize": data.framing.resize, "crop": data.framing.crop },
            "samples": n,
            "clean_correct": correct,
            "clean_accuracy": correct as f64 / n as f64,
            "clean_accuracy_95": [interval.0, interval.1],
            "logits": compared.as_ref().map(|c| json!({
                "passed": c.passed(),
                "tolerance": { "absolute": tolerance.absolute, "relative": tolerance.relative },
                "samples_outside": c.outside,
                "argmax_agree": c.agree,
                "max_absolute": c.absolute.json(),
                "max_relative": c.relative.json(),
            })),
            "device": { "name": name, "backend": backend, "kind": kind, "driver": driver },
        }))?;
    } else {
        let mut table = blank(["", "", "", ""]);
        let (lo, hi) = (percent(Some(interval.0)), percent(Some(interval.1)));
        let of = |part: usize| format!("{} of {}", grouped(part as f64), grouped(n as f64));
        let rate = |part: usize| percent(Some(part as f64 / n as f64));
        table.add_row(["right when clean".into(), rate(correct), of(correct), format!("95 %: {lo} to {hi}")]);
        if let Some(c) = &compared {
            let at = |w: &Worst| format!("sample {}, class {}", w.sample, w.class);
            table.add_row(["says the same class".into(), rate(c.agree), of(c.agree), String::new()]);
            let worst = |what: &str, w: &Worst| [what.into(), format!("{:.2e}", w.value), String::new(), at(w)];
            table.add_row(worst("largest difference", &c.absolute));
            table.add_row(worst("relative to the image's largest logit", &c.relative));
            table.add_row(["outside of the tolerance".into(), rate(c.outside), of(c.outside), String::new()]);
        }
        answer(&format!("{arch} on {} ({}), {n} images of {source}\n{table}", device.name, device.backend))?;
    }
    match compared {
        Some(c) if !c.passed() => Err(Error::Threshold(format!(
            "logits of {} of {n} images differ by more than {} + {} of the image's largest logit",
            c.outside, tolerance.absolute, tolerance.relative
        ))),
        _ => Ok(()),
    }
}

/// Logits of another program.
struct Theirs {
    file: TensorFile,
    tensor: String,
}

impl Theirs {
    /// Opens a file of logits for `samples` images; where the data were `limited`, those of more may follow.
    fn open(path: &Path, samples: usize, limited: bool, classes: usize) -> Result<Self> {
        let place = path.display().to_string();
        let fail = |detail: String| Err(Error::Data { place: place.clone(), detail });
        let file = TensorFile::open(path)?;
        let is_float = |dtype: &str| matches!(dtype, "F32" | "F64");
        let mut tables: Vec<String> = file
            .slots()
            .into_iter()
            .filter(|s| s.shape.len() == 2 && is_float(&s.dtype.to_string()))
            .map(|s| s.name)
            .collect();
        if let Some(slot) = file.slots().into_iter().find(|s| s.name == "logits")
            && !tables.contains(&slot.name)
        {
            return fail(format!("logits: {} of shape {:?}; f32 or f64, [N, K] is expected", slot.dtype, slot.shape));
        }
        tables.sort();
        let tensor = match &tables[..] {
            _ if tables.iter().any(|t| t == "logits") => "logits".to_string(),
            [only] => only.clone(),
            [] => return fail("holds no `logits` (f32 or f64, [N, K])".into()),
            several => {
                return fail(format!("no tensor is called `logits`, and several could be: {}", several.join(", ")));
            }
        };
        let shape = file.shape(&tensor).unwrap_or_default().to_vec();
        if shape[1] != classes || shape[0] < samples || (shape[0] > samples && !limited) {
            return fail(format!("{tensor}: shape {shape:?}, but there are {samples} images of {classes} logits"));
        }
        Ok(Theirs { file, tensor })
    }
}

/// Counts what is right, and compares.
fn check(
    runner: &Runner,
    mut images: Images,
    mut theirs: Option<Theirs>,
    tolerance: Tolerance,
    memory: u64,
) -> Result<(usize, Option<Compared>)> {
    let (n, k) = (images.samples, runner.engine().model().logits());
    let held = forecast::images_in(memory, images.source.dims.len(), k);
    let (mut correct, mut compared) = (0, theirs.as_ref().map(|_| Compared::default()));
    let mut first = 0;
    while first < n {
        let end = (first + held.min(n)).min(n);
        let pixels = images.source.images(first..end)?;
        let ours = runner.engine().logits(&pixels)?;
        if theirs.is_none()
            && let Some((i, health)) = ours.health.iter().enumerate().find(|(_, h)| !h.is_healthy())
        {
            return Err(Error::NonFinite { sample: first + i, stage: health.describe().into() });
        }
        let rows: Vec<&[f32]> = ours.logits.chunks(k).collect();
        let labels = &images.source.labels[first..end];
        let right = |i: &usize| ours.health[*i].is_healthy() && argmax(rows[*i]) as i64 == labels[*i];
        correct += (0..rows.len()).filter(right).count();
        if let (Some(compared), Some(theirs)) = (&mut compared, &mut theirs) {
            let wanted = theirs.file.f64(&theirs.tensor, first..end)?;
            for (i, (ours, wanted)) in rows.iter().zip(wanted.chunks(k)).enumerate() {
                compared.see(first + i, ours, wanted, tolerance);
            }
        }
        first = end;
    }
    Ok((correct, compared))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIGHT: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-4 };

    fn compare(ours: &[f32], theirs: &[f64]) -> Compared {
        let mut compared = Compared::default();
        compared.see(3, ours, theirs, TIGHT);
        compared
    }

    #[test]
    fn differences_are_placed_and_measured_by_the_samples_largest_logit() {
        let c = compare(&[10.0, 0.0, 0.0], &[10.0, 0.0, 0.001]);
        assert!(c.passed() && c.agree == 1);
        assert_eq!((c.absolute.sample, c.absolute.class, c.absolute.value), (3, 2, 0.001));
        assert!((c.relative.value - 1e-4).abs() < 1e-12);
        assert!(!compare(&[10.0, 0.0, 0.0], &[10.0, 0.0, 0.002]).passed());
        assert!(compare(&[0.0], &[1e-5]).passed());
        assert_eq!(compare(&[1.0, 2.0], &[2.0, 1.0]).agree, 0);
    }

    #[test]
    fn nan_never_passes() {
        for (ours, theirs) in
            [([f32::NAN, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, f64::NAN]), ([f32::NAN; 2], [f64::NAN; 2])]
        {
            let mut c = compare(&ours, &theirs);
            assert!(!c.passed() && c.absolute.value.is_nan(), "{c:?}");
            c.see(4, &[1.0, 100.0], &[1.0, 1.0], TIGHT);
            assert!(c.absolute.value.is_nan() && c.absolute.sample == 3);
        }
        assert!(!compare(&[f32::INFINITY, 0.0], &[f64::INFINITY, 0.0]).passed(), "inf - inf is NaN");
        assert!(!compare(&[f32::INFINITY, 0.0], &[1.0, 0.0]).passed());
        assert!(!compare(&[1.0, 0.0], &[f64::INFINITY, 0.0]).passed());
    }

    #[test]
    fn a_tolerance_is_two_numbers() {
        assert_eq!(Tolerance::parse("1e-5,1e-4"), Ok(TIGHT));
        for bad in ["", "1", "1,", "nan,0", "-1,0", "inf,0", "1,2,3"] {
            assert_eq!(Tolerance::parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
