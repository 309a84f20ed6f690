//! Many radii in one run, and the smallest that turns each sample: every row is what a run of that radius alone gives.

#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;

/// Random starts, restarts and random targets: whatever followed a row instead of its sample would show.
const ATTACK: &str = "attack --method pgd --steps 3 --restarts 2 --seed 5";
const LIST: [&str; 4] = ["0", "0.05", "20/255", "0.15"];

/// `adversarial.safetensors` of a run.
struct Run(Vec<u8>);

impl Run {
    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn i64(&self, name: &str) -> Vec<i64> {
        self.bytes(name).as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }

    /// Every `each`-th row of a tensor of `rows` rows, from `first` on.
    fn rows(&self, name: &str, rows: usize, first: usize, each: usize) -> Vec<u8> {
        let bytes = self.bytes(name);
        bytes.chunks(bytes.len() / rows).skip(first).step_by(each).flatten().copied().collect()
    }
}

impl Bench {
    fn attack(&self, line: &str, out: &str) -> (Value, Run) {
        let report = json(&self.ok(&format!("{line} --json --out {out}")));
        (report, Run(fs::read(self.path(out).join("adversarial.safetensors")).unwrap()))
    }

    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "signstep {line}: {errors}");
        assert!(words.iter().all(|w| errors.contains(w)), "signstep {line}: {errors}");
    }
}

#[test]
fn rows_of_a_list_are_those_of_runs_of_one_radius() {
    let bench = Bench::new();
    let n = 30;
    let (report, list) = bench.attack(&format!("{ATTACK} --limit {n} --eps {}", LIST.join(",")), "list");
    assert_eq!(names(&bench.path("list")).iter().filter(|name| *name == "curve.svg").count(), 1);
    assert_eq!(names(&bench.path("list/images")).len(), n * LIST.len());
    assert_eq!(list.i64("sample"), (0..n * LIST.len()).map(|row| (row / LIST.len()) as i64).collect::<Vec<_>>());
    let eps = list.f32("eps");
    assert!((eps[2] - 20.0 / 255.0).abs() < 1e-8 && eps[0] == 0.0 && eps[4..8] == eps[..4]);
    let mut robust = Vec::new();
    for (j, eps) in LIST.iter().enumerate() {
        let (alone, run) = bench.attack(&format!("{ATTACK} --limit {n} --eps {eps}"), &format!("alone-{j}"));
        for name in ["adversarial", "adversarial_logits", "clean", "labels", "targets", "success", "loss", "linf", "l2"]
        {
            assert!(list.rows(name, n * LIST.len(), j, LIST.len()) == run.bytes(name), "{name} at eps {eps}");
        }
        let row = &report["eps"][j];
        for name in [
            "samples",
            "successes",
            "robust",
            "robust_float",
            "max_perturbation",
            "max_l2",
            "success_rate",
            "effective_eps",
        ] {
            assert_eq!(row[name], alone[name], "{name} at eps {eps}");
        }
        assert_eq!((&row["eps"], &row["step_size"]), (&alone["config"]["eps"], &alone["config"]["step_size"]));
        assert!(!run.has("eps") && !run.has("sample") && alone["eps"].is_null());
        robust.push(row["robust"].as_u64().unwrap());
        // What is told of the whole run is told of the largest radius.
        if j == LIST.len() - 1 {
            assert_eq!((&report["success_rate"], &report["attacked"]), (&alone["success_rate"], &alone["attacked"]));
        }
    }
    assert_eq!(report["eps"][0]["max_perturbation"], 0.0);
    assert!(robust.windows(2).all(|w| w[0] >= w[1]) && robust[0] > robust[3], "{robust:?}");
}

#[test]
fn a_list_in_parts_is_the_list_in_one() {
    let bench = Bench::new();
    let line = format!("{ATTACK} --limit 17 --eps 0.2,0,0.05");
    let (_, whole) = bench.attack(&line, "whole");
    let (_, parts) = bench.attack(&format!("{line} --chunk 5 --batch 4"), "parts");
    assert!(whole.0 == parts.0);
    for shard in 0..3 {
        bench.ok(&format!("{line} --shard {shard}/3 --out shard-{shard}"));
    }
    bench.ok("merge shard-2 shard-0 shard-1 --out merged");
    let same = |name: &str| {
        let read = |out: &str| fs::read(bench.path(out).join(name)).unwrap();
        assert!(read("whole") == read("parts") && read("whole") == read("merged"), "{name}");
    };
    ["adversarial.safetensors", "samples.csv", "sheet.png", "curve.svg"].into_iter().for_each(same);
    assert_eq!(names(&bench.path("merged/images")), names(&bench.path("whole/images")));
    let lasting = |out: &str| {
        let mut report = json(&fs::read_to_string(bench.path(out).join("report.json")).unwrap());
        for key in ["timing", "device", "gpu_bytes"] {
            report.as_object_mut().unwrap().shift_remove(key);
        }
        report.to_string()
    };
    assert!(lasting("whole") == lasting("parts") && lasting("whole") == lasting("merged"));
    let lines = fs::read_to_string(bench.path("whole/samples.csv")).unwrap();
    assert_eq!(lines.lines().count(), 1 + 17 * 3);
    assert!(lines.starts_with("id,") && lines.lines().next().unwrap().ends_with(",l2,eps"), "{lines}");
}

