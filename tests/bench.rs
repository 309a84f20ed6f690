//! `signstep bench` as a user runs it, and the trials and probes below it.

mod common;
#[path = "common/program.rs"]
mod program;

use common::gpu;
use program::{Bench, json, names};
use signstep::model::Dims;
use signstep::trial::{self, Clock, Custom, Setup, Trial};
use signstep::{Plan, Storage, Target, Variant, probe};
use std::fs;
use std::time::{Duration, Instant};

/// A kernel that compiles and runs in no time.
const SMALL: &str = "bench --kernel conv2d_forward --shape conv3x3s1-3-8-8x8 --rounds 1 --samples 2";

impl Bench {
    /// Runs what must fail with `code` and one line of error that holds `word`.
    fn refused(&self, line: &str, code: i32, word: &str) {
        let output = self.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "signstep {line}: {errors}");
        let told: Vec<&str> = errors.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(told.len() == 1 && told[0].contains(word), "signstep {line}: `{word}` is missing from\n{errors}");
    }

    /// Writes down the naive kernel and gives its text.
    fn dumped(&self) -> String {
        self.ok("bench --kernel conv2d_forward --shape conv3x3s1-3-8-8x8 --variant naive --dump dump");
        let name = names(&self.path("dump")).into_iter().find(|n| n.ends_with(".wgsl")).expect("WGSL");
        fs::read_to_string(self.path("dump").join(name)).unwrap()
    }
}

#[test]
fn shaders_are_written_in_four_languages_whole_or_not_at_all() {
    let bench = Bench::new();
    bench.ok("bench --kernel conv2d_* --shape conv3x3s1-3-8-8x8,conv3x3s2-8-8-8x8 --dump dump");
    let files = names(&bench.path("dump"));
    for ending in [".wgsl", ".spv", ".metal", ".hlsl"] {
        assert_eq!(files.iter().filter(|f| f.ends_with(ending)).count() * 4, files.len(), "{ending} of {files:?}");
    }
    assert!(files.len() >= 16, "{files:?}");
    for file in files.iter().filter(|f| f.ends_with(".wgsl")) {
        let text = fs::read_to_string(bench.path("dump").join(file)).unwrap();
        let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
        let entry = file.split("--").next().unwrap();
        assert!(module.entry_points.iter().any(|e| e.name == entry), "{file}");
    }
    for file in files.iter().filter(|f| f.ends_with(".spv")) {
        assert_eq!(fs::read(bench.path("dump").join(file)).unwrap()[..4], 0x0723_0203_u32.to_le_bytes(), "{file}");
    }
    // A folder that holds something is left as it is.
    bench.refused("bench --kernel conv2d_forward --shape conv3x3s1-3-8-8x8 --dump dump", 8, "not an empty folder");
    assert_eq!(names(&bench.path("dump")), files);
    fs::write(bench.path("file"), "").unwrap();
    bench.refused("bench --kernel conv2d_forward --shape conv3x3s1-3-8-8x8 --dump file/dump", 8, "file");
    // A folder of the name that it would have used on the way is somebody else's.
    fs::create_dir(bench.path(".other.partial")).unwrap();
    bench.refused("bench --kernel conv2d_forward --shape conv3x3s1-3-8-8x8 --dump other", 8, ".other.partial");
    fs::remove_dir(bench.path(".other.partial")).unwrap();
    assert_eq!(names(bench.folder.path()), ["dump", "file"]);
}

