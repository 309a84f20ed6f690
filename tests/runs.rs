//! Runs in parts: cut anywhere, killed at any moment, sharded and merged, the files are those of the run that was never
//! divided.

#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names, within};
use serde_json::Value;
use signstep::attack::philox;
use signstep::data::{View, write_safetensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Random starts, restarts and random targets: whatever could follow a sample's place instead of its index would show.
const ATTACK: &str = "attack --method pgd --norm LInf --eps 0.15 --steps 3 --restarts 2 --seed 5";

/// What two folders of the same run share byte for byte, beside the pictures.
const FILES: [&str; 3] = ["adversarial.safetensors", "samples.csv", "sheet.png"];

impl Bench {
    fn start(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs what must fail with `code` and an error that holds each of `words`.
    fn refused(&self, line: &str, code: i32, words: &[&str]) {
        program::refused(&self.run(line), line, code, words);
    }

    fn report(&self, out: &str) -> Value {
        json(&fs::read_to_string(self.path(out).join("report.json")).unwrap())
    }

    /// Both folders are complete, and the same but for times and devices.
    fn same(&self, what: &str, a: &str, b: &str) {
        let (x, y) = (self.path(a), self.path(b));
        assert_eq!(names(&x), names(&y), "{what}");
        assert!(!x.join("parts").exists(), "{what}: parts are left");
        for name in FILES {
            assert!(fs::read(x.join(name)).unwrap() == fs::read(y.join(name)).unwrap(), "{what}: {name} differs");
        }
        assert_eq!(names(&x.join("images")), names(&y.join("images")), "{what}");
        for name in names(&x.join("images")) {
            let read = |folder: &Path| fs::read(folder.join("images").join(&name)).unwrap();
            assert!(read(&x) == read(&y), "{what}: images/{name} differs");
        }
        let lasting = |folder: &Path| -> Vec<String> {
            let text = fs::read_to_string(folder.join("report.md")).unwrap();
            let passing = |l: &&str| !l.starts_with("- time:") && !l.starts_with("- device:");
            text.lines().filter(passing).map(String::from).collect()
        };
        assert_eq!(lasting(&x), lasting(&y), "{what}");
        // As text: the order of fields and every digit count.
        let report = |name: &str| {
            let mut report = self.report(name);
            for key in ["timing", "device", "gpu_bytes"] {
                report.as_object_mut().unwrap().shift_remove(key).unwrap_or_else(|| panic!("{what}: no {key}"));
            }
            report["data"]["source"] = Value::Null;
            serde_json::to_string_pretty(&report).unwrap()
        };
        assert_eq!(report(a), report(b), "{what}");
        let taken = |name: &str| self.report(name)["timing"]["sample_steps"].as_u64();
        assert_eq!(taken(a), taken(b), "{what}: steps");
    }
}

/// A number in [0, 1), the same on every machine.
fn unit(run: u32, draw: u32) -> f64 {
    f64::from(philox(2026, [run, draw, 0, 9])[0]) / f64::from(u32::MAX)
}

#[test]
fn files_do_not_depend_on_the_chunk() {
    let bench = Bench::new();
    bench.ok(&format!("{ATTACK} --out whole --chunk 450"));
    assert!(bench.report("whole")["successes"].as_u64().unwrap() > 0);
    for chunk in ["1", "7", "64"] {
        bench.ok(&format!("{ATTACK} --out chunk-{chunk} --chunk {chunk} --batch 50"));
        bench.same(&format!("chunks of {chunk}"), "whole", &format!("chunk-{chunk}"));
    }
    bench.ok(&format!("{ATTACK} --out memory --memory 1600K"));
    bench.same("1600 KiB", "whole", "memory");
}

#[test]
fn shards_make_the_run_that_was_never_divided() {
    let bench = Bench::new();
    bench.ok(&format!("{ATTACK} --limit 60 --out whole"));
    for count in 1..=7 {
        let mut folders = Vec::new();
        // The last one first: order is no matter.
        for index in (0..count).rev() {
            let out = format!("{index}-of-{count}");
            bench.ok(&format!("{ATTACK} --limit 60 --out {out} --shard {index}/{count} --chunk 13"));
            let shard = &bench.report(&out)["shard"];
            assert_eq!((&shard["index"], &shard["count"]), (&index.into(), &count.into()));
            folders.push(out);
        }
        let merged = format!("merged-{count}");
        bench.ok(&format!("merge {} --out {merged}", folders.join(" ")));
        bench.same(&format!("{count} shards"), "whole", &merged);
    }
    // Once is enough, and a shard of a run is not the run.
    let again = bench.run("merge 0-of-2 1-of-2 --out merged-2 --format csv");
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("holds this run already"));
    bench.refused("merge 0-of-2 1-of-2 --out 0-of-2", 2, &["0-of-2", "shard"]);
    bench.refused(&format!("{ATTACK} --limit 60 --out merged-2 --shard 0/2"), 8, &["shard"]);
    // A merged folder answers for the run.
    let answer = bench.run(&format!("{ATTACK} --limit 60 --out merged-2"));
    assert!(answer.status.success() && String::from_utf8_lossy(&answer.stderr).contains("holds this run already"));
}

/// Schedules, memories, classes aimed at by the method, early stop: none of them knows of a shard, a chunk or a batch.
#[test]
fn every_method_in_shards_makes_the_run_that_was_never_divided() {
    let bench = Bench::new();
    for (i, method) in [
        "mifgsm --targets next",
        "nifgsm --untargeted --momentum 0.8",
        "pgd --norm l2 --eps 0.6 --restarts 2 --early-stop",
        "apgd --untargeted --restarts 2 --steps 15 --early-stop",
        "apgd --norm l2 --eps 0.6 --loss dlr --steps 12",
        "apgd-t --steps 8 --loss margin",
        "fab-t --steps 5",
        "square --untargeted --steps 100 --restarts 2",
    ]
    .into_iter()
    .enumerate()
    {
        let line = format!("attack --method {method} --limit 23 --seed 3");
        bench.ok(&format!("{line} --out whole-{i} --chunk 9"));
        bench.ok(&format!("{line} --out a-{i} --shard 0/2 --batch 4"));
        bench.ok(&format!("{line} --out b-{i} --shard 1/2 --chunk 5"));
        bench.ok(&format!("merge a-{i} b-{i} --out merged-{i}"));
        bench.same(method, &format!("whole-{i}"), &format!("merged-{i}"));
        let farthest = bench.report(&format!("merged-{i}"))["max_l2"].as_f64().unwrap();
        let file = fs::read(bench.path(&format!("whole-{i}/adversarial.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let l2: Vec<f32> = bytemuck::pod_collect_to_vec(file.tensor("l2").unwrap().data());
        assert_eq!(farthest as f32, l2.iter().copied().fold(0.0, f32::max), "{method}");
    }
}

/// One perturbation for all images: found once, delivered in parts. Chunks, batches, memory and kills change no byte.
#[test]
fn a_shared_perturbation_is_the_same_in_any_parts_and_outlives_a_kill() {
    let bench = Bench::new();
    let attack = "attack --method uap --eps 0.25 --steps 30 --limit 150";
    let told = bench.ok(&format!("{attack} --out whole --chunk 150"));
    assert!(told.contains("fooling rate") && told.contains("perturbation.safetensors"), "{told}");
    let shared = |out: &str| fs::read(bench.path(out).join("perturbation.safetensors")).unwrap();
    let same = |what: &str, out: &str| {
        bench.same(what, "whole", out);
        assert!(shared("whole") == shared(out), "{what}: the perturbation differs");
    };
    for (i, parts) in
        ["--chunk 1 --batch 7", "--chunk 7 --batch 1", "--chunk 64 --batch 64", "--memory 1600K"].iter().enumerate()
    {
        bench.ok(&format!("{attack} --out parts-{i} {parts}"));
        same(parts, &format!("parts-{i}"));
    }
    // Killed while it is sought, when it is found, and when some images are delivered; then the file is damaged, or gone.
    type Damage = fn(&Path);
    let keep: Damage = |_| {};
    let turn: Damage = |path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let lose: Damage = |path| fs::remove_file(path).unwrap();
    let found = "perturbation.safetensors";
    let moments = [
        ("run.json", keep),
        (found, keep),
        ("8-16.safetensors", keep),
        ("8-16.safetensors", turn),
        ("8-16.safetensors", lose),
    ];
    for (i, (moment, damage)) in moments.into_iter().enumerate() {
        let line = format!("{attack} --out kill-{i} --chunk 8");
        let parts = bench.path(&format!("kill-{i}")).join("parts");
        let mut child = bench.start(&line);
        let start = Instant::now();
        while !parts.join(moment).exists() {
            assert!(start.elapsed() < Duration::from_secs(120), "{moment} never appeared");
            std::hint::spin_loop();
        }
        let _ = child.kill();
        child.wait().unwrap();
        assert!(!bench.path(&format!("kill-{i}/report.json")).exists(), "killed too late: {moment}");
        assert_eq!(parts.join(found).exists(), moment != "run.json", "{moment}");
        damage(&parts.join(found));
        bench.ok(&line);
        same(&format!("killed at {moment}, case {i}"), &format!("kill-{i}"));
    }
    // A file for each image and one for all: what moved is what the file says, rounded.
    let read = |name: &str| {
        let bytes = fs::read(bench.path("whole").join(name)).unwrap();
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(all.tensor(name).unwrap().data()) };
        match name {
            "adversarial.safetensors" => [floats("clean"), floats("adversarial")],
            _ => {
                assert_eq!(all.tensor("perturbation").unwrap().shape(), [1, 8, 8]);
                [floats("perturbation"), Vec::new()]
            }
        }
    };
    let ([clean, made], [shared, _]) = (read("adversarial.safetensors"), read(found));
    assert!(shared.iter().all(|d| d.abs() <= 0.25) && shared.iter().any(|d| d.abs() == 0.25));
    for (i, (x0, x)) in clean.chunks(64).zip(made.chunks(64)).enumerate().filter(|(_, (x0, x))| x0 != x) {
        for ((x0, x), d) in x0.iter().zip(x).zip(&shared) {
            let want = (x0 + d).clamp(0.0, 1.0);
            // Half a level for rounding, and 63 levels are a little less than eps.
            assert!((x - want).abs() <= 0.76 / 255.0, "image {i}: {x0} {d} {x}");
        }
    }
    let report = bench.report("whole");
    assert!(report["successes"].as_u64().unwrap() > 10 && report["files"][found].is_string());
    assert_eq!(report["timing"]["sample_steps"].as_u64().unwrap(), 30 * report["attacked"].as_u64().unwrap());
}

#[test]
fn shards_that_do_not_make_a_run_are_refused_by_name() {
    let bench = Bench::new();
    let attack = "attack --limit 6 --steps 1";
    for index in 0..3 {
        bench.ok(&format!("{attack} --shard {index}/3 --out s{index}"));
    }
    bench.ok(&format!("{attack} --shard 1/3 --seed 1 --out other-seed"));
    bench.ok(&format!("{attack} --shard 1/2 --out other-count"));
    bench.ok(&format!("{attack} --out whole"));
    fs::create_dir(bench.path("empty")).unwrap();
    bench.refused("merge s0 s2 --out m", 3, &["shard 1 of 3", "missing"]);
    bench.refused("merge s0 s1 s2 s1 --out m", 3, &["shard 1 of 3", "twice", "s1"]);
    bench.refused("merge s0 other-seed s2 --out m", 3, &["other-seed", "config.seed is 0 there and 1 here"]);
    bench.refused("merge s0 other-count s2 --out m", 3, &["another run"]);
    bench.refused("merge s0 whole s2 --out m", 3, &["whole", "not a shard"]);
    bench.refused("merge s0 empty s2 --out m", 3, &["empty", "report.json"]);
    bench.refused("merge s0 nowhere s2 --out m", 3, &["nowhere"]);
    bench.refused("merge s0 s1 s2 --out s1/report.json/x", 8, &["s1/report.json"]);
    // A damaged shard is named: one bit of a pixel, then the report.
    let tensors = within("s1", "adversarial.safetensors");
    let path = bench.path("s1/adversarial.safetensors");
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&path, &bad).unwrap();
    bench.refused("merge s0 s1 s2 --out m", 3, &[&tensors]);
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    bench.refused("merge s0 s1 s2 --out m", 3, &[&tensors]);
    fs::write(&path, &good).unwrap();
    fs::write(bench.path("s2/report.json"), "{}").unwrap();
    bench.refused("merge s0 s1 s2 --out m", 3, &[&within("s2", "report.json")]);
    assert!(!bench.path("m").exists());
}

/// Counts of shards are added up, so each is held against the tensors that it was counted in.
#[test]
fn a_shard_whose_report_is_not_of_its_tensors_is_refused_by_figure() {
    let bench = Bench::new();
    for (name, flags) in [("one", ""), ("eps", "--eps 0.05,0.3"), ("least", "--min-eps"), ("kept", "--keep-going")] {
        for index in 0..2 {
            let line = format!("attack --limit 24 --steps 2 --seed 1 {flags} --shard {index}/2");
            bench.ok(&format!("{line} --out {name}-{index}"));
        }
        bench.ok(&format!("merge {name}-0 {name}-1 --out {name}"));
    }
    let counts = ["clean_correct", "attacked", "successes", "robust", "nonfinite_samples"];
    let lengths = ["max_perturbation", "max_l2"];
    let places = counts.into_iter().chain(lengths).flat_map(|figure| {
        [
            ("one", figure, format!("/{figure}")),
            ("kept", figure, format!("/{figure}")),
            ("eps", figure, format!("/eps/0/{figure}")),
        ]
    });
    let more = [("least", "min_eps", "/min_eps/counts/3".to_string()), ("eps", "robust", "/robust".to_string())];
    for (name, figure, place) in places.chain(more) {
        let path = bench.path(&format!("{name}-1")).join("report.json");
        let whole = fs::read_to_string(&path).unwrap();
        let mut report = json(&whole);
        let value = report.pointer_mut(&place).unwrap_or_else(|| panic!("{name}: no {place}"));
        *value = match value.as_u64() {
            Some(0) => 1.into(),
            Some(n) => (n - 1).into(),
            None => (value.as_f64().unwrap() + 0.125).into(),
        };
        fs::write(&path, report.to_string()).unwrap();
        let line = format!("merge {name}-0 {name}-1 --out {name} --fresh");
        bench.refused(&line, 3, &[&format!("{name}-1: "), figure, "in its report and", "in its tensors"]);
        fs::write(&path, whole).unwrap();
    }
    bench.ok("merge one-0 one-1 --out one --fresh");
    // What cannot be counted there is still believed.
    let path = bench.path("one-1").join("report.json");
    let mut report = json(&fs::read_to_string(&path).unwrap());
    report["successes_float"] = 0.into();
    fs::write(&path, report.to_string()).unwrap();
    bench.ok("merge one-0 one-1 --out one --fresh");
}

/// A folder for results that would take the place of an input, or become part of the data, is refused, and nothing is touched.
#[test]
fn results_never_take_the_place_of_what_they_are_made_of() {
    let bench = Bench::new();
    let attack = "attack --limit 4 --steps 1";
    for index in 0..2 {
        bench.ok(&format!("{attack} --shard {index}/2 --out s{index}"));
    }
    bench.ok(&format!("{attack} --out run"));
    let rows: String = names(&bench.path("run/images")).iter().map(|name| format!("{name},3\n")).collect();
    fs::write(bench.path("run/images/labels.csv"), rows).unwrap();
    fs::copy(bench.path("run/adversarial.safetensors"), bench.path("run/eval.json")).unwrap();
    let contents = || -> BTreeMap<String, Vec<u8>> {
        let folders = ["s0", "s1", "run", "run/images"].map(|folder| bench.path(folder));
        let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|e| e.unwrap().path());
        files.filter(|f| f.is_file()).map(|f| (f.display().to_string(), fs::read(&f).unwrap())).collect()
    };
    let before = contents();
    let reports = ["s0", "s1"].map(|shard| within(shard, "report.json"));
    for (line, words) in [
        ("merge s0 s1 --out s0 --fresh", [&*reports[0], "--out s0"]),
        ("merge s0 s1 --out ./run/../s1 --fresh", [&*reports[1], "--out"]),
        ("attack --data run/images --out run --fresh", ["--data run/images", "--out run"]),
        ("attack --data run/images --out run/images --fresh", ["--data run/images", "is the folder"]),
        ("attack --data run/images --out run/images/new", ["--data run/images", "lies in the folder"]),
        ("attack --data run/images/000000.png --out run --fresh", ["000000.png", "images"]),
        ("attack --model run/adversarial.safetensors --out run --fresh", ["--model", "adversarial.safetensors"]),
        ("attack --targets run/samples.csv --out run --fresh", ["--targets", "samples.csv"]),
        ("eval --data run/images --out run/images/new", ["--data run/images", "lies in the folder"]),
        ("eval --data run/eval.json --out run --fresh", ["--data run/eval.json", "eval.json"]),
        ("study --data run/images --out run/images", ["--data run/images", "is the folder"]),
    ] {
        bench.refused(line, 2, &words);
        bench.refused(line, 2, &["choose another folder with --out"]);
        assert!(contents() == before && !bench.path("run/images/new").exists(), "{line}");
    }
    // The folder where the program writes unless it is told otherwise.
    let line = "attack --data .";
    let mut here = bench.command(line);
    program::refused(
        &here.current_dir(bench.path("run/images")).output().unwrap(),
        line,
        2,
        &["signstep-out", "--out"],
    );
    // Beside each other they may lie.
    let tensors = [("images", View::u8(&[2, 1, 8, 8], &[128; 128])), ("labels", View::i64(&[2], &[0, 1]))];
    write_safetensors(&bench.path("s0/data.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    bench.ok("attack --attack-all --steps 1 --data s0/data.safetensors --out s0/below");
    bench.ok("attack --attack-all --steps 1 --data s0/data.safetensors --out s0 --fresh");
    bench.ok("eval --attacks fgsm --data s0/data.safetensors --out s0");
    bench.ok("attack --attack-all --steps 1 --data run/images --out beside");
}

/// Twenty runs, each killed up to three times at random moments, from the first to the last.
#[test]
fn a_run_that_is_killed_goes_on_and_ends_as_if_it_had_not_been() {
    const PARTS: u32 = 15;
    let bench = Bench::new();
    let attack = format!("{ATTACK} --chunk 30");
    let start = Instant::now();
    bench.ok(&format!("{attack} --out whole"));
    let part = start.elapsed() / PARTS;
    let (mut kills, mut resumed, mut joining) = (0, 0, 0);
    for run in 0..20 {
        let line = format!("{attack} --out run-{run}");
        let out = bench.path(&format!("run-{run}"));
        let saved = || -> Vec<String> {
            let entries = fs::read_dir(out.join("parts")).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().into_string().unwrap()).collect()
        };
        let parts = || saved().iter().filter(|p| p.ends_with(".safetensors") && !p.starts_with('.')).count() as u32;
        for kill in 0..3 {
            // So many parts, from those that are there to all, and then about as long as one takes: so the moments spread over
            // the whole run, and past its last part, whatever else this machine does.
            let there = parts();
            let wanted = there + (unit(run, 2 * kill) * f64::from(PARTS + 1 - there)) as u32;
            let mut child = bench.start(&line);
            while parts() < wanted && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(300));
            }
            std::thread::sleep(part.mul_f64(unit(run, 2 * kill + 1)));
            let ended = child.try_wait().unwrap().is_some();
            // Killing what has ended is no error.
            let _ = child.kill();
            child.wait().unwrap();
            let complete = out.join("report.json").exists();
            assert!(!ended || complete, "run {run} ended by itself without a report");
            if complete {
                break;
            }
            kills += 1;
            resumed += usize::from(parts() > 0);
            joining += usize::from(saved().iter().any(|p| p == "join"));
        }
        bench.ok(&line);
        bench.same(&format!("run {run}"), "whole", &format!("run-{run}"));
        fs::remove_dir_all(out).unwrap();
    }
    println!("{kills} kills: {resumed} left parts, {joining} came while joining; {:.2} s a part", part.as_secs_f64());
    assert!(kills >= 20 && resumed >= 10, "{kills} kills, {resumed} left parts: they missed what they aim at");
}

