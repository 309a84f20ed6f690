//! `signstep eval`, run as a user runs it: the strongest attack counts for each sample, and nothing is left out silently.

#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names, within};
use safetensors::SafeTensors;
use serde_json::Value;
use signstep::data::{View, write_safetensors};
use std::collections::BTreeMap;
use std::fs;

/// Weak enough that each attack leaves some: what the next one adds shows.
const SET: &str = "--limit 80 --eps 0.07 --seed 3";
const WEAK: &str = "fgsm";
const STRONG: &str = "pgd:steps=4:restarts=2";

/// What `eval.safetensors` holds of every sample.
struct Found {
    broken_by: Vec<i64>,
    broken_by_float: Vec<i64>,
    labels: Vec<i64>,
    linf: Vec<f32>,
    adversarial: Vec<f32>,
}

impl Bench {
    /// Evaluates, and gives what was printed and what was written.
    fn eval(&self, options: &str, out: &str) -> (Value, Found) {
        let report = json(&self.ok(&format!("eval {options} --json --out {out}")));
        assert_eq!(names(&self.path(out)), ["eval.json", "eval.safetensors"]);
        let written = json(&fs::read_to_string(self.path(out).join("eval.json")).unwrap());
        assert_eq!(written, report);
        let bytes = fs::read(self.path(out).join("eval.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let whole = |name: &str| -> Vec<i64> {
            file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
        };
        let real = |name: &str| -> Vec<f32> {
            file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let success = |name: &str| file.tensor(name).unwrap().data().iter().map(|b| *b == 1).collect::<Vec<bool>>();
        let found = Found {
            broken_by: whole("broken_by"),
            broken_by_float: whole("broken_by_float"),
            labels: whole("labels"),
            linf: real("linf"),
            adversarial: real("adversarial"),
        };
        assert_eq!(success("success"), found.broken_by.iter().map(|b| *b >= 0).collect::<Vec<_>>());
        assert_eq!(success("success_float"), found.broken_by_float.iter().map(|b| *b >= 0).collect::<Vec<_>>());
        (report, found)
    }

    fn refused(&self, line: &str, code: i32, words: &[&str]) {
        program::refused(&self.run(line), line, code, words);
    }
}

fn count(report: &Value, pointer: &str) -> usize {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {report}")) as usize
}

#[test]
fn a_list_turns_what_any_of_its_attacks_turns_alone() {
    let bench = Bench::new();
    let (both, list) = bench.eval(&format!("{SET} --attacks {WEAK},{STRONG}"), "list");
    let (_, weak) = bench.eval(&format!("{SET} --attacks {WEAK}"), "weak");
    let (_, strong) = bench.eval(&format!("{SET} --attacks {STRONG}"), "strong");
    // The index of the first attack that turns a sample when it runs alone.
    let first = |weak: &[i64], strong: &[i64]| -> Vec<i64> {
        let pairs = weak.iter().zip(strong);
        pairs.map(|(w, s)| if *w != -1 { *w } else { if *s == 0 { 1 } else { *s } }).collect()
    };
    assert_eq!(list.broken_by, first(&weak.broken_by, &strong.broken_by));
    assert_eq!(list.broken_by_float, first(&weak.broken_by_float, &strong.broken_by_float));
    for index in [-1, 0, 1] {
        assert!(list.broken_by.contains(&index), "nothing shows: {:?}", list.broken_by);
    }

    // Only those that are left are tried, and the rows of the table follow from the samples.
    let turned = |by: &[i64], index| by.iter().filter(|b| **b == index).count();
    let done = |i: usize| weak.broken_by[i] != -1 && weak.broken_by_float[i] != -1;
    let left = (0..80).filter(|i| !done(*i)).count();
    assert_eq!(count(&both, "/attacks/0/tried"), count(&both, "/clean_accuracy/count"));
    assert_eq!(count(&both, "/attacks/1/tried"), left);
    assert_eq!(count(&both, "/attacks/1/turned"), turned(&list.broken_by, 1));
    assert_eq!(count(&both, "/attacks/1/turned_float"), turned(&list.broken_by_float, 1));
    assert_eq!(count(&both, "/robust_accuracy/count"), turned(&list.broken_by, -1));
    assert_eq!(count(&both, "/robust_accuracy_float/count"), turned(&list.broken_by_float, -1));
    assert_eq!(count(&both, "/attacks/0/gradients"), count(&both, "/attacks/0/tried"));

    // What is delivered for a turned sample is the image of the attack that turned it.
    let one = list.adversarial.len() / list.labels.len();
    for (i, by) in list.broken_by.iter().enumerate() {
        let image = |found: &Found| found.adversarial[i * one..(i + 1) * one].to_vec();
        match by {
            0 => assert!(image(&list) == image(&weak), "sample {i}"),
            1 => assert!(image(&list) == image(&strong), "sample {i}"),
            _ => {}
        }
    }
    let largest = list.linf.iter().copied().fold(0.0, f32::max);
    assert_eq!(both["evidence"]["max_linf"].as_f64().unwrap() as f32, largest);
    assert!(largest <= 17.0 / 255.0 + 1e-6 && both["evidence"]["eight_bit"] == true, "{}", both["evidence"]);
    assert_eq!((&both["is_autoattack"], &both["is_complete"]), (&false.into(), &true.into()));
}

#[test]
fn an_attack_alone_is_what_attack_makes_of_it() {
    let bench = Bench::new();
    let (_, alone) = bench.eval(&format!("{SET} --attacks {STRONG}"), "eval");
    bench.ok(&format!("attack --untargeted --method pgd --steps 4 --restarts 2 {SET} --out run"));
    let bytes = fs::read(bench.path("run/adversarial.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let images = file.tensor("adversarial").unwrap();
    let theirs: Vec<f32> = images.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!(theirs == alone.adversarial);
    let success: Vec<bool> = file.tensor("success").unwrap().data().iter().map(|b| *b == 1).collect();
    assert_eq!(success, alone.broken_by.iter().map(|b| *b == 0).collect::<Vec<_>>());
}

#[test]
fn results_do_not_depend_on_batch_and_chunk() {
    let bench = Bench::new();
    let run = |name: &str, options: &str| {
        let attacks = "nifgsm:steps=3,apgd-t:steps=5:classes=2,pgd:steps=3:targets=random";
        let (mut report, _) = bench.eval(&format!("{SET} --attacks {attacks} {options}"), name);
        for key in ["timing", "gpu_bytes"] {
            report.as_object_mut().unwrap().shift_remove(key).unwrap();
        }
        (report.to_string(), fs::read(bench.path(name).join("eval.safetensors")).unwrap())
    };
    let whole = run("whole", "");
    assert!(whole == run("chunks", "--chunk 7"), "chunks of 7");
    assert!(whole == run("batches", "--batch 5 --chunk 23"), "batches of 5");
}

#[test]
fn thresholds_decide_the_exit_code_and_the_answer_comes_first() {
    let bench = Bench::new();
    let line = format!("eval {SET} --attacks {WEAK}");
    let rate = |name: &str| json(&bench.ok(&format!("{line} --json")))[name]["rate"].as_f64().unwrap();
    let lower = rate("robust_accuracy").min(rate("robust_accuracy_float"));
    bench.ok(&format!("{line} --fail-under robust_accuracy={lower} --fail-under clean_accuracy=0.9"));
    let missed = format!("{line} --fail-under clean_accuracy=0 --fail-under robust_accuracy={}", lower + 1e-6);
    bench.refused(&missed, 1, &["robust_accuracy", "less than"]);
    assert!(String::from_utf8(bench.run(&missed).stdout).unwrap().contains("robust accuracy, float"));
    bench.refused(
        &format!("{line} --fail-under success_rate=0.5"),
        2,
        &["--fail-under", "success_rate", "robust_accuracy"],
    );
    bench.refused(&format!("{line} --fail-under robust_accuracy=45"), 2, &["--fail-under"]);
}

#[test]
fn what_does_not_fit_into_the_time_is_left_out_and_said() {
    let bench = Bench::new();
    let line = "eval --limit 8 --attacks fgsm,apgd --time-budget 0s";
    let output = bench.run(line);
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{errors}");
    assert!(text.contains("not run") && text.contains("incomplete: fgsm, apgd"), "{text}");
    assert!(errors.contains("warning: incomplete: fgsm, apgd"), "{errors}");
    // What was not tried cannot be promised.
    bench.refused(&format!("{line} --fail-under robust_accuracy=0.1"), 1, &["incomplete"]);
    bench.ok(&format!("{line} --fail-under clean_accuracy=0.5"));
    // It is not taken for the whole later.
    bench.ok(&format!("{line} --out out"));
    let report = json(&bench.ok("eval --limit 8 --attacks fgsm,apgd --json --out out"));
    assert_eq!(report["is_complete"], true);
    bench.refused("eval --time-budget soon", 2, &["--time-budget", "soon"]);
}

#[test]
fn requests_that_make_no_sense_are_usage_errors() {
    let bench = Bench::new();
    bench.refused("eval --attacks fgsm,nonsense", 2, &["--attacks", "nonsense", "apgd-t"]);
    bench.refused("eval --attacks pgd:steps=4294967295", 2, &["more than can be counted"]);
    bench.refused("eval --attacks fgsm,", 2, &["--attacks", "missing"]);
    bench.refused("eval --attacks pgd:stepz=4", 2, &["--attacks pgd:stepz=4", "stepz", "restarts"]);
    bench.refused("eval --attacks pgd:steps", 2, &["--attacks", "key=value"]);
    bench.refused("eval --attacks pgd:steps=-1", 2, &["--attacks", "steps=-1"]);
    bench.refused("eval --attacks fgsm:restarts=3", 2, &["--attacks fgsm:restarts=3"]);
    bench.refused("eval --attacks mifgsm --norm l2", 2, &["--attacks mifgsm", "linf"]);
    bench.refused("eval --attacks fgsm --suite autoattack", 2, &["--attacks", "--suite"]);
    bench.refused("eval --suite nonsense", 2, &["--suite", "autoattack"]);
    bench.refused("eval --eps inf", 2, &["--eps"]);
    bench.refused("eval --eps -1", 2, &["--eps"]);
    bench.refused("eval --norm l3", 2, &["--norm"]);
    bench.refused("eval --chunk 0", 2, &["--chunk"]);
    bench.refused("eval --memory x", 2, &["--memory"]);
    assert!(names(bench.folder.path()).is_empty());
}

#[test]
fn the_suite_is_run_whole() {
    let bench = Bench::new();
    let line = "eval --limit 2 --eps 0.02 --suite autoattack";
    let report = json(&bench.ok(&format!("{line} --json")));
    assert_eq!(report["is_autoattack"], true);

    let text = bench.ok(line);
    assert!(text.contains("AutoAttack: apgd") && !text.contains("not AutoAttack"), "{text}");
}

/// A network of three classes: nothing aims at more than two, and the suite, which would, is refused by name.
#[test]
fn no_more_classes_are_told_than_there_are() {
    let bench = Bench::new();
    let weights: Vec<f32> = (0..12).map(|i| (i % 5) as f32 - 2.0).collect();
    let tensors = [("l.weight", View::f32(&[3, 4], &weights)), ("l.bias", View::f32(&[3], &[0.0; 3]))];
    write_safetensors(&bench.path("net.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    fs::write(bench.path("net.toml"), "input = [1, 2, 2]\nlayers = ['flatten', { linear = 'l', outputs = 3 }]")
        .unwrap();
    let images = [("images", View::u8(&[3, 1, 2, 2], &[99; 12])), ("labels", View::i64(&[3], &[0, 1, 2]))];
    write_safetensors(&bench.path("data.safetensors"), &images, &BTreeMap::new()).unwrap();
    let line = "eval --model net.safetensors --arch net.toml --data data.safetensors";
    let report = json(&bench.ok(&format!("{line} --attacks fab-t:steps=2 --bounds none --json")));
    assert_eq!(report["attacks"][0]["description"], "fab-t (difference, 2 classes, 2 steps, 1 restart)");
    assert!(report["config"]["attacks"][0].as_str().unwrap().contains(":classes=2"), "{report}");
    assert_eq!(report["config"]["quantize"], false);
    bench.refused(&format!("{line} --suite autoattack"), 2, &["--suite autoattack: apgd-t: ", "needs 4 classes"]);
}

#[test]
fn a_folder_holds_one_evaluation() {
    let bench = Bench::new();
    let line = "eval --limit 8 --attacks fgsm --out a/b";
    bench.ok(line);
    let again = bench.run(&format!("{line} --json"));
    let errors = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.success() && errors.contains("holds this evaluation already"), "{errors}");
    let written = json(&fs::read_to_string(bench.path("a/b/eval.json")).unwrap());
    assert_eq!(json(&String::from_utf8(again.stdout).unwrap()), written);
    bench.refused(&format!("{line} --seed 1"), 8, &["config.seed is 0 there and 1 here", "--fresh", "--out"]);
    // What a killed process was writing goes with the next one.
    fs::write(bench.path("a/b/.eval.safetensors.77.tmp"), "x").unwrap();
    bench.ok(&format!("{line} --seed 1 --fresh"));
    assert_eq!(names(&bench.path("a/b")), ["eval.json", "eval.safetensors"]);
    // Tensors of other bytes are none of this evaluation.
    let (path, line) = (bench.path("a/b/eval.safetensors"), format!("{line} --seed 1"));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let tensors = within("a/b", "eval.safetensors");
    bench.refused(&line, 8, &[&tensors, "eval.json was written for", "--fresh"]);
    bench.ok(&format!("{line} --fresh"));
    assert!(fs::read(&path).unwrap() == whole);
    // Not ours: not touched.
    fs::create_dir(bench.path("c")).unwrap();
    fs::write(bench.path("c/eval.json"), "{}").unwrap();
    bench.refused("eval --limit 8 --attacks fgsm --fresh --out c", 8, &["no evaluation of this program"]);
    assert_eq!(fs::read(bench.path("c/eval.json")).unwrap(), b"{}");
    bench.refused("eval --limit 8 --attacks fgsm --out a/b/eval.json", 8, &["eval.json"]);
    // Without a folder nothing is written.
    bench.ok("eval --limit 8 --attacks fgsm");
    assert_eq!(names(bench.folder.path()), ["a", "c"]);
}

/// The attack under way is ended, and nothing is left of the evaluation.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_evaluation_and_leaves_nothing() {
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};
    let bench = Bench::new();
    let start = |line: &str, out: &str| {
        let mut child = bench.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let scratch = bench.path(out).join(".eval.images.tmp");
        // All clean images are kept: an attack is under way, or will be.
        while fs::metadata(&scratch).map_or(0, |facts| facts.len()) < 40 * 64 * 4 {
            assert!(child.try_wait().unwrap().is_none(), "ended before it was interrupted");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    };
    let interrupt = |child: &Child| {
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    };
    // Hours of it.
    let line = "eval --limit 40 --attacks pgd:steps=10000000 --eps 0.2 --out a/b";
    let child = start(line, "a/b");
    interrupt(&child);
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted: the evaluation is given up") && !said.contains("panicked"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(names(bench.folder.path()).is_empty());
    // An earlier evaluation stays as it was.
    bench.ok("eval --limit 40 --attacks fgsm --out kept");
    let before = fs::read(bench.path("kept/eval.safetensors")).unwrap();
    let child = start("eval --limit 40 --attacks pgd:steps=10000000 --eps 0.2 --out kept --fresh", "kept");
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(names(&bench.path("kept")), ["eval.json", "eval.safetensors"]);
    assert!(fs::read(bench.path("kept/eval.safetensors")).unwrap() == before);
}

#[test]
fn every_form_of_answer_and_the_reference_run() {
    let bench = Bench::new();
    let line = "eval --limit 6 --attacks fgsm,apgd:steps=3 --device reference";
    let text = bench.ok(line);
    for words in
        ["fgsm", "robust accuracy, float", "95 %:", "protocol: linf", "8-bit check: passed", "is not AutoAttack"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    let csv = bench.ok(&format!("{line} --format csv"));
    let rows: Vec<BTreeMap<&str, &str>> = {
        let mut lines = csv.lines();
        let names: Vec<&str> = lines.next().unwrap().split(',').collect();
        lines.map(|l| names.iter().copied().zip(l.split(',')).collect()).collect()
    };
    assert_eq!((rows.len(), rows[1]["attack"], rows[0]["samples"]), (2, "apgd:steps=3", "6"));
    assert!(bench.ok(&format!("{line} --format markdown")).contains("| apgd:steps=3 |"));
    let floats = json(&bench.ok(&format!("{line} --no-quantize --norm l2 --eps 1 --json --attacks pgd").replacen(
        "--attacks fgsm,apgd:steps=3 ",
        "",
        1,
    )));
    assert!(floats["evidence"]["eight_bit"].is_null() && floats["evidence"]["unsound_images"] == 0, "{floats}");
    assert_eq!(floats["robust_accuracy"], floats["robust_accuracy_float"]);
}