#[test]
fn a_kernel_of_ones_own_is_timed_when_it_is_right_and_refused_when_it_is_not() {
    let bench = Bench::new();
    let text = bench.dumped();
    let own = |name: &str, text: &str| fs::write(bench.path(name), text).unwrap();

    own("right.wgsl", &text);
    let results = json(&bench.ok(&format!("{SMALL} --wgsl right.wgsl --entry conv2d_forward --format json")));
    let rows = results["kernels"].as_array().unwrap();
    let variants: Vec<&str> = rows.iter().map(|r| r["variant"].as_str().unwrap()).collect();
    assert_eq!(variants, ["naive", "own:right"]);
    assert!(rows.iter().all(|r| r["time"]["median"].as_f64().unwrap() > 0.0));

    let fma = "acc[p] = fma(";
    assert!(text.contains(fma), "{text}");
    // One channel in a thousandth too large; one tap left out; not a number.
    let nearly = text.replacen("acc[4u * k + p] + w.bias", "acc[4u * k + p] * 1.001 + w.bias", 1);
    assert_ne!(nearly, text);
    own("nearly.wgsl", &nearly);
    let line = |name: &str| format!("{SMALL} --wgsl {name} --entry conv2d_forward");
    bench.refused(&line("nearly.wgsl"), 1, "differ in bits");
    assert!(bench.run(&line("nearly.wgsl")).stdout.is_empty());
    bench.ok(&format!("{} --tolerance 0.01", line("nearly.wgsl")));
    bench.refused(&format!("{} --tolerance 1e-5", line("nearly.wgsl")), 1, "relative distance");
    let taps = text.replacen("s < S;", "s < S - 1u;", 1);
    assert_ne!(taps, text);
    own("taps.wgsl", &taps);
    bench.refused(&format!("{} --tolerance 0.01", line("taps.wgsl")), 1, "taps.wgsl: conv2d_forward is not");
    own("nan.wgsl", &text.replacen(fma, "acc[p] = bitcast<f32>(0x7fc00000u + id.z) * fma(", 1));
    bench.refused(&format!("{} --tolerance 1e9", line("nan.wgsl")), 1, "NaN or infinity");

    own("broken.wgsl", &text.replacen(fma, "acc[p] = nonsense(", 1));
    let at = text.lines().position(|l| l.contains(fma)).unwrap() + 1;
    bench.refused(&line("broken.wgsl"), 3, &format!("broken.wgsl:{at}:"));
    bench.refused(&format!("{SMALL} --wgsl right.wgsl --entry other"), 3, "there is conv2d_forward");
    bench.refused(&line("absent.wgsl"), 3, "absent.wgsl: cannot be read");
    own("bindings.wgsl", &text.replacen("@binding(0)", "@binding(7)", 1));
    bench.refused(&line("bindings.wgsl"), 3, "bindings.wgsl");
    bench.refused(&format!("{} --grid 1", line("right.wgsl")), 2, "--grid");
    bench.refused(
        "bench --kernel conv2d_forward --shape conv3x3s1-*-8x8 --wgsl right.wgsl --entry f",
        2,
        "one naive kernel",
    );
}

#[test]
fn samples_that_the_device_does_not_take_at_once_are_told() {
    let bench = Bench::new();
    let line = "bench --kernel relu_forward --shape relu-16-8x8 --rounds 1 --format json --samples";
    let run = |samples: u32| {
        let output = bench.run(&format!("{line} {samples}"));
        assert!(output.status.success());
        let results = json(&String::from_utf8(output.stdout).unwrap());
        let rows = results["kernels"].as_array().unwrap();
        let used: Vec<u64> = rows.iter().map(|row| row["samples"].as_u64().unwrap()).collect();
        (used, String::from_utf8(output.stderr).unwrap())
    };
    let (used, told) = run(u32::MAX);
    let most = used[0];
    assert!(most < u64::from(u32::MAX) && used.iter().all(|n| *n == most), "{used:?}");
    let rows = if used.len() == 1 { "1 of 1 row".into() } else { format!("{0} of {0} rows", used.len()) };
    let warning = format!("--samples {}: more than the device takes at once; {rows} have {most}", u32::MAX);
    assert!(told.contains(&format!("warning: {warning}")), "{told}");
    let (used, told) = run(3);
    assert!(used.iter().all(|n| *n == 3) && !told.contains("--samples"), "{used:?}\n{told}");
    // What rules remember counts as well.
    let rule = "bench --kernel momentum_step --shape linf-3x64x64 --rounds 1 --format json --samples 4000000";
    assert!(!json(&bench.ok(rule))["kernels"].as_array().unwrap().is_empty());
}