#[test]
fn a_list_is_told_line_by_line_and_drawn() {
    let bench = Bench::new();
    let line = "attack --limit 20 --method fgsm --untargeted --eps 0,1/255,20/255,60/255";
    let text = bench.ok(line);
    for words in ["eps 0, 1/255, 20/255, 60/255", "robust (8 bit)", "robust (float)", "95 %", "curve.svg"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let svg = fs::read_to_string(bench.path("signstep-out/curve.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("robust accuracy"), "{svg}");
    assert!(svg.matches("<polyline").count() >= 2 && svg.contains("<polygon"), "{svg}");
    let csv = bench.ok(&format!("{line} --format csv"));
    assert_eq!(csv.lines().count(), 5, "{csv}");
    // Names of devices may hold commas, and then are quoted.
    let fields = |l: &str| l.split('"').step_by(2).map(|part| part.matches(',').count()).sum::<usize>();
    assert!(csv.lines().all(|l| fields(l) == 33), "{csv}");
    let markdown = bench.ok(&format!("{line} --format markdown"));
    assert!(markdown.contains("| 60/255 |"), "{markdown}");
    bench.refused("attack --eps 0.1,0.1", &["--eps", "twice"]);
    bench.refused("attack --eps 0.1,", &["--eps"]);
    bench.refused("attack --eps 0.1,inf --step-size 0.1", &["--eps", "inf"]);
    bench.refused("attack --eps 0.1,x", &["--eps", "x"]);
}

/// Success at the smallest radius, none one grey level below: by runs of that radius alone.
#[test]
fn the_smallest_radius_turns_and_the_one_below_does_not() {
    let bench = Bench::new();
    let n = 16;
    let line = format!("{ATTACK} --limit {n} --untargeted");
    let (report, least) = bench.attack(&format!("{line} --min-eps --eps 30/255"), "least");
    let min_eps = least.f32("min_eps");
    let levels: Vec<Option<u32>> =
        min_eps.iter().map(|e| e.is_finite().then(|| (f64::from(*e) * 255.0).round() as u32)).collect();
    assert!(levels.iter().flatten().all(|k| (1..=30).contains(k)) && levels.contains(&None), "{levels:?}");
    let success: Vec<bool> = least.bytes("success").iter().map(|b| *b == 1).collect();
    assert_eq!(success, levels.iter().map(Option::is_some).collect::<Vec<_>>());
    assert_eq!(report["successes"], success.iter().filter(|s| **s).count());
    let counts: Vec<u64> =
        report["min_eps"]["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).collect();
    assert_eq!(counts.len(), 30);
    assert_eq!(counts.iter().sum::<u64>() as usize, success.iter().filter(|s| **s).count());

    // All radii at once, each what it is alone.
    let all: Vec<String> = (1..=30).map(|k| format!("{k}/255")).collect();
    let (_, list) = bench.attack(&format!("{line} --eps {}", all.join(",")), "all");
    let turned = list.bytes("success");
    let at = |i: usize, k: u32| turned[i * 30 + k as usize - 1] == 1;
    let (images, delivered) = (list.f32("adversarial"), least.f32("adversarial"));
    let one = delivered.len() / n;
    for (i, level) in levels.iter().enumerate() {
        match level {
            Some(k) => {
                assert!(at(i, *k), "sample {i} is not turned at {k}/255");
                assert!(*k == 1 || !at(i, k - 1), "sample {i} is turned at {}/255 already", k - 1);
                let row = i * 30 + *k as usize - 1;
                assert!(delivered[i * one..(i + 1) * one] == images[row * one..(row + 1) * one], "sample {i}");
            }
            None => assert!(!at(i, 30), "sample {i} is turned at 30/255"),
        }
    }

    // In parts, the same.
    let (told, parts) = bench.attack(&format!("{line} --min-eps --eps 30/255 --chunk 3 --batch 2"), "parts");
    assert!(parts.0 == least.0);
    assert_eq!(told["min_eps"], report["min_eps"]);
    let text = bench.ok(&format!("{line} --min-eps --eps 30/255 --out least"));
    for words in ["three quarters", "turned at all", "the smallest up to 30/255"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn smallest_radii_in_l2_and_for_targets() {
    let bench = Bench::new();
    let (_, l2) =
        bench.attack("attack --limit 6 --norm l2 --method pgd --steps 4 --untargeted --min-eps --eps 2", "l2");
    let (min_eps, length) = (l2.f32("min_eps"), l2.f32("l2"));
    for (eps, length) in min_eps.iter().zip(length) {
        assert!(eps.is_infinite() || (eps * 32.0).fract() == 0.0 && length <= eps + 1e-4, "{eps} {length}");
    }
    assert!(min_eps.iter().any(|e| e.is_finite()), "{min_eps:?}");
    // Targets stay those of the sample on its whole way.
    let (_, aimed) = bench.attack("attack --limit 6 --min-eps", "aimed");
    let (_, plain) = bench.attack("attack --limit 6", "plain");
    assert!(aimed.bytes("targets") == plain.bytes("targets"));
    bench.refused("attack --min-eps --eps 0.1,0.2", &["--min-eps", "several"]);
    bench.refused("attack --min-eps --eps 0.001", &["--min-eps", "grey level"]);
    bench.refused("attack --min-eps --eps inf --step-size 1", &["--min-eps", "finite"]);
    bench.refused("attack --min-eps --attack-all", &["--min-eps", "--attack-all"]);
}
