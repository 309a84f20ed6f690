//! The program, run as a user runs it. What needs an adapter fails where there is none.

#[path = "common/program.rs"]
mod program;

use program::{Bench, json, names};
use safetensors::SafeTensors;
use signstep::data::{View, write_safetensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

impl Bench {
    /// Runs what must fail with `code` and one line that holds each of `words`, leaving no output folder.
    fn refused(&self, line: &str, code: i32, words: &[&str]) {
        refused(self.command(line), line, code, words);
        assert!(!self.path("signstep-out").exists(), "signstep {line}: left an output folder");
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// A data set of mid-grey images.
    fn data(&self, name: &str, side: usize, labels: &[i64]) {
        let shape = [labels.len(), 1, side, side];
        let images = vec![128; labels.len() * side * side];
        let tensors = [("images", View::u8(&shape, &images)), ("labels", View::i64(&[labels.len()], labels))];
        write_safetensors(&self.path(name), &tensors, &BTreeMap::new()).unwrap();
    }
}

fn refused(mut command: Command, line: &str, code: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "signstep {line}: {errors}");
    assert!(output.stdout.is_empty(), "signstep {line}: an answer beside an error");
    let told: Vec<&str> = errors.lines().filter(|l| !l.starts_with("warning: ")).collect();
    assert!(told.len() == 1 && told[0].starts_with("error: "), "signstep {line}: one line, not\n{errors}");
    for word in words {
        assert!(told[0].contains(word), "signstep {line}: `{word}` is missing from\n{errors}");
    }
}

fn without_adapter(mut command: Command) -> Command {
    command
        .env("WGPU_BACKEND", "vulkan")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .env("VK_DRIVER_FILES", "/nonexistent");
    command
}

fn weights() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/digits-cnn.safetensors")).unwrap()
}