/// The moments that random kills seldom meet: while files are joined, moved and swept away. The run is killed as soon as a
/// name appears or is gone.
#[test]
fn a_run_that_is_killed_while_its_files_are_joined_goes_on() {
    let bench = Bench::new();
    let attack = "attack --method fgsm --eps 0.2 --chunk 200";
    bench.ok(&format!("{attack} --out whole"));
    type Appeared = fn(&Path) -> bool;
    let appears: [(&str, Appeared); 8] = [
        ("parts", |out| out.join("parts").exists()),
        ("run.json", |out| out.join("parts/run.json").exists()),
        ("the first part", |out| out.join("parts/0-200.safetensors").exists()),
        ("join", |out| out.join("parts/join").exists()),
        ("joined tensors", |out| out.join("parts/join/adversarial.safetensors").exists()),
        ("half of the images", |out| out.join("parts/join/images/000225.png").exists()),
        ("the first file moved", |out| out.join("adversarial.safetensors").exists()),
        ("the report", |out| out.join("report.json").exists()),
    ];
    for (n, (what, appeared)) in appears.iter().enumerate() {
        let out = format!("out-{n}");
        let mut child = bench.start(&format!("{attack} --out {out}"));
        let start = Instant::now();
        while !appeared(&bench.path(&out)) {
            assert!(start.elapsed() < Duration::from_secs(120), "{what} never appeared");
            // Where others had the processor while it was there, another run shows it.
            if child.try_wait().unwrap().is_some() && !appeared(&bench.path(&out)) {
                fs::remove_dir_all(bench.path(&out)).unwrap();
                child = bench.start(&format!("{attack} --out {out}"));
            }
            std::hint::spin_loop();
        }
        let _ = child.kill();
        child.wait().unwrap();
        bench.ok(&format!("{attack} --out {out}"));
        bench.same(what, "whole", &out);
    }
}