#[test]
fn other_arithmetic_is_checked_and_timed_beside_f32() {
    let bench = Bench::new();
    let rows = |line: &str| -> Vec<(String, String, u64)> {
        let results = json(&bench.ok(&format!("bench kernels --rounds 1 --samples 2 --format json {line}")));
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_string();
        let row = |r: &serde_json::Value| (text(r, "kernel"), text(r, "variant"), r["dispatches"].as_u64().unwrap());
        results["kernels"].as_array().unwrap().iter().map(row).collect()
    };
    // Wide enough for Winograd's convolution, whose fast variant is three kernels.
    let all = rows("--shape conv3x3s1-128-128-4x4 --variant naive,fast --math f32,fast,f16");
    let told: Vec<(&str, &str, u64)> = all.iter().map(|(k, v, d)| (k.as_str(), v.as_str(), *d)).collect();
    // On hardware nothing is known to be faster than f32.
    let target = Target::of(gpu()).unwrap();
    let is_offered = target.is_software && target.subgroup >= 8 && target.storage == Storage::Texture;
    for pass in ["conv2d_forward", "conv2d_input_grad"] {
        let family = if is_offered { "broadcast" } else { "workgroup" };
        let (fast, winograd) = (format!("{pass}_{family}"), format!("{pass}_winograd"));
        let mut wanted = vec![
            // In slices of the weights that a uniform binding holds.
            (pass, "naive", 16),
            (&fast, "fast", 1),
            (&winograd, "naive, math fast", 1),
            (&winograd, "fast, math fast", 3),
            (pass, "naive, math f16", 16),
            (&fast, "fast, math f16", 1),
        ];
        wanted.retain(|(kernel, ..)| is_offered || *kernel != winograd);
        let ours: Vec<_> = told.iter().copied().filter(|(kernel, ..)| kernel.starts_with(pass)).collect();
        assert_eq!(ours, wanted);
    }
    assert_eq!(told.len(), if is_offered { 12 } else { 8 });
    // One of the three names them all.
    if is_offered {
        let named =
            rows("--shape conv3x3s1-128-128-4x4 --kernel conv2d_forward_winograd_products --math fast --variant fast");
        assert_eq!(named, [("conv2d_forward_winograd".into(), "fast, math fast".into(), 3)]);
    }
    // What is the same in both is timed once.
    let line = "--kernel conv2d_* --shape conv3x3s1-8-8-4x4 --variant naive,fast";
    assert_eq!(rows(&format!("{line} --math f32,fast")), rows(line));
}

