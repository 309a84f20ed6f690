//! What goes wrong around the program: readers that leave, disks that are full, memory that is short, a device that is lost.
//! Each ends in an error of its own kind, with nothing half-written, and the same command goes on from there.

mod common;
#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names, refused};
use signstep::data::digits;
use signstep::{Adapter, Attack, Error, Gpu, Network, attack::Engine};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};

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
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for line in [format!("{ATTACK} --out kept --json"), "devices".into(), "info".into()] {
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
    refused(&limited(&bench, size / 2, &line), &line, 8, &["full"]);
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
    for line in ["info --model pipe", "attack --data pipe", "attack --targets pipe", "verify --logits pipe"] {
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
    let lost = attack.run_with(&net, &images, &labels, &mut |_| {
        told += 1;
        gpu.device().destroy();
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