#[test]
fn a_folder_holds_one_run() {
    let bench = Bench::new();
    let first = "attack --limit 4 --eps 0.1";
    bench.ok(first);
    let out = bench.path("signstep-out");
    let tensors = || fs::read(out.join("adversarial.safetensors")).unwrap();
    let (before, listed) = (tensors(), names(&out));
    for (other, differs) in [
        ("--limit 4 --eps 0.2", "config.eps.text"),
        ("--limit 5 --eps 0.1", "config.limit"),
        ("--limit 4 --eps 0.1 --seed 1", "config.seed is 0 there and 1 here"),
        ("--limit 4 --eps 0.1 --device reference", "math"),
        ("--limit 4 --eps 0.1 --math fast", "math is \"f32\" there and \"fast\" here"),
        ("--limit 4 --eps 0.1 --shard 0/2", "shard"),
    ] {
        bench.refused(&format!("attack {other}"), 8, &["signstep-out", "--out", "--fresh", differs]);
    }
    assert!(tensors() == before && names(&out) == listed);

    // The same run is answered from what is there, in any form, and nothing is written.
    let time = || fs::metadata(out.join("report.json")).unwrap().modified().unwrap();
    let written = time();
    for format in ["table", "json", "csv", "markdown"] {
        let output = bench.run(&format!("{first} --batch 3 --chunk 1 --format {format}"));
        assert!(output.status.success() && !output.stdout.is_empty());
        assert!(String::from_utf8(output.stderr).unwrap().contains("note: signstep-out holds this run already"));
    }
    let printed = bench.ok(&format!("{first} --json"));
    assert_eq!(printed, fs::read_to_string(out.join("report.json")).unwrap());
    let printed = bench.ok(&format!("{first} --format markdown"));
    assert_eq!(printed, fs::read_to_string(out.join("report.md")).unwrap());
    assert!(tensors() == before && names(&out) == listed && time() == written);

    // Anew on request: the same run, and another one in its place.
    bench.ok(&format!("{first} --fresh"));
    assert!(tensors() == before && time() != written);
    bench.ok("attack --limit 4 --eps 0.2 --fresh");
    assert!(tensors() != before && names(&out) == listed);
    // What was made from the tensors may be missing, and that is said.
    bench.ok(&format!("{first} --fresh"));
    fs::remove_file(out.join("samples.csv")).unwrap();
    fs::remove_dir_all(out.join("images")).unwrap();
    let output = bench.run(first);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && told.contains("note: signstep-out lacks samples.csv, images; --fresh runs it anew"),
        "{told}"
    );
    // Tensors of other bytes are none of this run: cut off, or one bit of a pixel.
    for damage in
        [&before[..before.len() / 2], &[&before[..before.len() - 1], &[before[before.len() - 1] ^ 1]].concat()]
    {
        fs::write(out.join("adversarial.safetensors"), damage).unwrap();
        bench.refused(first, 8, &["adversarial.safetensors", "report.json was written for", "--fresh"]);
    }
    // Without its tensors a folder is not complete.
    bench.ok(&format!("{first} --fresh"));
    assert_eq!(names(&out), listed);
    fs::remove_file(out.join("adversarial.safetensors")).unwrap();
    bench.ok(first);
    assert!(tensors() == before);
}