#[test]
fn results_are_kept_compared_and_made_into_a_page() {
    let bench = Bench::new();
    let text = bench.ok(&format!("{SMALL} --save=kept/results --format json"));
    let saved = names(&bench.path("kept/results"));
    assert!(saved.len() == 1 && saved[0].ends_with("-vulkan.json"), "{saved:?}");
    let kept = fs::read_to_string(bench.path("kept/results").join(&saved[0])).unwrap();
    assert_eq!(json(&kept), json(&text));
    let results = json(&text);
    assert_eq!(results["schema_version"], 1);
    let probes: Vec<&str> = results["probes"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(probes, ["fma", "copy", "empty", "dispatch", "submission"]);
    let both = json(&bench.ok(&format!("{SMALL} --storage both --format json")));
    let places: Vec<&str> =
        both["kernels"].as_array().unwrap().iter().map(|r| r["storage"].as_str().unwrap()).collect();
    assert_eq!(places, ["buffer", "texture"]);
    assert_eq!(both["probes"].as_array().unwrap().len(), probes.len() + 1, "copies in the other place");
    let row = &results["kernels"][0];
    for figure in ["gflops_per_s", "gbytes_per_s", "share"] {
        assert!(row[figure].as_f64().unwrap() > 0.0, "{figure} in {row}");
    }

    // The same rows, ten times as fast or as slow: this run is slower, or is not.
    let baseline = |factor: f64| {
        let mut other = results.clone();
        let time = &mut other["kernels"][0]["time"]["median"];
        *time = (time.as_f64().unwrap() * factor).into();
        fs::write(bench.path("baseline.json"), other.to_string()).unwrap();
    };
    let line = format!("{SMALL} --baseline baseline.json --fail-over 150%");
    baseline(0.01);
    bench.refused(
        &line,
        1,
        "1 of 1 row slower than the baseline by more than 150.0 %: conv2d_forward conv3x3s1-3-8-8x8",
    );
    baseline(100.0);
    bench.ok(&line);
    fs::write(bench.path("baseline.json"), text.replacen("\"name\": \"", "\"name\": \"another ", 1)).unwrap();
    bench.refused(&line, 2, "results of another");
    fs::write(bench.path("baseline.json"), text.replacen("\"schema_version\": 1", "\"schema_version\": 9", 1)).unwrap();
    bench.refused(&line, 3, "schema 9");
    bench.refused(&format!("{SMALL} --baseline absent.json"), 3, "absent.json");
    let kept = fs::read(bench.path("baseline.json")).unwrap();
    bench.refused(&format!("{SMALL} --baseline baseline.json --out ./baseline.json"), 2, "choose another file");
    assert_eq!(fs::read(bench.path("baseline.json")).unwrap(), kept);
    // Nor is what it is held against replaced before it is.
    let kept = bench.path("kept/results").join(&saved[0]);
    let before = fs::read(&kept).unwrap();
    let line = format!("{SMALL} --save=kept/results --baseline kept/results/{}", saved[0]);
    bench.refused(&line, 2, "in the place of --baseline");
    assert_eq!(fs::read(&kept).unwrap(), before);

    bench.ok("bench --table=kept/results");
    let page = fs::read_to_string(bench.path("kept/RESULTS.md")).unwrap();
    assert!(page.contains("conv3x3s1-3-8-8x8") && page.contains("**Ceilings, as measured**"), "{page}");
    bench.refused("bench --table=absent", 3, "absent");
    fs::create_dir(bench.path("empty")).unwrap();
    bench.refused("bench --table=empty", 3, "holds no results");
    fs::write(bench.path("kept/results/broken.json"), "{").unwrap();
    bench.refused("bench --table=kept/results", 3, "broken.json");
    assert_eq!(fs::read_to_string(bench.path("kept/RESULTS.md")).unwrap(), page);
}

#[test]
fn peers_stand_beside_the_results_of_their_adapter() {
    let bench = Bench::new();
    let results = json(&bench.ok(&format!("{SMALL} --save=kept/results --format json")));
    // As `benches/peers` writes it, which keeps more than is read here.
    let peers = serde_json::json!({
        "schema_version": 1, "date": "2026-11-23", "adapter": results["device"], "cpus": 2,
        "load_average": ["0.25", "0.5"], "rounds": 5, "math": ["f32", "fast", "f16"],
        "peers": ["burn 0.22.1 on llvmpipe: WGSL", "PyTorch 2.15.0 on CPU, 1 thread: eager"],
        "rows": [
            { "what": "ResNet-20, PGD step, batch 64", "unit": "sample-steps / core-second", "peer": "PyTorch 2.15.0, CPU, 1 thread",
              "theirs": 391.0, "signstep": { "f32": 198.0, "fast": "as f32", "f16": 1234.0 }, "check": "logits 5e-7" },
            { "what": "ResNet-20, PGD step, batch 64", "unit": "sample-steps / second", "peer": "PyTorch, CUDA",
              "theirs": null, "signstep": {}, "check": "no figure: no CUDA device" },
        ],
        "checks": [{ "what": "ResNet-20, PGD step, batch 64", "found": { "fast": "as f32", "f16": "logits 7e-4, gradient 3e-2, worst 9e-2" } }],
        "contests": [], "cold_start": null,
    });
    let write =
        |peers: &serde_json::Value| fs::write(bench.path("kept/results/peers-x.json"), peers.to_string()).unwrap();
    write(&peers);
    bench.ok("bench --table=kept/results");
    let page = fs::read_to_string(bench.path("kept/RESULTS.md")).unwrap();
    let section = page.split_once("**Beside peers**").unwrap_or_else(|| panic!("no peers in\n{page}")).1;
    for told in [
        ", 2 CPUs, medians of 5 interleaved rounds, load average before and after 0.25 and 0.5",
        "| what | unit | peer | the peer | signstep, f32 | signstep, fast | signstep, f16 | check |",
        "| PyTorch 2.15.0, CPU, 1 thread | 391 | 198 (0.506) | as f32 | 1,234 (3.16) | logits 5e-7 |",
        "| PyTorch, CUDA | – | – | – | – | no figure: no CUDA device |",
        "| ResNet-20, PGD step, batch 64 | as f32 | logits 7e-4, gradient 3e-2, worst 9e-2 |",
        "- burn 0.22.1 on llvmpipe: WGSL\n- PyTorch 2.15.0 on CPU, 1 thread: eager\n",
    ] {
        assert!(section.contains(told), "{told} is missing from\n{section}");
    }

    let with = |change: fn(&mut serde_json::Value)| {
        let mut changed = peers.clone();
        change(&mut changed);
        write(&changed);
    };
    let refused = |why: &str| {
        bench.refused("bench --table=kept/results", 3, why);
        bench.refused("bench --table=kept/results", 3, "peers-x.json");
    };
    with(|p| p["rows"][0]["theirs"] = "fast".into());
    refused("no figures of peers: invalid type");
    with(|p| p["rows"][0]["signstep"]["f32"] = serde_json::Value::Null);
    refused("no figures of peers");
    with(|p| p["schema_version"] = 9.into());
    refused("schema 9");
    with(|p| p["adapter"]["name"] = "another".into());
    refused("no results beside it are of another");
    fs::write(bench.path("kept/results/peers-x.json"), "{").unwrap();
    refused("no figures of peers");
    assert_eq!(fs::read_to_string(bench.path("kept/RESULTS.md")).unwrap(), page);
}

#[test]
fn networks_of_one_name_are_told_apart() {
    let bench = Bench::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/digits-cnn-robust.safetensors");
    let line =
        format!("bench steps --network digits-cnn --model {model} --math f32,f32 --batch 1 --rounds 1 --dispatches");
    let results = json(&bench.ok(&format!("{line} --format json")));
    let of = |list: &str| -> Vec<String> {
        let rows = results[list].as_array().unwrap();
        let mut all: Vec<String> = rows.iter().map(|r| r["network"].as_str().unwrap().into()).collect();
        all.dedup();
        all
    };
    assert_eq!((of("steps"), of("dispatches")), (vec!["digits-cnn".into(), "digits-cnn #2".into()], of("steps")));
    let shares: f64 = results["dispatches"].as_array().unwrap().iter().map(|r| r["share"].as_f64().unwrap()).sum();
    assert!((shares - 2.0).abs() < 1e-6, "{shares}");
}

#[test]
fn whole_steps_are_timed_by_batch_within_the_time_there_is() {
    let bench = Bench::new();
    let csv = bench
        .ok("bench --network digits-cnn --batch 8,1,8,100000 --rounds 1 --max-seconds 5 --format csv --out steps.csv");
    assert!(csv.is_empty(), "{csv}");
    let csv = fs::read_to_string(bench.path("steps.csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|l| l.split(',').collect()).collect();
    let column = |name: &str| rows[0].iter().position(|c| *c == name).unwrap();
    let steps: Vec<&Vec<&str>> = rows.iter().filter(|r| r[0] == "step").collect();
    let batches: Vec<&str> = steps.iter().map(|r| r[column("samples")]).collect();
    assert_eq!(batches, ["1", "8", "100000"]);
    for row in &steps[..2] {
        for name in ["median", "wall_s", "growth", "start_up_s", "bytes_per_sample", "other_share"] {
            assert!(row[column(name)].parse::<f64>().is_ok_and(|v| v > 0.0), "{name} in {row:?}");
        }
    }
    assert_eq!(steps[1][column("growth")], "1");
    assert!(steps[2][column("skipped")].contains("--max-seconds") && steps[2][column("median")].is_empty());
    assert_eq!(names(bench.folder.path()), ["steps.csv"]);
}

#[test]
fn each_dispatch_of_a_step_is_timed_alone() {
    let bench = Bench::new();
    let line = "bench --dispatches --network digits-cnn --batch 2 --rounds 1 --format";
    let results: serde_json::Value = serde_json::from_str(&bench.ok(&format!("{line} json"))).unwrap();
    let rows = results["dispatches"].as_array().unwrap();
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_string();
    let kernels: Vec<String> = rows.iter().map(|r| text(r, "kernel")).collect();
    assert!(kernels[0] == "normalise_forward" && kernels.last().unwrap() == "sign_step", "{kernels:?}");
    assert!(kernels.iter().any(|k| k == "cross_entropy_forward"), "{kernels:?}");
    let shares: f64 = rows.iter().map(|r| r["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((&row["place"], &row["samples"]), (&i.into(), &2.into()));
        assert!(row["time"]["median"].as_f64().unwrap() > 0.0, "{row}");
        let convolves = text(row, "kernel").starts_with("conv2d");
        assert!(!convolves || row["gflops_per_s"].as_f64().unwrap() > 0.0, "{row}");
    }
    let told = bench.ok(&format!("{line} text"));
    assert!(told.contains("Dispatches of a step, each alone") && told.contains("conv2d_input_grad"), "{told}");
    let plain = bench.ok("bench --network digits-cnn --batch 2 --rounds 1 --format json");
    assert!(!plain.contains("dispatches\": ["), "{plain}");
}

#[test]
fn what_cannot_be_is_told_before_anything_runs() {
    let bench = Bench::new();
    for (line, code, word) in [
        ("bench --kernel nonsense", 2, "conv2d_forward, "),
        (
            "bench --kernel conv2d_forward --shape relu-8-8x8",
            2,
            "no kernel conv2d_forward runs on the shape relu-8-8x8",
        ),
        ("bench --shape conv3x3s1-0-8-8x8", 2, "conv3x3s1-0-8-8x8"),
        ("bench --shape maxpool9s1-8-8x8", 2, "a window must fit"),
        ("bench --shape nonsense*", 2, "conv3x3s1-3-16-32x32"),
        ("bench --variant nonsense", 2, "naive, fast"),
        ("bench --network nonsense", 2, "resnet20"),
        ("bench --model absent.safetensors", 3, "absent.safetensors"),
        ("bench --batch 0", 2, "--batch 0"),
        ("bench --rounds 0", 2, "--rounds"),
        ("bench --samples 0 kernels", 2, "--samples"),
        ("bench --max-seconds nan", 2, "--max-seconds"),
        ("bench --fail-over 5%", 2, "--baseline"),
        ("bench steps --dump x", 2, "about kernels"),
        ("bench kernels --dispatches", 2, "about steps"),
        ("bench --device reference", 2, "reference"),
        ("bench --device nonsense", 4, "nonsense"),
        ("bench --wgsl x.wgsl --entry f", 2, "--kernel"),
    ] {
        bench.refused(line, code, word);
    }
    assert!(names(bench.folder.path()).is_empty());
}

#[test]
fn probes_give_finite_figures_and_results() {
    let gpu = common::gpu();
    let start = Instant::now();
    let process = || start.elapsed();
    let clock = Clock::of(gpu, &process);
    for probe in probe::all(gpu.storage(), true) {
        let figure = probe.figure(probe.seconds(gpu, &clock).unwrap());
        assert!(figure.is_finite() && figure > 0.0, "{}: {figure} {}", probe.name, probe.unit);
        if gpu.device().features().contains(signstep::wgpu::Features::TIMESTAMP_QUERY) && probe.name == "fma" {
            let by_device = probe.seconds(gpu, &Clock::Timestamps).unwrap();
            let by_wall = probe.seconds(gpu, &Clock::Wall).unwrap();
            assert!(by_device > 0.0 && by_device < 10.0 * by_wall, "{by_device} s and {by_wall} s");
        }
        let outputs = probe.trial(gpu, 0, 0).unwrap().outputs().unwrap();
        // What is compared with itself is the same, unless something is not finite.
        assert_eq!(trial::compare(&outputs, &outputs, None), Ok(0.0), "{}", probe.name);
        assert!(outputs.iter().all(|w| w.bytes.iter().any(|b| *b != 0)), "{}", probe.name);
    }
}

#[test]
fn a_trial_is_repeatable_and_its_copies_are_not_equal() {
    let gpu = common::gpu();
    let mut rng = common::Rng::new(3);
    let layers = vec![signstep::model::Layer::Relu, common::conv("c", 5, 9, 3, 1, 1), signstep::model::Layer::Relu];
    let layers = layers.into_iter().chain([signstep::model::Layer::GlobalAvgPool, common::linear("z", 9, 3)]).collect();
    let model = common::random_model(&mut rng, Dims::new(5, 7, 6), layers);
    for storage in [Storage::Buffer, Storage::Texture] {
        let target = Target { limits: gpu.limits().clone(), storage, variant: Variant::Naive, ..Target::default() };
        let plan = Plan::new(&model, &target).unwrap();
        let dispatches: Vec<_> = plan.forward.iter().filter(|d| d.layer == "c").cloned().collect();
        let new = |setup| Trial::new(gpu, &dispatches, &plan.resources, &setup).unwrap();
        let once = new(Setup::once(3)).outputs().unwrap();
        assert_eq!(trial::compare(&new(Setup::once(3)).outputs().unwrap(), &once, None), Ok(0.0));
        let copies = new(Setup { samples: 3, working_set: 1 << 14, memory: 1 << 20 });
        let first = copies.outputs().unwrap();
        assert_eq!(trial::compare(&first, &once, None), Ok(0.0));
        assert!(trial::compare(&copies.outputs().unwrap(), &once, None).is_err(), "the second copy is the first one");
        let measure = copies.time(&Clock::Process(&|| Duration::from_secs(1)), 2).unwrap();
        assert!(measure.time == 0.0 && measure.wall > 0.0);

        let source = dispatches[0].kernel.source().unwrap();
        let custom = Custom::compile(gpu, &dispatches[0], dispatches[0].kernel.entry, &source.text).unwrap();
        let same = Trial::with_custom(gpu, &dispatches, &plan.resources, &Setup::once(3), &custom).unwrap();
        assert_eq!(trial::compare(&same.outputs().unwrap(), &once, None), Ok(0.0));
    }
    assert!(Custom::compile(gpu, &plan_of(&model).forward[0], "f", "nonsense").is_err());
}

fn plan_of(model: &signstep::Model) -> Plan {
    Plan::new(model, &Target::default()).unwrap()
}

#[test]
fn steps_are_timed_with_a_tuning_that_was_kept_only_where_one_was() {
    let bench = Bench::new();
    let cache = bench.path("cache");
    let run = |line: &str| bench.command(line).env("SIGNSTEP_CACHE", &cache).output().unwrap();
    let line = "bench --tuned --network digits-cnn --batch 2 --rounds 1 --format json";
    program::refused(&run(line), line, 2, &["--tuned", "signstep tune"]);
    // As `signstep tune` writes it, beside what the device answered.
    let key = signstep::tune::key(common::gpu());
    assert!(matches!(&names(&cache)[..], [one] if one.starts_with("habits-")), "{:?}", names(&cache));
    let shape = "conv2d_forward 32×4×4 to 32×4×4 kernel 3 stride 1/1 padding 1 relu";
    let file = format!("tiles-{:016x}.txt", signstep::kernel::hash(key.as_bytes()));
    let tiles = format!("{shape}: register-4x4\n");
    fs::write(cache.join(file), signstep::cli::readers::sealed(&key, &tiles)).unwrap();
    let output = run(line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("not a tuning"), "the tuning is used");
    let results = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(results["steps"].as_array().unwrap().len(), 1);
    // What is kept and compared is of the defaults.
    program::refused(&run("bench kernels --tuned"), "bench kernels --tuned", 2, &["--tuned is about steps"]);
    assert_eq!(run("bench --tuned --save").status.code(), Some(2));
}
