//! What goes wrong around the program: readers that leave, disks that are full, memory that is short, a device that is lost.
//! Each ends in an error of its own kind, with nothing half-written, and the same command goes on from there.

mod common;
#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names, refused};
use signstep::data::digits;
use signstep::{Adapter, Attack, Error, Gpu, Network, attack::Engine};
use std::collections::BTreeMap;
use std::fs;
#[cfg(unix)]
use std::io::{BufRead, BufReader, Read};
#[cfg(unix)]
use std::process::Command;
use std::process::Stdio;

const ATTACK: &str = "attack --method pgd --eps 0.2 --steps 2 --limit 60 --chunk 10";

fn tensors(bench: &Bench, out: &str) -> Vec<u8> {
    fs::read(bench.path(out).join("adversarial.safetensors")).unwrap()
}

#[test]
fn a_reader_that_leaves_loses_nothing() {
    let bench = Bench::new();
    bench.ok(&format!("{ATTACK} --out whole"));
    for line in ["--json", "--format table", "--format csv"] {
        let mut child = bench.command(&format!("{ATTACK} --out left {line} --fresh"));
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
        assert!(tensors(&bench, "left") == tensors(&bench, "whole"), "{line}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_answer_that_cannot_be_written_is_an_error_after_everything_was_kept() {
    let bench = Bench::new();
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let help = ["help", "--help", "--version", "attack --help", "help attack"].map(String::from);
    for line in [format!("{ATTACK} --out kept --json"), "devices".into(), "info".into()].into_iter().chain(help) {
        let output = bench.command(&line).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        refused(&output, &line, 8, &["standard output", "No space left"]);
    }
    assert!(bench.path("kept/report.json").exists() && !bench.path("kept/parts").exists());
    // Nowhere to complain either: still the right code, and no panic.
    let mut child = bench.command("devices");
    assert_eq!(child.stdout(full()).stderr(full()).status().unwrap().code(), Some(8));
}

/// A disk that is full after so many blocks of 512 bytes in a file, as a limit on the size of files.
#[cfg(unix)]
fn limited(bench: &Bench, blocks: usize, line: &str) -> std::process::Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_signstep")]).args(line.split_whitespace());
    command.current_dir(bench.folder.path()).stdin(Stdio::null()).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_keeps_what_is_whole_and_the_run_goes_on() {
    let bench = Bench::new();
    bench.ok(&format!("{ATTACK} --out whole"));
    let line = format!("{ATTACK} --out full");
    // Not even the manifest.
    refused(&limited(&bench, 0, &line), &line, 8, &["full"]);
    assert!(!bench.path("full").exists(), "{:?}", names(&bench.path("full")));
    // The manifest, but no part.
    refused(&limited(&bench, 4, &line), &line, 8, &["full"]);
    assert!(!bench.path("full").exists(), "{:?}", names(&bench.path("full")));
    // All parts, but not their sum.
    let size = tensors(&bench, "whole").len() / 512;
    let output = limited(&bench, size / 2, &line);
    refused(&output, &line, 8, &["full"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("60 of 60 images are kept in full: the same command goes on from there"), "{told}");
    let out = names(&bench.path("full"));
    assert_eq!(out, ["parts"], "nothing half-written");
    let parts = names(&bench.path("full/parts"));
    assert_eq!(
        parts.iter().filter(|name| name.ends_with(".safetensors") && !name.starts_with('.')).count(),
        6,
        "{parts:?}"
    );
    assert!(parts.iter().all(|name| !name.ends_with(".tmp")), "{parts:?}");
    bench.ok(&line);
    assert!(tensors(&bench, "full") == tensors(&bench, "whole"));
    // An evaluation, and a tuning that is kept: nothing is left of them.
    let line = "eval --attacks fgsm --limit 40 --out evaluated";
    refused(&limited(&bench, 4, line), line, 8, &["evaluated"]);
    assert!(!bench.path("evaluated/eval.json").exists() && !bench.path("evaluated/eval.safetensors").exists());
}

#[test]
fn memory_that_is_too_small_is_told_before_anything_is_written() {
    let bench = Bench::new();
    for line in ["attack --limit 4 --memory 1 --out none", "eval --limit 4 --memory 20K --attacks fgsm --out none"] {
        refused(&bench.run(line), line, 5, &["out of memory", "bytes"]);
        assert!(!bench.path("none").exists(), "{line}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_waited_for() {
    let bench = Bench::new();
    assert!(Command::new("mkfifo").arg(bench.path("pipe")).status().unwrap().success());
    let lines = ["info --model pipe", "attack --data pipe", "attack --targets pipe", "verify --logits pipe"];
    for line in lines.into_iter().chain(["convert pipe out.safetensors"]) {
        refused(&bench.run(line), line, 3, &["pipe"]);
    }
    for line in ["info --model /dev/zero", "attack --data /dev/zero", "attack --targets /dev/zero"] {
        refused(&bench.run(line), line, 3, &["/dev/zero"]);
    }
}

/// Names in files do not reach a terminal as they are.
#[test]
fn control_characters_are_not_printed() {
    let bench = Bench::new();
    let header = "{\"\\u001b[2Jevil\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0]].concat();
    fs::write(bench.path("evil.safetensors"), file).unwrap();
    let output = bench.run("info --model evil.safetensors");
    assert_eq!(output.status.code(), Some(3));
    assert!(!output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b));
}

/// Weights that say what they said before, a million times as loud, by way of activations so large that those of some digits
/// overflow.
fn overflowing() -> Vec<u8> {
    let sound = include_bytes!("../weights/digits-cnn.safetensors");
    let images = digits().unwrap().images(0..40).unwrap();
    for eighths in 0..32 {
        let most = 1e36 * 2_f64.powf(f64::from(eighths) / 4.0);
        let bytes = scaled(sound, [1e18, most / 1e18, 1e-16, 1e-16, 1e6 * 1e32 / most]);
        let health = Network::load(common::gpu(), &bytes).unwrap().logits(&images).unwrap().health;
        let marked = health.iter().filter(|h| !h.is_healthy()).count();
        if (5..=35).contains(&marked) {
            return bytes;
        }
    }
    panic!("no scale at which some overflow");
}

/// Weights of each layer times a factor, and biases times what has come together until then.
fn scaled(sound: &[u8], factors: [f64; 5]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = json(std::str::from_utf8(&bytes[8..start]).unwrap());
    let mut sum = 1.0;
    for (layer, factor) in ["conv1", "conv2", "conv3", "linear1", "linear2"].iter().zip(factors) {
        sum *= factor;
        for (part, factor) in [("weight", factor), ("bias", sum)] {
            let at = |i: usize| start + header[format!("{layer}.{part}")]["data_offsets"][i].as_u64().unwrap() as usize;
            for word in bytes[at(0)..at(1)].chunks_exact_mut(4) {
                let v = f64::from(f32::from_le_bytes(word.try_into().unwrap())) * factor;
                word.copy_from_slice(&(v as f32).to_le_bytes());
            }
        }
    }
    bytes
}

#[test]
fn poisoned_samples_are_delivered_as_they_were_when_asked_for() {
    let bench = Bench::new();
    fs::write(bench.path("net.safetensors"), overflowing()).unwrap();
    let line = "attack --model net.safetensors --limit 40 --steps 3 --untargeted --eps 0.3 --loss margin";
    refused(&bench.run(line), line, 7, &["sample", "NaN or infinite"]);
    assert!(!bench.path("signstep-out").exists(), "nothing is delivered");
    let output = bench.run(&format!("{line} --keep-going --out all"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stderr).unwrap();
    let report = json(&fs::read_to_string(bench.path("all/report.json")).unwrap());
    let marked = report["nonfinite_samples"].as_u64().unwrap() as usize;
    assert!((1..40).contains(&marked), "{marked} of 40");
    assert!(told.contains(&format!("warning: NaN or infinity arose in {marked} of 40 images")), "{told}");
    let table = String::from_utf8(output.stdout).unwrap();
    for text in [table, fs::read_to_string(bench.path("all/report.md")).unwrap()] {
        assert!(text.contains(&format!("images with NaN or infinity: {marked};")), "{text}");
    }
    let csv = bench.ok(&format!("{line} --keep-going --out all --format csv"));
    let (names, values) = csv.split_once('\n').unwrap();
    // From the end, for names of devices may hold commas.
    let from_end = names.rsplit(',').position(|name| name == "nonfinite_samples").unwrap();
    assert_eq!(values.trim_end().rsplit(',').nth(from_end), Some(marked.to_string().as_str()), "{csv}");
    assert_eq!(report["config"]["keep_going"], true);
    let bytes = tensors(&bench, "all");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| file.tensor(name).unwrap();
    let (health, success) = (of("health").data(), of("success").data());
    assert_eq!((of("health").shape(), health.iter().filter(|h| **h != 0).count()), (&[40][..], marked));
    let rows = of("adversarial").data().chunks(256).zip(of("clean").data().chunks(256));
    let mut moved = 0;
    for (i, (adversarial, clean)) in rows.enumerate() {
        assert!(health[i] == 0 || (adversarial == clean && success[i] == 0), "sample {i}");
        moved += usize::from(adversarial != clean);
    }
    assert!(moved > 0, "no healthy sample was attacked");
    // Alone or beside the poisoned: the same bytes.
    bench.ok(&format!("{line} --keep-going --out alone --chunk 1 --batch 1"));
    assert!(tensors(&bench, "alone") == bytes);
    // Without anything to mark there is a tensor of zeros.
    bench.ok("attack --limit 3 --keep-going --out healthy");
    let bytes = tensors(&bench, "healthy");
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("health").unwrap().data(), [0; 3]);
}

#[test]
fn a_device_that_is_lost_in_the_middle_is_an_error_and_another_context_works() {
    let bytes = include_bytes!("../weights/digits-cnn.safetensors");
    let mut set = digits().unwrap();
    let (images, labels) = (set.images(0..6).unwrap(), set.labels[..6].to_vec());
    // Many steps: the run is cut into several submissions, so that the loss comes between them.
    let attack = Attack::ifgsm(0.3).steps(3000).untargeted();
    let gpu = Gpu::new(&Adapter::Auto).expect("tests need an adapter: sh tests/with-driver cargo test");
    let net = Network::load(&gpu, bytes).unwrap();
    let mut told = 0;
    let lost = attack.run_with(&net, &images, &labels, &mut |steps| {
        if steps > 0 {
            told += 1;
            gpu.device().destroy();
        }
        true
    });
    let error = lost.expect_err("a lost device");
    assert!(matches!(error, Error::DeviceLost(_)) && error.exit_code() == 6, "{error:?}");
    assert!(told >= 1);
    // It stays lost, and says so.
    for again in 0..3 {
        assert!(matches!(net.logits(&images), Err(Error::DeviceLost(_))), "{again}");
        assert!(matches!(net.input_gradient(&images, &[0; 6]), Err(Error::DeviceLost(_))), "{again}");
    }
    assert!(matches!(Network::load(&gpu, bytes), Err(Error::DeviceLost(_))));
    let short = Attack::ifgsm(0.3).untargeted();
    let run = |gpu: &Gpu| short.run(&Network::load(gpu, bytes).unwrap(), &images, &labels).unwrap();
    let fresh = Gpu::new(&Adapter::Auto).unwrap();
    assert_eq!(run(&fresh).adversarial, run(common::gpu()).adversarial);
}

/// What a plan says that a network takes is what the device's allocator has given out for it.
#[test]
fn memory_is_what_was_predicted() {
    let networks = [
        ("digits-cnn", &include_bytes!("../weights/digits-cnn.safetensors")[..], 512),
        ("resnet20", &include_bytes!("golden/resnet20-random.weights.safetensors")[..], 32),
    ];
    for (name, bytes, n) in networks {
        let gpu = Gpu::new(&Adapter::Auto).unwrap();
        let given = || {
            // What is no longer needed goes when the device is looked at.
            let _ = gpu.device().poll(signstep::wgpu::PollType::wait_indefinitely());
            let report = gpu.device().generate_allocator_report()?;
            let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
            report.allocations.iter().for_each(|a| *sizes.entry(a.name.clone()).or_default() += a.size);
            Some((report.total_allocated_bytes, sizes))
        };
        let before = given();
        let net = Network::load(&gpu, bytes).unwrap();
        let images = common::Rng::new(1).images(n * net.model().input.len());
        net.input_gradient(&images, &vec![0; n]).unwrap();
        let (Some(before), Some(after)) = (before, given()) else {
            println!("{name}: this back end has no allocator to ask");
            continue;
        };
        let (predicted, measured) = (net.gpu_bytes() as f64, (after.0 - before.0) as f64);
        println!(
            "{name}, batch {n}: {predicted} bytes predicted, {measured} measured, ratio {:.4}",
            measured / predicted
        );
        let is_ours = |name: &str| net.plan().resources.iter().any(|r| r.label == name);
        let others: Vec<_> = after.1.iter().filter(|(name, _)| !is_ours(name)).collect();
        println!("{name}: beside the plan's own, before included: {others:?}");
        assert!((measured / predicted - 1.0).abs() <= 0.1, "{name}: {predicted} predicted, {measured} measured");
    }
}

/// Where work is cut changes no bit.
#[test]
fn submissions_of_any_size_give_the_same_bits() {
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let net = Network::load(&gpu, include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let mut set = digits().unwrap();
    let (images, labels) = (set.images(0..9).unwrap(), set.labels[..9].to_vec());
    for attack in [Attack::pgd(signstep::Norm::L2, 0.5).steps(12), Attack::apgd(signstep::Norm::Linf, 0.1).steps(12)] {
        let run = |flops| {
            let mut told = 0;
            gpu.cut_at(flops);
            let outcome = attack.run_with(&net, &images, &labels, &mut |steps| {
                told += u64::from(steps > 0);
                gpu.cut_at(flops);
                true
            });
            (outcome.unwrap(), told)
        };
        let (whole, few) = run(u64::MAX);
        for flops in [1, 3_000_000] {
            let (cut, many) = run(flops);
            assert!(many > 5 * few, "{flops}: told {many} times, uncut {few} times");
            assert_eq!(cut.adversarial, whole.adversarial, "cut at {flops}");
            assert_eq!(cut.adversarial_logits, whole.adversarial_logits, "cut at {flops}");
        }
    }
}

/// A submission is near a quarter of a second, whatever the device; here it must at least not be the whole run.
#[test]
fn long_work_is_cut_by_the_time_that_it_takes() {
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let net = Network::load(&gpu, include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let mut set = digits().unwrap();
    let (images, labels) = (set.images(0..450).unwrap(), set.labels.clone());
    let attack = Attack::ifgsm(0.3).steps(60).untargeted();
    attack.run(&net, &images, &labels).unwrap();
    let (mut longest, mut before) = (0.0_f64, std::time::Instant::now());
    let mut told = 0;
    attack
        .run_with(&net, &images, &labels, &mut |steps| {
            longest = longest.max(before.elapsed().as_secs_f64());
            before = std::time::Instant::now();
            told += u64::from(steps > 0);
            true
        })
        .unwrap();
    println!("{told} submissions, {longest:.2} s at most");
    // Other programs may have the processor meanwhile.
    assert!(longest < 2.0, "{told} submissions, {longest:.2} s at most");
}

#[test]
fn what_does_not_end_in_time_is_an_error_and_the_network_goes_on() {
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let net = Network::load(&gpu, include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let mut set = digits().unwrap();
    let (images, labels) = (set.images(0..200).unwrap(), set.labels[..200].to_vec());
    let attack = Attack::ifgsm(0.3).steps(5).untargeted();
    let want = attack.run(&net, &images, &labels).unwrap().adversarial;
    gpu.set_deadline(Some(std::time::Duration::from_nanos(1)));
    for again in 0..3 {
        let error = attack.run(&net, &images, &labels).expect_err("a nanosecond");
        assert!(matches!(&error, Error::DeviceLost(why) if why.contains("deadline of 1ns")), "{again}: {error:?}");
        assert_eq!(error.exit_code(), 6);
    }
    gpu.set_deadline(Some(std::time::Duration::from_secs(600)));
    assert!(attack.run(&net, &images, &labels).unwrap().adversarial == want);

    let bench = Bench::new();
    let (kernels, steps) =
        ("bench kernels --shape relu-16-8x8 --rounds 1", "bench steps --network digits-cnn --batch 1");
    for line in [ATTACK, "eval --attacks fgsm --limit 40", "verify", "study --rows 1 --limit 40", kernels, steps] {
        refused(&bench.run(&format!("{line} --deadline 1ns")), line, 6, &["deadline of 1ns"]);
        assert_eq!(names(bench.folder.path()), Vec::<String>::new(), "{line}");
    }
    refused(&bench.run("attack --deadline soon"), "attack", 2, &["--deadline", "soon", "90s"]);
    bench.ok(&format!("{ATTACK} --deadline 10m --out late"));
    bench.ok(&format!("{ATTACK} --out whole"));
    assert!(tensors(&bench, "late") == tensors(&bench, "whole"));
}

/// Waits until the run in `out` has kept so many parts.
#[cfg(unix)]
fn parts(bench: &Bench, out: &str, least: usize) -> usize {
    for _ in 0..6000 {
        let there = bench.path(&format!("{out}/parts"));
        if there.exists() {
            let kept = names(&there).iter().filter(|n| n.ends_with(".safetensors") && !n.starts_with('.')).count();
            if kept >= least {
                return kept;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("no {least} parts in a minute");
}

#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_when_the_chunk_under_way_is_kept_and_the_run_goes_on() {
    let bench = Bench::new();
    let line = "attack --method pgd --eps 0.2 --steps 300 --limit 120 --chunk 6";
    bench.ok(&format!("{line} --out whole"));
    let child = bench.command(&format!("{line} --out run")).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let child = child.unwrap();
    let before = parts(&bench, "run", 2);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted: the run ends when the images under way are kept"), "{said}");
    assert!(said.contains("the same command goes on from there") && !said.contains("panicked"), "{said}");
    let kept = parts(&bench, "run", before);
    assert!(kept < 20, "the run was not ended: {kept} parts");
    assert_eq!(names(&bench.path("run")), ["parts"]);
    assert!(names(&bench.path("run/parts")).iter().all(|name| !name.ends_with(".tmp")));
    bench.ok(&format!("{line} --out run"));
    assert!(tensors(&bench, "run") == tensors(&bench, "whole"));
}

/// A run is killed, its adapter is gone when it would go on (a driver taken off, a card pulled out), and comes back.
#[cfg(unix)]
#[test]
fn an_adapter_that_vanishes_between_two_runs_costs_nothing() {
    let bench = Bench::new();
    let line = "attack --method pgd --eps 0.2 --steps 300 --limit 60 --chunk 6";
    bench.ok(&format!("{line} --out whole"));
    let mut child =
        bench.command(&format!("{line} --out run")).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    parts(&bench, "run", 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = parts(&bench, "run", 2);
    let contents = || -> Vec<(String, Vec<u8>)> {
        let folder = bench.path("run/parts");
        names(&folder).into_iter().map(|name| (name.clone(), std::fs::read(folder.join(&name)).unwrap())).collect()
    };
    let before = contents();
    let gone = |line: &str| {
        let mut command = bench.command(line);
        command
            .env("WGPU_BACKEND", "vulkan")
            .env("VK_ICD_FILENAMES", "/nonexistent")
            .env("VK_DRIVER_FILES", "/nonexistent");
        command.output().unwrap()
    };
    refused(&gone(&format!("{line} --out run")), line, 4, &["no GPU adapter"]);
    refused(&bench.run(&format!("{line} --out run --device the-one-that-was")), line, 4, &["the-one-that-was"]);
    assert_eq!(parts(&bench, "run", kept), kept);
    assert!(contents() == before, "parts were touched");
    bench.ok(&format!("{line} --out run"));
    assert!(tensors(&bench, "run") == tensors(&bench, "whole"));
}

#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_the_program_at_once() {
    let bench = Bench::new();
    // One chunk, and hours of it.
    let line = "attack --method pgd --eps 0.2 --steps 10000000 --limit 60 --chunk 60 --out run";
    let mut child = bench.command(line).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    // What it says right before the chunk begins.
    while !said.contains("for 60 images") {
        assert!(told.read_line(&mut said).unwrap() > 0, "{said}");
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    interrupt(&child);
    while !said.contains("images under way are kept") {
        assert!(told.read_line(&mut said).unwrap() > 0, "{said}");
    }
    let start = std::time::Instant::now();
    interrupt(&child);
    told.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert!(!said.contains("panicked"), "{said}");
    assert!(parts(&bench, "run", 0) == 0 && !bench.path("run/report.json").exists());
    let run = "attack --eps 0.2 --limit 6 --out run";
    refused(&bench.run(run), run, 8, &["another run"]);
    bench.ok(&format!("{run} --fresh"));
}

#[test]
fn an_evaluation_goes_on_past_what_is_poisoned_when_asked_to() {
    let bench = Bench::new();
    fs::write(bench.path("net.safetensors"), overflowing()).unwrap();
    let line = "eval --model net.safetensors --limit 40 --eps 0.3 --attacks fgsm:loss=margin,ifgsm:steps=3:loss=margin";
    refused(&bench.run(&format!("{line} --out none")), line, 7, &["sample", "NaN or infinite"]);
    assert!(!bench.path("none").exists(), "nothing is delivered");
    let output = bench.run(&format!("{line} --keep-going --out all"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    let report = json(&fs::read_to_string(bench.path("all/eval.json")).unwrap());
    let marked = report["evidence"]["nonfinite_samples"].as_u64().unwrap() as usize;
    assert!((1..40).contains(&marked), "{marked} of 40");
    assert!(told.contains(&format!("warning: NaN or infinity arose in {marked} of 40 images")), "{told}");
    assert_eq!(report["config"]["keep_going"], true);
    let read = |out: &str| fs::read(bench.path(out).join("eval.safetensors")).unwrap();
    let bytes = read("all");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| file.tensor(name).unwrap();
    let broken: Vec<i64> =
        of("broken_by").data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let health = of("health").data().to_vec();
    assert_eq!(health.iter().filter(|h| **h != 0).count(), marked);
    // Marked when clean (-2, no right answer) or under an attack (-3), or turned before that; never robust (-1).
    assert!(broken.iter().zip(&health).all(|(b, h)| *h == 0 || *b != -1), "{broken:?} {health:?}");
    let robust = broken.iter().filter(|b| **b == -1).count() as u64;
    assert_eq!(report["robust_accuracy"]["count"].as_u64(), Some(robust));
    bench.ok(&format!("{line} --keep-going --out alone --chunk 1 --batch 1"));
    assert!(read("alone") == bytes, "beside others it is another evaluation");
    // Where nothing is marked, the numbers are those of an evaluation that would have ended.
    bench.ok("eval --limit 30 --attacks fgsm --out plain");
    bench.ok("eval --limit 30 --attacks fgsm --out asked --keep-going");
    let rates = |out: &str| json(&fs::read_to_string(bench.path(out).join("eval.json")).unwrap())["attacks"].clone();
    assert_eq!(rates("plain"), rates("asked"));
}