/// A run that was interrupted is another one's only with `--fresh`; what is damaged meanwhile is made again.
#[test]
fn parts_of_an_interrupted_run_are_joined_only_when_they_are_sound() {
    let bench = Bench::new();
    let attack = "attack --method pgd --eps 0.2 --steps 2 --chunk 100";
    bench.ok(&format!("{attack} --out whole"));
    let interrupted = |out: &str| {
        let mut child = bench.start(&format!("{attack} --out {out}"));
        let parts = bench.path(out).join("parts");
        while !parts.join("200-300.safetensors").exists() {
            assert!(child.try_wait().unwrap().is_none(), "ended before its third part");
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        parts
    };
    let parts = interrupted("other");
    let before = names(&parts);
    bench.refused(
        &format!("{attack} --seed 9 --out other"),
        8,
        &["other", "config.seed is 0 there and 9 here", "--fresh"],
    );
    assert_eq!(names(&parts), before);
    bench.ok(&format!("{attack} --seed 9 --out other --fresh"));
    bench.ok(&format!("{attack} --seed 9 --out other-alone"));
    bench.same("a fresh run over an interrupted one", "other", "other-alone");

    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("a bit of a value", |parts| flip(&parts.join("0-100.safetensors"), 1.0)),
        ("a bit of the header", |parts| flip(&parts.join("0-100.safetensors"), 0.004)),
        ("cut short", |parts| {
            let path = parts.join("100-200.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("another range", |parts| {
            fs::rename(parts.join("100-200.safetensors"), parts.join("0-100.safetensors")).unwrap();
        }),
        ("a foreign file", |parts| {
            let tensors = [("images", View::u8(&[1], &[0]))];
            write_safetensors(&parts.join("0-100.safetensors"), &tensors, &BTreeMap::new()).unwrap();
            fs::write(parts.join("300-400.safetensors"), "not safetensors").unwrap();
        }),
        ("a gap", |parts| fs::remove_file(parts.join("0-100.safetensors")).unwrap()),
    ];
    for (n, (what, damage)) in damages.iter().enumerate() {
        let out = format!("damaged-{n}");
        damage(&interrupted(&out));
        bench.ok(&format!("{attack} --out {out}"));
        bench.same(what, "whole", &out);
    }
    // A part of another run, whole in itself.
    let theirs = interrupted("one");
    let mine = bench.path("two/parts");
    let mut child = bench.start(&format!("{attack} --seed 9 --out two"));
    while !mine.join("0-100.safetensors").exists() {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fs::copy(theirs.join("0-100.safetensors"), mine.join("0-100.safetensors")).unwrap();
    bench.ok(&format!("{attack} --seed 9 --out two"));
    bench.same("a part of another run", "two", "other");
    // The manifest itself.
    let parts = interrupted("manifest");
    flip(&parts.join("run.json"), 0.0);
    bench.refused(&format!("{attack} --out manifest"), 8, &["manifest"]);
}

/// Turns the lowest bit of the byte at a fraction of the file.
fn flip(path: &Path, fraction: f64) {
    let mut bytes = fs::read(path).unwrap();
    let at = ((bytes.len() - 1) as f64 * fraction) as usize;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn two_processes_do_not_write_to_one_folder() {
    let bench = Bench::new();
    let attack = format!("{ATTACK} --chunk 10");
    let mut child = bench.start(&attack);
    while !bench.path("signstep-out/parts/run.json").exists() {
        std::hint::spin_loop();
    }
    bench.refused(&attack, 8, &["signstep-out", "another process"]);
    child.kill().unwrap();
    child.wait().unwrap();
    bench.ok(&attack);
}

/// The folder is somebody else's, or a file lies in the way: nothing is written and nothing is removed.
#[test]
fn what_is_no_run_is_left_alone() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("mine/images")).unwrap();
    fs::write(bench.path("mine/images/cat.png"), "a picture").unwrap();
    for line in ["attack --limit 2 --out mine", "attack --limit 2 --out mine --fresh"] {
        bench.refused(line, 8, &["mine", "images"]);
        assert_eq!(fs::read(bench.path("mine/images/cat.png")).unwrap(), b"a picture");
        assert_eq!(names(&bench.path("mine")), ["images"]);
    }
    fs::write(bench.path("file"), "x").unwrap();
    bench.refused("attack --limit 2 --out file", 8, &["file"]);
    // Files that bear none of our names may stay beside a run.
    fs::create_dir(bench.path("notes")).unwrap();
    fs::write(bench.path("notes/notes.txt"), "x").unwrap();
    bench.ok("attack --limit 2 --out notes");
    bench.ok("attack --limit 2 --out notes --fresh");
    assert!(bench.path("notes/notes.txt").exists());
}

/// A pixel that cannot be, in a later chunk: the sample is named by its index in the whole set, and nothing is delivered.
#[test]
fn a_sample_is_named_by_its_index_in_the_whole_set() {
    let bench = Bench::new();
    let mut images = vec![0.25_f32; 280 * 64];
    images[270 * 64] = 0.75;
    let tensors = [("images", View::f32(&[280, 1, 8, 8], &images)), ("labels", View::i64(&[280], &[1; 280]))];
    write_safetensors(&bench.path("x.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let attack = "attack --data x.safetensors --bounds 0,0.5 --steps 1 --chunk 100";
    bench.refused(attack, 3, &["x.safetensors", "sample 270", "0.75", "0 to 0.5"]);
    assert_eq!(names(&bench.path("signstep-out")), ["parts"], "nothing that looks whole");
}

#[test]
fn targets_from_a_file_follow_their_samples() {
    let bench = Bench::new();
    let lines: Vec<String> = (0..30).map(|i| (i % 11 - 1).to_string()).collect();
    fs::write(bench.path("targets.txt"), lines.join("\n")).unwrap();
    let attack = "attack --limit 30 --steps 2 --targets targets.txt";
    bench.ok(&format!("{attack} --out whole --chunk 30"));
    bench.ok(&format!("{attack} --out seven --chunk 7"));
    bench.same("targets from a file", "whole", "seven");
    for index in 0..2 {
        bench.ok(&format!("{attack} --out s{index} --shard {index}/2"));
    }
    // A shard's samples bear their index in the whole set.
    let csv = fs::read_to_string(bench.path("s1/samples.csv")).unwrap();
    assert!(csv.lines().nth(1).is_some_and(|l| l.starts_with("15,")), "{csv}");
    assert_eq!(names(&bench.path("s1/images"))[0], "000015.png");
    bench.ok("merge s0 s1 --out merged");
    bench.same("targets from a file, sharded", "whole", "merged");
    let csv = fs::read_to_string(bench.path("merged/samples.csv")).unwrap();
    for (i, line) in csv.lines().skip(1).enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!((cells[0], cells[2]), (i.to_string().as_str(), lines[i].as_str()));
    }
    let told = bench.ok(&format!("{attack} --out whole"));
    assert!(told.contains("turned, to their target where they have one"), "{told}");
    // A file that aims at nothing is no targeted run: it is the untargeted one.
    fs::write(bench.path("targets.txt"), "-1\n".repeat(30)).unwrap();
    let told = bench.ok(&format!("{attack} --out none"));
    assert!(told.contains("ifgsm, untargeted") && told.contains("turned to another class"), "{told}");
    let again = bench.run("attack --limit 30 --steps 2 --untargeted --out none");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && said.contains("none holds this run already"), "{said}");
}

#[test]
fn samples_are_listed_as_their_tensors_say() {
    let bench = Bench::new();
    bench.ok("attack --limit 40");
    let bytes = fs::read(bench.path("signstep-out/adversarial.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let csv = fs::read_to_string(bench.path("signstep-out/samples.csv")).unwrap();
    let mut lines = csv.lines();
    let head = "id,label,target,clean_prediction,adversarial_prediction,attacked,success,loss,linf,l2";
    assert_eq!(lines.next(), Some(head));
    let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data()) };
    let integers = |name: &str| -> Vec<i64> { bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data()) };
    let best = |name: &str, i: usize| signstep::attack::argmax(&floats(name)[i * 10..(i + 1) * 10]).to_string();
    let mut turned = 0;
    for (i, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells[0], i.to_string());
        assert_eq!(cells[1], integers("labels")[i].to_string());
        assert_eq!(cells[2], integers("targets")[i].to_string());
        assert_eq!((cells[3], cells[4]), (&*best("clean_logits", i), &*best("adversarial_logits", i)));
        assert_eq!(cells[5], file.tensor("attacked").unwrap().data()[i].to_string());
        assert_eq!(cells[6], file.tensor("success").unwrap().data()[i].to_string());
        for (cell, name) in [(7, "loss"), (8, "linf"), (9, "l2")] {
            assert_eq!(cells[cell].parse::<f32>().unwrap().to_bits(), floats(name)[i].to_bits(), "{name}");
        }
        turned += u64::from(cells[6] == "1");
    }
    assert_eq!(bench.report("signstep-out")["successes"], turned);
    assert_eq!(csv.lines().count(), 41);
}

