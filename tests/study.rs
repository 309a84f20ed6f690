//! `signstep study`, run as a user runs it: rows 1 to 3 are the same bits, and verdicts say what the numbers say.

#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names, refused};
use safetensors::SafeTensors;
use serde_json::Value;
use signstep::study::verdict::{Words, baseline, example, verdict};
use signstep::study::{Effect, Numbers};
use signstep::{Adapter, Attack, Gpu, Network, Targets};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights");

/// The row with this id.
fn row<'a>(study: &'a Value, id: &str) -> &'a Value {
    let rows = study["rows"].as_array().unwrap();
    rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no row {id} in {study}"))
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn integers(file: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// What must be the same in two runs of one study.
fn without_times(mut study: Value) -> Value {
    for name in ["timing", "device", "gpu_bytes"] {
        study.as_object_mut().unwrap().shift_remove(name).unwrap_or_else(|| panic!("no {name}"));
    }
    study
}

#[test]
fn one_at_a_time_a_mean_and_own_updates_give_the_same_bits() {
    let bench = Bench::new();
    let study = json(&bench.ok("study --rows 1-3 --limit 80 --json --tensors --out run"));
    assert_eq!(names(&bench.path("run")), ["study.json", "study.md", "study.safetensors"]);
    for id in ["2", "3"] {
        let row = row(&study, id);
        assert_eq!((&row["same_bits"], &row["against"]), (&true.into(), &"1".into()), "{row}");
        assert_eq!((row["first_signs_differ"].as_f64(), row["signs_differ"].as_f64()), (Some(0.0), Some(0.0)));
        assert!(row["verdict"].as_str().unwrap().starts_with("Bit for bit the images of row 1"), "{row}");
    }

    // What the study says of itself holds for what it wrote, and for an attack that knows nothing of studies.
    let bytes = fs::read(bench.path("run/study.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let [alone, mean, own] = ["1", "2", "3"].map(|id| floats(&file, &format!("{id}.images")));
    let (images, labels) = (floats(&file, "rows.images"), integers(&file, "rows.labels"));
    let targets = integers(&file, "rows.targets");
    assert_eq!((labels.len(), study["samples"].as_u64()), (64, Some(64)));
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let net = Network::load(&gpu, &fs::read(format!("{WEIGHTS}/digits-cnn.safetensors")).unwrap()).unwrap();
    let attack = Attack::ifgsm(0.3).steps(10).targets(Targets::Classes(targets)).quantise(false);
    let out = attack.run(&net, &images, &labels).unwrap();
    for images in [&alone, &mean, &own] {
        assert_eq!(bits(images), bits(&out.adversarial));
    }
    assert!(bits(&alone) != bits(&images));
    let hits = out.success_float.iter().filter(|hit| **hit).count();
    assert_eq!(row(&study, "1")["successes"].as_u64(), Some(hits as u64));
}

#[test]
fn mechanisms_show_what_they_do() {
    let bench = Bench::new();
    let study = json(&bench.ok("study --rows 4-13 --limit 150 --json"));
    let rate = |id: &str| row(&study, id)["success_rate"].as_f64().unwrap();
    let loss = |id: &str, when: &str| row(&study, id)[when].as_f64().unwrap();
    // 4: the wrong way raises the loss. 5: the more share a perturbation, the fewer hits.
    assert!(loss("4", "loss_after") > loss("4", "loss_before") && rate("4") < 0.05, "{}", row(&study, "4"));
    assert!(rate("5b") < rate("5a") + 0.05 && rate("5a") < 0.5, "{}", row(&study, "5a"));
    // 6: opposite targets in one batch do not meet, in one perturbation they do.
    assert_eq!(row(&study, "6b")["same_bits"], true);
    assert!(rate("6c") < rate("6b"), "{}", row(&study, "6c"));
    // 6 and 7: these weights have no batch norm, and the rows say so without numbers.
    for id in ["6e", "7"] {
        let row = row(&study, id);
        assert_eq!(
            (&row["verdict"], row.get("success_rate")),
            (&"Not run: this network has no batch norm.".into(), None)
        );
    }
    // 8: what is lost grows with the batch, and scaling brings it back.
    let lost: Vec<f64> =
        "abcd".chars().map(|c| row(&study, &format!("8{c}"))["facts"]["underflow"].as_f64().unwrap()).collect();
    assert!(lost[..3].is_sorted() && lost[2] > 0.0 && lost[3] <= lost[0], "{lost:?}");
    // 10: a mean shortens steps that nothing normalises. 11: a batch that stops with its first success leaves the others.
    assert!(rate("10c") < rate("10b") && rate("11b") < rate("11a"), "{study}");
    let steps = |id: &str| row(&study, id)["facts"]["steps_an_image"].as_f64().unwrap();
    assert!(steps("11b") < steps("11a") && steps("11a") < 10.0);
    // 12: numbers of an image's own make its place not matter; 13: only truncation leaves the ball.
    assert_eq!((&row(&study, "12b")["same_bits"], &row(&study, "12d")["same_bits"]), (&true.into(), &false.into()));
    assert_eq!(row(&study, "13a")["facts"]["outside"], 0.0);
    assert!(row(&study, "13b")["facts"]["outside"].as_f64().unwrap() > 0.0);
    assert!(row(&study, "13b")["facts"]["other_bytes"].as_f64().unwrap() > 0.0);
}

/// ResNet-20 on the images of its golden, labelled as it sees them.
fn resnet20(bench: &Bench) {
    let path = format!("{}/tests/golden/resnet20-cifar10.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = fs::read(path).unwrap();
    let images = floats(&SafeTensors::deserialize(&bytes).unwrap(), "images");
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let weights = fs::read(format!("{WEIGHTS}/resnet20-cifar10.safetensors")).unwrap();
    let seen = Network::load(&gpu, &weights).unwrap();
    let logits = signstep::attack::Engine::logits(&seen, &images).unwrap().logits;
    let labels: Vec<i64> = logits.chunks(10).map(|z| signstep::attack::argmax(z) as i64).collect();
    let n = labels.len();
    let views = [
        ("images", signstep::data::View::f32(&[n, 3, 32, 32], &images)),
        ("labels", signstep::data::View::i64(&[n], &labels)),
    ];
    signstep::data::write_safetensors(&bench.path("data.safetensors"), &views, &Default::default()).unwrap();
}

#[test]
fn batch_statistics_couple_and_nothing_else_does() {
    let bench = Bench::new();
    resnet20(&bench);
    let line = format!(
        "study --rows 3,7 --limit 4 --eps 8/255 --json --model {WEIGHTS}/resnet20-cifar10.safetensors --data data.safetensors"
    );
    let study = json(&bench.ok(&line));
    assert_eq!((study["samples"].as_u64(), study["config"]["minibatch"].as_u64()), (Some(4), Some(2)));
    assert_eq!(row(&study, "3")["same_bits"], true);
    for id in ["7a", "7b"] {
        let row = row(&study, id);
        assert_eq!(row["same_bits"], false);
        assert!(row["first_signs_differ"].as_f64().unwrap() > 0.05, "{row}");
    }
    let changed = row(&study, "7b")["facts"]["changed_by_neighbours"].as_f64().unwrap();
    assert!(changed > 0.01, "{changed}");
}

#[test]
fn the_examples_differ_by_their_mode_not_by_their_mean() {
    let bench = Bench::new();
    let study = json(&bench.ok("study --rows 0 --examples 2 --limit 2 --json"));
    let loss = |id: &str, when: &str| row(&study, id)[when].as_f64().unwrap();
    // Training mode is a to c and j to l, evaluation mode d to i; +α is a to f.
    for (second, third, is_training) in
        [("0b", "0c", true), ("0e", "0f", false), ("0h", "0i", false), ("0k", "0l", true)]
    {
        assert_eq!(row(&study, second)["same_bits"], !is_training, "{}", row(&study, second));
        assert_eq!(row(&study, third)["facts"]["equals_example_2"], 1.0);
        let differ = row(&study, second)["signs_differ"].as_f64().unwrap();
        assert!(if is_training { differ > 0.1 } else { differ == 0.0 }, "{second}: {differ}");
    }
    for (id, rises) in [("0d", true), ("0e", true), ("0g", false), ("0h", false)] {
        assert_eq!(loss(id, "loss_after") > loss(id, "loss_before"), rises, "{}", row(&study, id));
    }
}

fn numbers(samples: usize, successes: usize, loss: (f64, f64)) -> Numbers {
    let judged = |hits: usize, loss: f64| signstep::study::batch::Judged {
        hits: (0..samples).map(|i| i < hits).collect(),
        loss: vec![loss as f32; samples],
    };
    Numbers::new(&judged(0, loss.0), &judged(successes, loss.1))
}

#[test]
fn verdicts_follow_the_numbers() {
    let words = Words { harm: "it hurts", harmless: "it does nothing", same: "nothing moved" };
    let base = numbers(100, 90, (5.0, 0.5));
    let say = |row: &Numbers| verdict(row, &base, "row 1", &words);

    let same = Numbers { same_bits: Some(true), ..base.clone() };
    assert_eq!(say(&same), "Bit for bit the images of row 1: nothing moved.");
    // As many hits, but other bits: the claim of the same bits goes.
    let other = Numbers { same_bits: Some(false), ..base.clone() };
    assert_eq!(say(&other), "It does nothing: as many hits as in row 1.");
    let fewer = numbers(100, 10, (5.0, 3.0));
    assert_eq!(say(&fewer), "It hurts: success falls from 90.0 % in row 1 to 10.0 %.");
    let away = numbers(100, 0, (5.0, 9.0));
    assert!(say(&away).ends_with("The target's loss rises from 5.00 to 9.00."));
    let close = numbers(100, 89, (5.0, 0.6));
    assert_eq!(say(&close), "It does nothing: success 89.0 % beside 90.0 % in row 1.");
    let undecided = numbers(100, 85, (5.0, 0.6));
    assert!(say(&undecided).starts_with("Undecided: success 85.0 % beside 90.0 %"), "{}", say(&undecided));
    let better = verdict(&base, &fewer, "row 1", &words);
    assert_eq!(better, "Success is 90.0 %, higher than the 10.0 % of row 1.");
    assert_eq!(Effect::of(&fewer, &base), Effect::Worse);
    assert_eq!(Effect::of(&base, &fewer), Effect::Better);
    // With few images the same rates say nothing.
    assert_eq!(Effect::of(&numbers(4, 2, (5.0, 1.0)), &numbers(4, 4, (5.0, 1.0))), Effect::Alike);

    assert!(baseline(&base).contains("falls from 5.00 to 0.50, and 90 of 100"));
    assert!(baseline(&away).contains("rises from 5.00 to 9.00, and 0 of 100"));
    // A small rise shows, too.
    assert!(baseline(&numbers(10, 0, (2.0, 2.001))).contains("rises from 2.0000 to 2.0010"));
    assert!(
        example(&base.clone().fact("hits_before", 2.0))
            .ends_with("90 of 100 reach their targets. 2 did so from the start.")
    );
    let agrees =
        Numbers { same_bits: Some(true), signs_differ: Some(0.0), ..base.clone() }.fact("equals_example_2", 1.0);
    assert!(example(&agrees).ends_with("Bit for bit example 1. Bit for bit example 2."));
    let differs = Numbers { same_bits: Some(false), signs_differ: Some(0.9), ..base }.fact("equals_example_2", 0.0);
    assert!(
        example(&differs)
            .ends_with("moves 90.00 % of the pixels another way than example 1 does. Not the bits of example 2.")
    );
}

#[test]
fn the_same_seed_gives_the_same_study_and_another_one_another() {
    let bench = Bench::new();
    let run = |options: &str, out: &str| -> Value {
        let printed = json(&bench.ok(&format!("study --rows 1,5,12,figures --limit 20 --json --out {out} {options}")));
        let written = json(&fs::read_to_string(bench.path(out).join("study.json")).unwrap());
        assert_eq!(printed, written);
        without_times(written)
    };
    let (one, two, other) = (run("", "a"), run("", "b"), run("--seed 1", "c"));
    assert_eq!(one, two);
    assert!(one["rows"] != other["rows"]);
    assert_eq!(names(&bench.path("a")), ["steps.svg", "study.json", "study.md", "success.svg"]);
    for name in ["steps.svg", "success.svg", "study.md"] {
        let bytes = |folder: &str| fs::read(bench.path(folder).join(name)).unwrap();
        assert!(bytes("a") == bytes("b"), "{name}");
    }
    let figure = fs::read_to_string(bench.path("a/success.svg")).unwrap();
    for word in ["images in a batch", "own gradients", "one shared perturbation", "this network has no batch norm"] {
        assert!(figure.contains(word), "{word}");
    }

    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        keys(&one),
        "schema_version version math config model data samples snapped rows success_by_batch steps files"
    );
    assert_eq!(
        keys(row(&one, "5a")),
        "id experiment against samples successes success_rate success_95 loss_before loss_after first_signs_differ signs_differ \
         same_bits verdict"
    );
    let lines = one["success_by_batch"].as_array().unwrap();
    assert_eq!(lines.len(), 5);
    let own = &lines[0]["points"];
    assert_eq!(
        own.as_array().unwrap().iter().map(|p| p["batch"].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 2, 4, 8, 16]
    );
    assert!(own.as_array().unwrap().iter().all(|p| p["same_bits"] == true), "{own}");
    assert_eq!(one["steps"][0]["loss"].as_array().unwrap().len(), 21);

    // The same again is told from the folder; another one is refused, and neither changes it.
    let before = fs::read(bench.path("a/study.json")).unwrap();
    assert_eq!(run("", "a"), one);
    let line = "study --rows 1 --limit 20 --out a";
    refused(&bench.run(line), line, 8, &["another study", "config.rows"]);
    assert_eq!(fs::read(bench.path("a/study.json")).unwrap(), before);
    bench.ok("study --rows 1 --limit 20 --out a --fresh");
    assert_eq!(names(&bench.path("a")), ["study.json", "study.md"]);
}

/// Killed while its files were moved into the folder, the last of them still being written.
#[test]
fn a_study_that_was_killed_is_begun_anew() {
    let bench = Bench::new();
    let line = "study --rows 1 --limit 20 --out a";
    bench.ok(line);
    let whole = fs::read(bench.path("a/study.md")).unwrap();
    fs::remove_file(bench.path("a/study.json")).unwrap();
    refused(&bench.run(line), line, 8, &["study.md without study.json", "--fresh"]);
    fs::write(bench.path("a/.study.tmp"), "").unwrap();
    fs::write(bench.path("a/.study.json.77.tmp"), "{").unwrap();
    fs::write(bench.path("a/.study.json.mine.tmp"), "mine").unwrap();
    bench.ok(line);
    assert_eq!(names(&bench.path("a")), [".study.json.mine.tmp", "study.json", "study.md"]);
    assert!(fs::read(bench.path("a/study.md")).unwrap() == whole);
}

#[test]
fn two_processes_do_not_write_to_one_folder() {
    let bench = Bench::new();
    let line = "study --rows 1-13 --limit 320 --out run";
    let mut child = bench.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !bench.path("run/.study.tmp").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before it was seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    // It has the lock a moment after the file is there.
    std::thread::sleep(Duration::from_millis(50));
    refused(&bench.run(line), line, 8, &["run", "another process is writing to this folder"]);
    assert!(child.wait().unwrap().success());
    assert_eq!(names(&bench.path("run")), ["study.json", "study.md"]);
}

/// The row under way is ended, and nothing is left of the study.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_study_and_leaves_nothing() {
    let bench = Bench::new();
    let line = "study --limit 320 --rows 1-13,figures --out a/b";
    let mut child = bench.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !bench.path("a/b/.study.tmp").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before it was seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted: the study is given up"), "{said}");
    assert!(names(bench.folder.path()).is_empty());
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mine")).unwrap();
    fs::write(bench.path("mine/study.md"), "mine").unwrap();
    fs::write(bench.path("file"), "mine").unwrap();
    let net = format!("{WEIGHTS}/resnet20-cifar10.safetensors");
    for (line, code, words) in [
        ("study --rows 14", 2, &["--rows 14", "0 to 13"][..]),
        ("study --rows 3-1", 2, &["3-1"]),
        ("study --rows figure", 2, &["figure"]),
        ("study --examples 0", 2, &["--examples"]),
        ("study --examples 1", 2, &["--examples 1"]),
        ("study --limit 0", 2, &["--limit"]),
        ("study --eps 0", 2, &["--eps 0"]),
        ("study --eps -1", 2, &["--eps -1"]),
        ("study --eps inf", 2, &["--eps inf"]),
        ("study --eps x", 2, &["--eps x"]),
        ("study --tensors", 2, &["--tensors", "--out"]),
        ("study --memory x", 2, &["--memory"]),
        ("study --device nonsense --out new", 4, &["nonsense"]),
        ("study --model missing --out new", 3, &["missing"]),
        ("study --data missing --out new", 3, &["missing"]),
        (&format!("study --model {net} --out new"), 3, &["resnet20", "embedded digits"]),
        ("study --rows 1 --limit 2 --out mine", 8, &["study.md", "study.json"]),
        ("study --rows 1 --limit 2 --out file", 8, &["file"]),
    ] {
        refused(&bench.run(line), line, code, words);
    }
    assert_eq!(names(bench.folder.path()), ["file", "mine"]);
    assert_eq!(fs::read_to_string(bench.path("mine/study.md")).unwrap(), "mine");
}