#[test]
fn without_arguments_nine_attacked_digits_in_ten_are_turned() {
    let bench = Bench::new();
    let text = bench.ok("");
    assert!(text.contains("turned to their target") && text.contains("written to signstep-out"), "{text}");
    assert!(text.lines().count() < 20 && text.lines().all(|l| l.chars().count() <= 120), "{text}");
    assert_eq!(names(bench.folder.path()), ["signstep-out"]);
    let out = bench.path("signstep-out");
    assert_eq!(
        names(&out),
        ["adversarial.safetensors", "images", "report.json", "report.md", "samples.csv", "sheet.png"]
    );
    assert_eq!(names(&out.join("images")).len(), 450);

    let report = json(&fs::read_to_string(out.join("report.json")).unwrap());
    assert_eq!((&report["schema_version"], &report["samples"]), (&1.into(), &450.into()));
    assert!(report["clean_accuracy"].as_f64().unwrap() >= 0.98, "{report}");
    assert!(report["success_rate"].as_f64().unwrap() >= 0.9, "{report}");
    assert!(report["max_perturbation"].as_f64().unwrap() <= 0.3 + 1e-6, "{report}");
    assert_eq!(report["config"]["eps"]["value"], 0.3);
    assert_eq!(report["nonfinite_samples"], 0);
    assert!(report["timing"]["sample_steps_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["gpu_bytes"].as_u64().unwrap() > 0);

    let sheet = image::open(out.join("sheet.png")).unwrap();
    assert!(sheet.width() > 600 && sheet.height() > 300);

    let bytes = fs::read(out.join("adversarial.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("adversarial"), [450, 1, 8, 8]);
    assert_eq!(shape("adversarial_logits"), [450, 10]);
    for name in ["labels", "targets", "attacked", "success", "loss", "linf", "l2"] {
        assert_eq!(shape(name), [450], "{name}");
    }
    pictures_are_the_tensor(&out, &file);
}

/// Every picture holds the bytes of its row of `adversarial`, in one channel or three.
fn pictures_are_the_tensor(out: &Path, file: &safetensors::SafeTensors<'_>) {
    let tensor = file.tensor("adversarial").unwrap();
    let [n, c, h, w] = *tensor.shape() else { panic!("four axes") };
    let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
    assert_eq!(names(&out.join("images")).len(), n);
    for (i, planes) in values.chunks_exact(c * h * w).enumerate() {
        let picture = image::open(out.join(format!("images/{i:06}.png"))).unwrap();
        assert_eq!((picture.color().channel_count() as usize, picture.color().bytes_per_pixel() as usize), (c, c));
        assert_eq!((picture.height() as usize, picture.width() as usize), (h, w));
        for (at, pixel) in picture.as_bytes().chunks_exact(c).enumerate() {
            for (channel, byte) in pixel.iter().enumerate() {
                assert_eq!(planes[channel * h * w + at], f32::from(*byte) / 255.0, "image {i}, pixel {at}");
            }
        }
    }
}

#[test]
fn colour_pictures_are_the_bytes_of_the_tensor_and_read_back_as_data() {
    let bench = Bench::new();
    let golden = include_bytes!("golden/seeded/resnet20.safetensors");
    let golden = safetensors::SafeTensors::deserialize(golden).unwrap();
    let images = golden.tensor("images").unwrap();
    let views = [
        ("images", signstep::data::View::u8(images.shape(), images.data())),
        ("labels", signstep::data::View::u8(&images.shape()[..1], &[3, 3, 3, 3])),
    ];
    signstep::data::write_safetensors(&bench.path("data.safetensors"), &views, &Default::default()).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/resnet20-cifar10.safetensors");
    let model = model.display();
    bench.ok(&format!("attack --model {model} --data data.safetensors --untargeted --attack-all --steps 2 --out run"));
    let bytes = fs::read(bench.path("run/adversarial.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_ne!(file.tensor("adversarial").unwrap().data(), file.tensor("clean").unwrap().data());
    pictures_are_the_tensor(&bench.path("run"), &file);

    // What is delivered can be attacked again, as pictures.
    let rows: String = names(&bench.path("run/images")).iter().map(|name| format!("{name},3\n")).collect();
    fs::write(bench.path("run/images/labels.csv"), rows).unwrap();
    bench.ok(&format!("attack --model {model} --data run/images --method fgsm --untargeted --out again"));
    let again = fs::read(bench.path("again/adversarial.safetensors")).unwrap();
    let again = safetensors::SafeTensors::deserialize(&again).unwrap();
    assert_eq!(again.tensor("clean").unwrap().data(), file.tensor("adversarial").unwrap().data());
}

#[test]
fn json_is_the_report_that_is_written() {
    let bench = Bench::new();
    let printed = json(&bench.ok("attack --json --limit 20 --method fgsm --untargeted --eps 51/255"));
    let written = json(&fs::read_to_string(bench.path("signstep-out/report.json")).unwrap());
    assert_eq!(printed, written);
    assert_eq!(printed["config"]["method"], "fgsm");
    assert_eq!(printed["config"]["targets"], "none");
    assert_eq!(printed["config"]["eps"]["text"], "51/255");
    assert_eq!(printed["config"]["step_size"]["text"], "51/255");
    assert_eq!((&printed["config"]["steps"], &printed["samples"]), (&1.into(), &20.into()));
}

#[test]
fn results_do_not_depend_on_the_batch() {
    let bench = Bench::new();
    let file = |batch: usize| {
        let out = format!("out-{batch}");
        bench.ok(&format!("attack --limit 100 --batch {batch} --out {out}"));
        fs::read(bench.path(&out).join("adversarial.safetensors")).unwrap()
    };
    let alone = file(64);
    assert!(alone == file(7), "batches of 7 and of 64 differ");
}

/// Its adversarial images, for this network or another one; the file or the folder.
#[test]
fn what_a_run_left_is_data() {
    let bench = Bench::new();
    let report = json(&bench.ok("attack --untargeted --limit 40 --eps 0.2 --json --out run"));
    let robust = report["robust"].as_u64().unwrap();
    assert!(robust < 40);
    for data in ["run", "run/adversarial.safetensors"] {
        let told = json(&bench.ok(&format!("verify --data {data} --json")));
        assert_eq!(told["clean_correct"].as_u64().unwrap(), robust, "{told}");
    }
}

/// A radius in grey levels, labels of another order, and who was wrong when clean.
#[test]
fn what_is_likely_a_mistake_is_told() {
    let bench = Bench::new();
    let told = |line: &str| String::from_utf8(bench.run(line).stderr).unwrap();
    for command in ["attack --untargeted", "eval --attacks fgsm"] {
        let said = told(&format!("{command} --limit 20 --eps 8 --out out"));
        assert!(said.contains("warning: eps 8 is more than the whole range") && said.contains("8/255"), "{said}");
        let said = told(&format!("{command} --limit 20 --eps 0.3 --fresh --out out"));
        assert!(!said.contains("warning: eps") && !said.contains("right when clean"), "{said}");
    }
    // Every label is off by one.
    let report = json(&bench.ok("attack --untargeted --limit 30 --json --out run"));
    let run = fs::read(bench.path("run/adversarial.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&run).unwrap();
    let labels: Vec<i64> = bytemuck::pod_collect_to_vec(tensors.tensor("labels").unwrap().data());
    let shifted: Vec<i64> = labels.iter().map(|y| (y + 1) % 10).collect();
    let clean = tensors.tensor("clean").unwrap();
    let pixels: Vec<f32> = bytemuck::pod_collect_to_vec(clean.data());
    let set = [("images", View::f32(clean.shape(), &pixels)), ("labels", View::i64(&[30], &shifted))];
    write_safetensors(&bench.path("shifted.safetensors"), &set, &BTreeMap::new()).unwrap();
    assert!(report["clean_correct"].as_u64().unwrap() > 20);
    for command in ["attack --untargeted", "eval --attacks fgsm"] {
        let said = told(&format!("{command} --data shifted.safetensors --eps 0.1 --out shifted-{}", &command[..4]));
        assert!(said.contains("of 30 images are right when clean"), "{said}");
    }
    // Who is wrong when clean needs no move at all.
    let line = "attack --untargeted --min-eps --eps 4/255 --data shifted.safetensors --json --out least";
    let report = json(&bench.ok(line));
    let run = fs::read(bench.path("least/adversarial.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&run).unwrap();
    let least: Vec<f32> = bytemuck::pod_collect_to_vec(tensors.tensor("min_eps").unwrap().data());
    let wrong = least.iter().filter(|eps| **eps == 0.0).count() as u64;
    assert_eq!(wrong, 30 - report["clean_correct"].as_u64().unwrap());
    assert_eq!(tensors.tensor("success").unwrap().dtype(), safetensors::Dtype::BOOL);
}

#[test]
fn every_rule_for_targets_runs() {
    let bench = Bench::new();
    bench.write("targets.txt", b"1\n-1\n2\n");
    for rule in ["none", "random", "next", "least-likely", "second", "3", "targets.txt"] {
        let report = json(&bench.ok(&format!("attack --limit 3 --json --targets {rule} --out out-{rule}")));
        assert_eq!(report["config"]["targets"], if rule == "targets.txt" { "file" } else { rule });
    }
    bench.write("short.txt", b"1\n");
    bench.refused("attack --limit 3 --targets short.txt", 3, &["short.txt"]);
    bench.write("high.txt", b"1\n2\n10\n");
    bench.refused("attack --limit 3 --targets high.txt", 3, &["high.txt", "10"]);
    let rules = "there are none, random, next, least-likely, second, and classes by their numbers or names; nor is there a file of that name";
    bench.refused("attack --limit 3 --targets 10", 2, &["--targets: class 10", "0 to 9"]);
    bench.refused("eval --limit 3 --attacks pgd:targets=10", 2, &["pgd:targets=10", "class 10", "0 to 9"]);
    // The same whichever way it is written, and the same as a file of it.
    bench.write("threes.txt", b"3\n3\n3\n");
    bench.ok("attack --limit 3 --targets 03 --out three");
    bench.ok("attack --limit 3 --targets 3 --out three");
    bench.ok("attack --limit 3 --targets threes.txt --out threes");
    let rows = |out: &str| fs::read_to_string(bench.path(&format!("{out}/samples.csv"))).unwrap();
    assert_eq!(rows("three"), rows("threes"));
    bench.refused("attack --limit 3 --targets leastlikely", 2, &["--targets", "\"leastlikely\"", rules]);
}

#[test]
fn requests_that_make_no_sense_are_usage_errors() {
    let bench = Bench::new();
    bench.refused("attack --eps -1", 2, &["--eps", "-1"]);
    bench.refused("attack --eps 8/0", 2, &["--eps", "8/0"]);
    bench.refused("attack --alpha x", 2, &["--step-size", "x"]);
    bench.refused("attack --eps inf", 2, &["--step-size"]);
    bench.refused("attack --bounds 1,0", 2, &["--bounds"]);
    for (flag, words) in [
        ("--norm l2", "linf alone"),
        ("--shard 0/2", "a shard has only some of them"),
        ("--eps 0.1,0.2", "one radius"),
        ("--min-eps", "a smallest radius of its own"),
        ("--early-stop", "stop before the others"),
        ("--restarts 2", "all restarts would be the same"),
        ("--no-random-start", "never begins at random"),
        ("--momentum 1", "has none"),
        ("--keep-going", "the gradients of all images"),
    ] {
        let name = flag.split_whitespace().next().unwrap();
        bench.refused(&format!("attack --method uap {flag}"), 2, &[name, "uap", words]);
    }
    bench.refused("eval --attacks fgsm,uap", 2, &["--attacks uap", "one perturbation to all images"]);
    bench.refused("attack --norm l3", 2, &["--norm", "l3"]);
    bench.refused("attack --loss mse", 2, &["--loss", "mse"]);
    bench.refused("attack --method mifgsm --norm l2", 2, &["mifgsm", "linf"]);
    bench.refused("attack --method pgd --momentum 0.9", 2, &["--momentum", "pgd"]);
    bench.refused("attack --method fgsm --no-random-start", 2, &["--no-random-start", "fgsm"]);
    bench.refused("attack --method apgd-t --targets next", 2, &["apgd-t", "targets"]);
    bench.refused("attack --norm l3", 2, &["--norm", "l3"]);
    bench.refused("attack --restarts 2", 2, &["2 restarts", "random start"]);
    bench.refused("attack --method pgd --restarts 0", 2, &["restarts"]);
    bench.refused("attack --method nonsense", 2, &["nonsense"]);
    bench.refused("attack --method fgsm --steps 3", 2, &["fgsm"]);
    bench.refused("attack --steps 0", 2, &["steps"]);
    // Before it is said how long they would take.
    bench.refused("attack --steps 4294967295", 2, &["4294967295 steps are more than can be counted"]);
    bench.refused("attack --deadline 0s", 2, &["--deadline", "0s", "more than zero"]);
    bench.refused("attack --seed -1", 2, &["--seed", "-1"]);
    bench.refused("attack --batch 0", 2, &["--batch"]);
    bench.refused("attack --limit 0", 2, &["--limit"]);
    bench.refused("attack --chunk 0", 2, &["--chunk"]);
    bench.refused("attack --memory 1X", 2, &["--memory", "1X"]);
    bench.refused("attack --shard 2/2", 2, &["--shard", "2/2"]);
    bench.refused("attack --shard 1", 2, &["--shard"]);
    bench.refused("attack --limit 5 --shard 0/6", 2, &["--shard", "5 images"]);
    bench.refused("attack --nonsense", 2, &["--nonsense", "--help"]);
    bench.refused("nonsense", 2, &["nonsense"]);
    bench.refused("attack --untargeted --targets next", 2, &["--untargeted", "--targets"]);
    bench.refused("attack --json --format csv", 2, &["--json", "--format"]);
    bench.refused("attack --format nonsense", 2, &["nonsense", "markdown"]);
    bench.refused("verify --tolerance 1,1", 2, &["--logits"]);
    bench.refused("verify --logits x --tolerance -1,0", 2, &["--tolerance -1,0"]);
    bench.refused("verify --limit 0", 2, &["--limit"]);
    bench.refused("merge --out x", 2, &["DIR"]);
}

#[test]
fn broken_weights_name_their_file() {
    let bench = Bench::new();
    let good = weights();
    bench.write("empty.st", b"");
    bench.write("garbage.st", &[0x5a; 4000]);
    bench.write("truncated.st", &good[..good.len() - 100]);
    bench.write("header.st", &good[..40]);
    let mut nan = good.clone();
    let data = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    nan[data..data + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bench.write("nan.st", &nan);
    for name in ["missing.st", "empty.st", "garbage.st", "truncated.st", "header.st", "nan.st"] {
        bench.refused(&format!("attack --model {name}"), 3, &["model", name]);
        bench.refused(&format!("info --model {name}"), 3, &["model", name]);
    }
}

/// Finite weights whose activations overflow: nothing is delivered, and the sample is named.
#[test]
fn infinity_that_arises_while_running_is_an_error_of_its_own() {
    let bench = Bench::new();
    let mut huge = weights();
    let data = 8 + u64::from_le_bytes(huge[..8].try_into().unwrap()) as usize;
    for word in huge[data..].chunks_exact_mut(4) {
        let v = f32::from_le_bytes(word.try_into().unwrap());
        word.copy_from_slice(&(v * 1e12).to_le_bytes());
    }
    bench.write("huge.st", &huge);
    bench.refused("attack --model huge.st --limit 2", 7, &["sample 0", "NaN or infinite"]);
    bench.refused("attack --model huge.st --limit 2 --device reference", 7, &["sample 0", "NaN or infinite"]);
}

/// Folders of digits without threes, under the names that `named` gives to classes.
fn folders_of_digits(bench: &Bench, folder: &str, named: impl Fn(i64) -> Option<String>) {
    let mut digits = signstep::data::digits().unwrap();
    let pixels = digits.images(0..60).unwrap();
    for (i, (image, label)) in pixels.chunks(64).zip(&digits.labels).enumerate() {
        let Some(class) = named(*label) else { continue };
        let class = bench.path(folder).join(class);
        fs::create_dir_all(&class).unwrap();
        let bytes = image.iter().map(|x| (x * 255.0).round() as u8).collect();
        image::GrayImage::from_raw(8, 8, bytes).unwrap().save(class.join(format!("{i:02}.png"))).unwrap();
    }
}

#[test]
fn classes_of_pictures_are_the_networks_by_name() {
    let bench = Bench::new();
    let verified = |line: &str| {
        let output = bench.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["clean_accuracy"].as_f64().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    folders_of_digits(&bench, "some", |label| (label != 3).then(|| label.to_string()));
    let (accuracy, told) = verified("verify --json --data some");
    assert!(accuracy > 0.9 && !told.contains("classes"), "{accuracy}: {told}");
    let (_, told) = verified("verify --json --data some --limit 2");
    assert!(told.contains("the first 2 images are of 1 of 10 classes"), "{told}");
    folders_of_digits(&bench, "renamed", |label| Some(if label == 3 { "three".into() } else { label.to_string() }));
    bench.refused("verify --data renamed", 3, &["class `three` is none of the network's: 0, 1"]);
    folders_of_digits(&bench, "others", |label| Some(format!("n0{label}")));
    let (accuracy, told) = verified("verify --json --data others");
    assert!(accuracy > 0.9 && told.contains("so `n00` is `0`"), "{accuracy}: {told}");
    // A class is aimed at by its name or its number, which is one run.
    let report = json(&bench.ok("attack --limit 3 --data others --targets n07 --json --out seven"));
    assert_eq!(report["config"]["targets"], "7");
    let told = bench.run("attack --limit 3 --data others --targets 7 --out seven");
    assert!(String::from_utf8_lossy(&told.stderr).contains("holds this run already"), "{told:?}");
    bench.refused("attack --limit 3 --data others --targets n17", 2, &["--targets", "\"n17\"", "numbers or names"]);
}

#[test]
fn broken_data_name_their_file() {
    let bench = Bench::new();
    bench.data("labels.safetensors", 8, &[0, 10]);
    bench.refused("attack --data labels.safetensors", 3, &["labels.safetensors", "label 10", "sample 1"]);
    bench.data("size.safetensors", 9, &[0]);
    bench.refused("attack --data size.safetensors", 3, &["size.safetensors", "1×9×9", "1×8×8"]);
    bench.refused("attack --data missing.safetensors", 3, &["missing.safetensors"]);
    // Where the channels are others, no other size helps.
    for (channels, side, way_out) in
        [("colours", 8, "pictures keep their channels"), ("greys", 9, "--resize and --crop")]
    {
        fs::create_dir_all(bench.path(&format!("{channels}/3"))).unwrap();
        let picture = bench.path(&format!("{channels}/3/a.png"));
        match channels {
            "colours" => image::RgbImage::from_pixel(side, side, image::Rgb([9, 99, 199])).save(picture).unwrap(),
            _ => image::GrayImage::from_pixel(side, side, image::Luma([99])).save(picture).unwrap(),
        }
        bench.refused(&format!("attack --data {channels}"), 3, &["digits-cnn takes 1×8×8", way_out]);
    }
    bench.write("empty.safetensors", b"");
    bench.refused("attack --data empty.safetensors", 3, &["empty.safetensors"]);
    bench.write("short.bin", &[0; 3072]);
    bench.refused("attack --data short.bin", 3, &["short.bin"]);
}

#[test]
fn help_names_every_setting_once() {
    let bench = Bench::new();
    for command in ["attack", "eval", "study", "verify", "merge", "devices", "info", "tune", "bench"] {
        let help = bench.ok(&format!("{command} --help"));
        let lines = help.lines().filter(|line| line.trim_start().starts_with("SIGNSTEP_CACHE")).count();
        assert_eq!(lines, 1, "{command}: {help}");
    }
    let help = bench.ok("eval --help");
    for key in ["steps", "step-size", "restarts", "loss", "momentum", "targets", "classes", "schedule"] {
        assert!(help.contains(key), "{key}: {help}");
    }
    // What a reader of figures must know.
    let help = bench.ok("attack --help").split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["count neither as attacked nor as turned", "a smaller one that was not looked at"] {
        assert!(help.contains(words), "{words}: {help}");
    }
    for command in ["attack", "eval"] {
        let help = bench.ok(&format!("{command} --help")).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains("files of images hold values in [0, 1] whatever they are"), "{command}: {help}");
        assert!(help.contains("With others than 0,1 floats are delivered"), "{command}: {help}");
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused_first() {
    let bench = Bench::new();
    // A path below a regular file: permissions would not stop root.
    bench.write("file", b"x");
    for out in ["file", "file/below"] {
        let why = format!("--out {out}: file is a file");
        for command in ["attack --limit 2", "eval --limit 2", "study --rows 1", "merge none"] {
            bench.refused(&format!("{command} --out {out}"), 8, &[&why]);
        }
    }
    assert_eq!(names(bench.folder.path()), ["file"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", bench.path("link")).unwrap();
        bench.refused("attack --limit 2 --out link", 8, &["--out link: link is", "a link that leads nowhere"]);
        fs::create_dir(bench.path("nowhere")).unwrap();
        bench.ok("attack --limit 2 --out link");
    }
}

#[test]
fn an_unknown_device_is_named() {
    let bench = Bench::new();
    bench.refused("attack --limit 2 --device reference --math fast", 2, &["--math fast", "f64"]);
    // Built without the feature, or on a device without matrices (a device that has them is opened for them only by a build with it).
    bench.refused("attack --limit 2 --math coop", 2, &["math coop"]);
    bench.refused("attack --limit 2 --device nonesuch", 4, &["nonesuch", "--device reference"]);
    bench.refused("attack --limit 2 --device 99", 4, &["no adapter has the number 99; 0 is ", "--device reference"]);
}

#[test]
fn without_an_adapter_the_way_out_is_told_and_works() {
    let bench = Bench::new();
    for line in ["attack --limit 2", "devices"] {
        let words = ["mesa-vulkan-drivers", "--device reference"];
        refused(without_adapter(bench.command(line)), line, 4, &words);
        assert!(names(bench.folder.path()).is_empty(), "{line} left something behind");
    }
    // An environment that names no interface, or none that there is, is told of.
    for names in ["", "nonsense"] {
        let mut command = bench.command("devices");
        command.env("WGPU_BACKEND", names);
        refused(command, "devices", 4, &[&format!("WGPU_BACKEND is {names:?}"), "vulkan, metal, dx12 and gl"]);
    }
    let output = without_adapter(bench.command("attack --limit 8 --json --device reference")).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.contains("warning: ") && errors.contains("reference"), "{errors}");
    let report = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!((&report["device"]["name"], &report["math"]), (&"reference".into(), &"f64".into()));
    assert!(report["success_rate"].as_f64().unwrap() > 0.5, "{report}");
}

#[test]
fn what_cannot_be_delivered_is_said() {
    let bench = Bench::new();
    let warned = |line: &str, words: &str| {
        let output = bench.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{line}: {errors}");
        assert!(errors.lines().any(|l| l.starts_with("warning: ") && l.contains(words)), "{line}: {errors}");
    };
    warned("attack --limit 2 --eps 0.5/255 --out a", "nothing can be delivered");
    warned("attack --limit 2 --eps 0.3 --out b", "76/255");
    warned("attack --limit 2 --eps 8/255 --step-size 0.5/255 --out c", "do not reach");
    let labels = json(&bench.ok("attack --limit 2 --json --out e"));
    assert_eq!(labels["attacked"], 2, "{labels}");
    let list = fs::read_to_string(bench.path("e/samples.csv")).unwrap();
    let own: Vec<&str> = list.lines().skip(1).map(|line| line.split(',').nth(1).unwrap()).collect();
    bench.write("own.txt", format!("{}\n-1\n", own[0]).as_bytes());
    warned("attack --limit 2 --targets own.txt --out f", "own label: 1;");
    let quiet = bench.run("attack --limit 2 --eps 8/255 --out d");
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", String::from_utf8_lossy(&quiet.stderr));
}

/// Of floats between grey levels: each report that is for people says so, and none says it of what is 8-bit already.
#[test]
fn rounding_of_clean_images_is_said_in_every_report() {
    let bench = Bench::new();
    let mut digits = signstep::data::digits().unwrap();
    let (labels, mut images) = (digits.labels[..8].to_vec(), digits.images(0..8).unwrap());
    images.iter_mut().for_each(|x| *x *= 0.999);
    let views = [
        ("images", signstep::data::View::f32(&[8, 1, 8, 8], &images)),
        ("labels", signstep::data::View::i64(&[8], &labels)),
    ];
    signstep::data::write_safetensors(&bench.path("data.safetensors"), &views, &Default::default()).unwrap();
    let rounded = "- clean images were rounded to 8 bits before anything else, by at most 0.255/255";
    let attack = "attack --limit 8 --format markdown --fresh";
    for line in [attack, "eval --limit 8 --attacks fgsm --format markdown", "study --rows 1 --limit 8"] {
        let told = bench.ok(&format!("{line} --data data.safetensors"));
        assert!(told.contains(rounded), "{line}: {told}");
        let told = bench.ok(line);
        assert!(!told.contains("rounded"), "{line}: {told}");
    }
    let floats = bench.ok(&format!("{attack} --no-quantize --data data.safetensors"));
    assert!(!floats.contains("rounded"), "{floats}");
}

#[test]
fn floats_are_kept_when_asked_for() {
    let bench = Bench::new();
    // What is told is what is delivered.
    let wide = json(&bench.ok("attack --limit 2 --bounds 0,2 --json --out wide"));
    assert_eq!(wide["config"]["quantize"], false);
    let report = json(&bench.ok("attack --limit 4 --eps 0.5/255 --no-quantize --json"));
    assert_eq!(report["config"]["quantize"], false);
    let moved = report["max_perturbation"].as_f64().unwrap();
    assert!((moved - 0.5 / 255.0).abs() < 1e-6, "{moved}");
    // Floats have no 8-bit pictures.
    assert!(!bench.path("signstep-out/images").exists());
}

#[test]
fn devices_are_listed() {
    let bench = Bench::new();
    let list = json(&bench.ok("devices --json -v"));
    let first = &list.as_array().unwrap()[0];
    assert_eq!(first["index"], 0);
    assert!(first["name"].is_string() && first["driver"].is_string() && first["limits"].is_object());
    let text = bench.ok("devices");
    assert!(text.contains(first["name"].as_str().unwrap()), "{text}");
    let report = json(&bench.ok("attack --limit 2 --device 0 --json"));
    assert_eq!(report["device"]["name"], first["name"]);
}

#[test]
fn a_network_is_described() {
    let bench = Bench::new();
    let info = json(&bench.ok("info --json"));
    assert_eq!((&info["arch"], &info["parameters"]), (&"digits-cnn".into(), &20_730.into()));
    assert_eq!(info["input"], serde_json::json!([1, 8, 8]));
    assert!(info["flops_forward"].as_u64().unwrap() > 0 && info["bytes_per_sample"].as_u64().unwrap() > 0);
    let text = bench.ok("info");
    assert!(text.contains("linear2") && text.contains("FLOP"), "{text}");
    let plan = bench.ok("info --plan --batch 64");
    assert!(plan.len() > text.len() && plan.contains("conv2d"), "{plan}");
}

#[test]
fn help_has_examples_and_a_reader_may_leave() {
    let bench = Bench::new();
    for line in ["--help", "attack --help", "devices --help", "info --help", "verify --help", "merge --help"] {
        let text = bench.ok(line);
        assert!(text.contains("Examples:") && text.contains("WGPU_ADAPTER_NAME"), "{line}: {text}");
    }
    for line in ["info --json", "--help", "attack --help", "--version"] {
        let mut child = bench.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{line}: {errors}");
    }
}

/// Before anything is measured: a batch that no device takes is only refused behind it.
#[test]
fn a_tuning_that_cannot_be_kept_is_refused_before_it_is_measured() {
    let bench = Bench::new();
    bench.write("file", b"x");
    let tune = |cache: &Path| {
        let mut command = bench.command(&format!("tune --batch {}", u32::MAX));
        command.env("SIGNSTEP_CACHE", cache);
        command
    };
    // A path below a regular file: permissions would not stop root.
    let below = bench.path("file").join("cache");
    refused(tune(&below), "tune", 8, &["output: ", &below.join("tiles-").display().to_string()]);
    assert_eq!(names(bench.folder.path()), ["file"]);
    let told = String::from_utf8(tune(&below).output().unwrap().stderr).unwrap();
    let name = told.split("tiles-").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    // Nothing measured, nothing written: what is there stays as it is, and nothing is left beside it.
    let cache = bench.path("cache");
    let tunings = || names(&cache).into_iter().filter(|name| name.starts_with("tiles-")).collect::<Vec<_>>();
    refused(tune(&cache), "tune", 5, &["out of memory"]);
    assert!(tunings().is_empty(), "{:?}", names(&cache));
    let file = cache.join(format!("tiles-{name}"));
    fs::write(&file, "what no tuning says").unwrap();
    refused(tune(&cache), "tune", 5, &["out of memory"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "what no tuning says");
    assert_eq!(tunings(), [format!("tiles-{name}")]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(tune(&cache), "tune", 8, &[&format!("tiles-{name}: not a file")]);
}

/// What a device answered is kept beside the tunings: read again where it is whole and this device's and program's, else made anew,
/// and never a reason for other results or an error.
#[test]
fn what_a_device_answered_is_kept_or_asked_again() {
    let bench = Bench::new();
    let cache = bench.path("cache");
    let run = |cache: &Path| {
        let mut command = bench.command("attack --method fgsm --eps 51/255 --limit 20 --out out --fresh");
        let output = command.env("SIGNSTEP_CACHE", cache).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(!errors.contains("warning"), "{errors}");
        fs::read(bench.path("out/adversarial.safetensors")).unwrap()
    };
    let want = run(&cache);
    let list = names(&cache);
    assert!(matches!(&list[..], [one] if one.starts_with("habits-")), "{list:?}");
    let file = cache.join(&list[0]);
    let whole = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 2 + 18, "{whole}");

    // Kept: not written again. A slower way to the same bits is taken on the file's word.
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    assert_eq!(run(&cache), want);
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), before, "asked again");
    let rest = [&lines[2..19], &["00000000", ""]].concat().join("\n");
    let slower = signstep::cli::readers::sealed(lines[0], &rest);
    fs::write(&file, &slower).unwrap();
    assert_eq!(run(&cache), want);
    assert_eq!(fs::read_to_string(&file).unwrap(), slower, "not read");

    // A loop that is never begun would refuse every network, and no device has subgroups of five.
    let lying = |at: usize, word| {
        let mut words = lines[2..].to_vec();
        words[at] = word;
        signstep::cli::readers::sealed(lines[0], &(words.join("\n") + "\n"))
    };
    let other = |at: &str, by: &str| {
        assert!(lines[0].contains(at), "{}", lines[0]);
        whole.replacen(at, by, 1)
    };
    let broken = [
        String::new(),
        whole[..whole.len() / 2].into(),
        whole[..whole.len() - 1].into(),
        whole.replacen(lines[3], "00000000", 1),
        other("signstep ", "signstep 9."),
        other("(", "(another driver, "),
        other("program of ", "program of 1"),
        lying(0, "00000000"),
        lying(17, "00000005"),
    ];
    for text in broken {
        fs::write(&file, &text).unwrap();
        assert_eq!(run(&cache), want, "{text}");
        assert_eq!(fs::read_to_string(&file).unwrap(), whole, "not made anew: {text}");
    }
    // As does `devices -v`, whatever is there.
    fs::write(&file, &slower).unwrap();
    let mut devices = bench.command("devices -v");
    assert!(devices.env("SIGNSTEP_CACHE", &cache).status().unwrap().success());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().last(), lines.last().copied());

    // Where nothing can be kept: below a file.
    assert_eq!(run(&file.join("cache")), want);
    assert_eq!(names(&cache), list, "something was left behind");
}
