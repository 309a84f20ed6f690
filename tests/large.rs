//! Large images: pictures of any size, framed as torchvision frames them, and a ResNet-18 on 224×224, as it is described in
//! `examples/networks/resnet18-224.toml`.

mod common;
#[path = "common/program.rs"]
mod program;

use common::{Rng, assert_bits, assert_close, relative_l2, seeded};
use image::{DynamicImage, GrayImage, RgbImage};
use program::{Bench, json, refused};
use safetensors::SafeTensors;
use signstep::attack::Engine;
use signstep::data::{Description, Framing, open, open_framed};
use signstep::model::Dims;
use signstep::{Adapter, Attack, Gpu, Model, Network, Norm, Options, Reference, weights};
use std::fs;
use std::path::Path;

fn save(at: &Path, (h, w, c): (usize, usize, usize), pixels: &[u8]) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    let (w, h, pixels) = (w as u32, h as u32, pixels.to_vec());
    let picture: DynamicImage = match c {
        1 => GrayImage::from_raw(w, h, pixels).unwrap().into(),
        _ => RgbImage::from_raw(w, h, pixels).unwrap().into(),
    };
    picture.save(at).unwrap();
}

/// Noise in sizes of every kind, as torchvision with Pillow framed it (`golden/framing.py`): every byte. The promise is 1/255;
/// arithmetic in whole numbers has no reason to be off at all.
#[test]
fn pictures_are_framed_to_the_byte_as_torchvision_does_it() {
    let file = SafeTensors::deserialize(include_bytes!("golden/framing.safetensors")).unwrap();
    let shape = |name: &str| {
        let shape = file.tensor(name).unwrap().shape().to_vec();
        (shape[0], shape[1], shape[2])
    };
    let cases = file.len() / 3;
    assert!(cases >= 16);
    for i in 0..cases {
        let (picture, framed) = (format!("{i}.picture"), format!("{i}.framed"));
        let flags = file.tensor(&format!("{i}.flags")).unwrap().data().to_vec();
        let flag = |at: usize| Some(u32::from(flags[at])).filter(|n| *n > 0);
        let framing = Framing { resize: flag(0), crop: flag(8) };
        let folder = tempfile::tempdir().unwrap();
        save(&folder.path().join("a/x.png"), shape(&picture), file.tensor(&picture).unwrap().data());
        let mut source = open_framed(folder.path(), None, framing).unwrap();
        let (h, w, c) = shape(&framed);
        assert_eq!(source.dims, Dims::new(c, h, w), "case {i}, {framing}");
        let got = source.all().unwrap();
        let want = file.tensor(&framed).unwrap().data().to_vec();
        // Channels side by side there, one after the other here.
        let want: Vec<f32> = (0..got.len()).map(|j| f32::from(want[j % (h * w) * c + j / (h * w)]) / 255.0).collect();
        assert_bits(&format!("case {i}, {:?} to {framing}", shape(&picture)), &got, &want);
    }
}

#[test]
fn pictures_of_different_sizes_need_a_framing_and_it_is_part_of_the_run() {
    let bench = Bench::new();
    let mut rng = Rng::new(3);
    for (name, h, w) in [("0/0.png", 30, 40), ("0/1.png", 45, 29), ("1/2.png", 29, 29)] {
        let pixels: Vec<u8> = (0..h * w).map(|_| rng.word() as u8).collect();
        save(&bench.path("pictures").join(name), (h, w, 1), &pixels);
    }
    let words = ["1.png", "29×45 pixels", "0.png", "40×30", "--resize 256 --crop 224"];
    refused(&bench.run("attack --data pictures"), "attack", 3, &words);
    let line = "attack --data pictures --resize 10";
    refused(&bench.run(line), line, 3, &["1.png", "10×15", "13×10", "--resize 10", "--crop"]);
    let line = "attack --data pictures --crop 40";
    refused(&bench.run(line), line, 3, &["0.png", "40×30 pixels", "--crop 40", "--resize"]);
    let line = "attack --data pictures --resize 12 --crop 10";
    refused(&bench.run(line), line, 3, &["images are 1×10×10", "1×8×8", "--resize and --crop"]);
    for (flags, words) in [
        ("--data pictures --resize 0", ["--resize", "one or more"]),
        ("--data pictures --resize 7 --crop 8", ["--crop 8", "--resize"]),
        ("--resize 12", ["--resize 12", "--data"]),
        ("--data digits.safetensors --crop 8", ["--crop 8", "folders of pictures"]),
    ] {
        let (images, labels) = ([0; 64], [1]);
        let list = [
            ("images", signstep::data::View::u8(&[1, 1, 8, 8], &images)),
            ("labels", signstep::data::View::i64(&[1], &labels)),
        ];
        signstep::data::write_safetensors(&bench.path("digits.safetensors"), &list, &Default::default()).unwrap();
        refused(&bench.run(&format!("attack {flags}")), flags, 2, &words);
    }

    let line = "attack --data pictures --attack-all --untargeted --eps 0.1 --steps 2";
    let report = json(&bench.ok(&format!("{line} --resize 9 --crop 8 --out run --json")));
    assert_eq!((&report["data"]["resize"], &report["data"]["crop"]), (&9.into(), &8.into()));
    // Another framing is another run; the same one goes on.
    refused(
        &bench.run(&format!("{line} --resize 8 --crop 8 --out run")),
        line,
        8,
        &["another run", "data.resize is 9 there and 8 here"],
    );
    bench.ok(&format!("{line} --resize 9 --crop 8 --out run"));
    let eval = "eval --attacks fgsm --eps 0.1 --data pictures --out evaluated";
    bench.ok(&format!("{eval} --resize 9 --crop 8"));
    refused(&bench.run(&format!("{eval} --resize 10 --crop 8")), eval, 8, &["data.resize is 9 there and 10 here"]);
    // What needs no framing gets none: the same bytes as before there was one.
    let same = bench.path("same");
    save(&same.join("0/x.png"), (8, 8, 1), &(0..64).collect::<Vec<u8>>());
    let plain = open(&same, None).unwrap().all().unwrap();
    let framing = Framing { resize: Some(8), crop: Some(8) };
    assert_bits("as it was", &open_framed(&same, None, framing).unwrap().all().unwrap(), &plain);
    let report = json(&bench.ok("attack --data same --attack-all --out plain --json"));
    assert!(report["data"].get("resize").is_none() && report["data"].get("crop").is_none());
}