#[test]
fn a_network_is_verified_against_another_programs_logits() {
    let bench = Bench::new();
    // Our own clean logits, in f32, as the other program's.
    bench.ok("attack --method fgsm");
    let bytes = fs::read(bench.path("signstep-out/adversarial.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits: Vec<f32> = bytemuck::pod_collect_to_vec(file.tensor("clean_logits").unwrap().data());
    let correct = bench.report("signstep-out")["clean_correct"].clone();
    let write = |name: &str, tensor: &str, rows: usize, values: &[f32]| {
        let tensors = [(tensor, View::f32(&[rows, values.len() / rows], values))];
        write_safetensors(&bench.path(name), &tensors, &BTreeMap::new()).unwrap();
    };
    write("same.safetensors", "logits", 450, &logits);
    let verified = json(&bench.ok("verify --json --logits same.safetensors --memory 1600K"));
    assert_eq!(verified["clean_correct"], correct);
    assert_eq!((&verified["logits"]["passed"], &verified["logits"]["argmax_agree"]), (&true.into(), &450.into()));
    assert_eq!(verified["logits"]["max_absolute"]["value"], 0.0);
    assert!(verified["clean_accuracy_95"][0].as_f64().unwrap() > 0.98);
    // The f64 reference agrees with the device, in any tensor's name, for the first images too.
    write("named.safetensors", "z", 450, &logits);
    bench.ok("verify --logits named.safetensors --limit 40 --device reference");
    let text = bench.ok("verify --logits named.safetensors");
    assert!(text.contains("says the same class") && text.contains("95 %"), "{text}");

    // One logit of one sample, a little more than is allowed.
    let top = logits[4170..4180].iter().fold(0.0_f32, |m, z| m.max(z.abs()));
    let mut off = logits.clone();
    off[4173] += 2e-4 * top + 2e-5;
    write("off.safetensors", "logits", 450, &off);
    bench.refused("verify --logits off.safetensors", 1, &["1 of 450"]);
    let output = bench.run("verify --logits off.safetensors --json");
    let told = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(1));
    let worst = &told["logits"]["max_absolute"];
    assert_eq!((&worst["sample"], &worst["class"]), (&417.into(), &3.into()));
    bench.ok("verify --logits off.safetensors --tolerance 0,1e-2");
    bench.refused("verify --logits same.safetensors --device reference --limit 5 --tolerance 0,0", 1, &["of 5"]);
    off[4173] = f32::NAN;
    write("nan.safetensors", "logits", 450, &off);
    bench.refused("verify --logits nan.safetensors --tolerance 1e30,1e30", 1, &["1 of 450"]);

    write("short.safetensors", "logits", 449, &logits[..4490]);
    bench.refused("verify --logits short.safetensors", 3, &["short.safetensors", "[449, 10]"]);
    write("narrow.safetensors", "logits", 900, &logits);
    bench.refused("verify --logits narrow.safetensors", 3, &["narrow.safetensors", "[900, 5]"]);
    bench.refused("verify --logits same.safetensors --limit 9 --model nowhere", 3, &["nowhere"]);
    bench.refused("verify --logits signstep-out/report.json", 3, &["report.json"]);
    bench.refused("verify --logits signstep-out/adversarial.safetensors", 3, &["several", "clean_logits"]);
}