/// A picture of an aspect that would fill memory if all of it were resized costs what its crop does.
#[test]
fn a_picture_of_any_aspect_costs_no_more_than_its_crop() {
    let folder = tempfile::tempdir().unwrap();
    let pixels: Vec<u8> = (0..60_000_u32).map(|i| (i / 3000 * 13) as u8).collect();
    save(&folder.path().join("a/x.png"), (60_000, 1, 1), &pixels);
    // Whole it would be 4,000 × 240,000,000 pixels.
    let framing = Framing { resize: Some(4000), crop: Some(224) };
    let seen = open_framed(folder.path(), None, framing).unwrap().all().unwrap();
    // All of it lies within a thirtieth of a pixel around where the middle two meet, of 117 and 130.
    assert_eq!((seen.len(), pixels[29_999], pixels[30_000]), (224 * 224, 117, 130));
    assert!(seen.iter().all(|v| [123.0 / 255.0, 124.0 / 255.0].contains(v)));
    let uncropped = Framing { resize: Some(4000), crop: None };
    assert!(open_framed(folder.path(), None, uncropped).unwrap_err().to_string().contains("at most"));
}

fn resnet18() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/networks/resnet18-224.toml");
    let arch = Description::open(&path).unwrap().arch;
    let tensors = seeded::tensors(&arch.layers);
    weights::from_layers(arch.layers, arch.input, tensors).unwrap()
}

/// Loads ResNet-18 on a device of its own and runs it forward and backward on two images: against the f64 reference, alone and in
/// chunks, and in the memory that was foreseen.
#[test]
fn resnet18_on_224_pixels() {
    let (model, gpu) = (resnet18(), Gpu::new(&Adapter::Auto).expect("tests need an adapter"));
    let given = || {
        let _ = gpu.device().poll(signstep::wgpu::PollType::wait_indefinitely());
        gpu.device().generate_allocator_report().map(|report| report.total_allocated_bytes)
    };
    assert_eq!((model.input, model.logits(), model.parameters()), (Dims::new(3, 224, 224), 1000, 11_684_712));
    let one = model.input.len();
    let images = Rng::new(18).images(2 * one);
    let classes = [7, 934];
    let before = given();
    let net = Network::new(&gpu, model.clone()).unwrap();
    let (seen, got) = (net.logits(&images).unwrap(), net.input_gradient(&images, &classes).unwrap());
    assert!(seen.health.iter().chain(&got.health).all(|h| h.is_healthy()));
    if let (Some(before), Some(after)) = (before, given()) {
        let (predicted, measured) = (net.gpu_bytes() as f64, (after - before) as f64);
        println!(
            "batch 2: {predicted} bytes predicted, {measured} measured; a sample {}",
            net.plan().bytes_per_sample()
        );
        assert!((measured / predicted - 1.0).abs() <= 0.1, "{predicted} predicted, {measured} measured");
    }

    // Memory for one image and a half: the same bits, one after the other.
    let memory = (net.plan().bytes(1) + net.plan().bytes(2)) / 2;
    assert_eq!(net.chunk(), net.plan().largest_batch(Options::default().memory).unwrap());
    drop(net);
    let small = Network::with_options(&gpu, model.clone(), &Options { memory, ..Options::default() }).unwrap();
    let again = small.input_gradient(&images, &classes).unwrap();
    assert_eq!((small.chunk(), small.gpu_bytes()), (1, small.plan().bytes(1)));
    assert_bits("in chunks", &again.gradient, &got.gradient);
    // A step moves every pixel that has a gradient, within the ball.
    let attack = Attack::new(signstep::Method::Fgsm, Norm::Linf, 1.0 / 255.0).attack_all(true);
    let out = attack.run(&small, &images[..one], &[7]).unwrap();
    let moved = out.adversarial.iter().zip(&images).filter(|(a, b)| a != b).count();
    assert!(moved > one * 9 / 10 && out.linf[0] <= 1.001 / 255.0, "{moved} of {one}");
    drop(small);

    // One image against f64, as in golden.rs: a mask that decides otherwise in f32 costs 3e-3; a wrong layer gives errors near one.
    let reference = Reference::new(model).unwrap();
    let want = reference.input_gradient(&images[..one], &classes[..1]).unwrap();
    let logits: Vec<f64> = reference.logits(&images[..one]).unwrap().logits.iter().map(|v| f64::from(*v)).collect();
    assert_close("logits", &seen.logits[..1000], &logits, 1e-4, 1e-4);
    let want: Vec<f64> = want.gradient.iter().map(|v| f64::from(*v)).collect();
    let error = relative_l2(&got.gradient[..one], &want);
    println!("gradient against f64: {error:.1e}");
    assert!(error <= 1e-2, "{error}");
}
