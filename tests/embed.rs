//! The engine inside a host program that has its own wgpu device: images from one GPU buffer to another, bit for bit as from
//! slices; the host's error handling sees nothing; its own work goes on beside; tasks are awaited, watched and cancelled.

mod common;

use common::*;
use signstep::attack::{Engine, Loss, argmax};
use signstep::model::{Dims, Layer};
use signstep::weights::{self, Tensors};
use signstep::{
    Adapter, Attack, Error, Gpu, Model, Network, Norm, Options, Outcome, Reference, Storage, Targets, Task, wgpu,
};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use wgpu::BufferUsages as Usage;

/// A host program: an instance, adapter, device and queue of its own, with the limits that every device has, and a pipeline
/// that paints images into a buffer.
struct Host {
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    paint: wgpu::ComputePipeline,
    /// What no error scope has caught.
    uncaptured: Arc<Mutex<Vec<String>>>,
}

const PAINT: &str = "
    struct What { seed: u32, length: u32, add: f32, pad: u32 }
    @group(0) @binding(0) var<uniform> what: What;
    @group(0) @binding(1) var<storage, read_write> images: array<f32>;
    @compute @workgroup_size(64) fn paint(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x < what.length) {
            let mixed = (id.x * 2654435761u) ^ (what.seed * 40503u + (id.x >> 3u));
            images[id.x] = f32((mixed >> 7u) % 256u) / 255.0 * 0.99 + what.add;
        }
    }";

impl Host {
    fn new() -> Self {
        Self::with_limits(|_| {})
    }

    fn with_limits(change: impl Fn(&mut wgpu::Limits)) -> Self {
        let mut required_limits = wgpu::Limits::default();
        change(&mut required_limits);
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::from_env().unwrap_or(wgpu::Backends::all() - wgpu::Backends::GL),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
            .expect("tests need an adapter: sh tests/with-driver cargo test");
        let (device, queue) = pollster::block_on(
            adapter.request_device(&wgpu::DeviceDescriptor { required_limits, ..Default::default() }),
        )
        .expect("a device");
        let uncaptured = Arc::new(Mutex::new(Vec::new()));
        let note = uncaptured.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note.lock().unwrap().push(e.to_string())));
        let source = wgpu::ShaderSource::Wgsl(PAINT.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let paint = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("the host's own"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        Host { adapter, device, queue, paint, uncaptured }
    }

    fn gpu(&self) -> Gpu {
        Gpu::from_device(&self.adapter, self.device.clone(), self.queue.clone())
    }

    fn buffer(&self, values: usize, usage: Usage) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("the host's"),
            size: 4 * values as u64,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer that holds `values`.
    fn filled(&self, values: &[f32]) -> wgpu::Buffer {
        let buffer = self.buffer(values.len(), Usage::COPY_SRC | Usage::COPY_DST);
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(values));
        buffer
    }

    /// Submits the host's own kernel, which fills `images`, and does not wait for it.
    fn paint(&self, images: &wgpu::Buffer, seed: u32, add: f32) {
        let length = (images.size() / 4) as u32;
        let what = self.buffer(4, Usage::UNIFORM | Usage::COPY_DST);
        self.queue.write_buffer(&what, 0, bytemuck::cast_slice(&[seed, length, add.to_bits(), 0]));
        let bind = |binding, buffer: &'_ wgpu::Buffer| (binding, buffer.clone());
        let entries = [bind(0, &what), bind(1, images)];
        let entries: Vec<wgpu::BindGroupEntry<'_>> = entries
            .iter()
            .map(|(binding, b)| wgpu::BindGroupEntry { binding: *binding, resource: b.as_entire_binding() })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.paint.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.paint);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(length.div_ceil(64), 1, 1);
        }
        self.queue.submit([encoder.finish()]);
    }

    fn read(&self, buffer: &wgpu::Buffer, values: usize) -> Vec<f32> {
        let staging = self.buffer(values, Usage::COPY_DST | Usage::MAP_READ);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, 4 * values as u64);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |r| r.expect("mapped"));
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("polled");
        let view = staging.get_mapped_range(..).expect("mapped");
        bytemuck::pod_collect_to_vec(&view)
    }

    /// Nothing has come to the host's own error handler.
    fn assert_undisturbed(&self) {
        assert_eq!(*self.uncaptured.lock().unwrap(), Vec::<String>::new());
    }
}

fn digits_model() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

/// The first `n` shipped digits and their labels.
fn digits(n: usize) -> (Vec<f32>, Vec<i64>) {
    let t = safetensors::SafeTensors::deserialize(include_bytes!("../weights/digits.safetensors")).unwrap();
    let images = t.tensor("images").unwrap().data()[..n * 64].iter().map(|k| f32::from(*k) / 255.0).collect();
    let labels = t.tensor("labels").unwrap().data().chunks_exact(8).take(n);
    (images, labels.map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
}

fn own_labels(engine: &dyn Engine, images: &[f32]) -> Vec<i64> {
    let k = engine.model().logits();
    engine.logits(images).unwrap().logits.chunks(k).map(|z| argmax(z) as i64).collect()
}

fn mixed(rng: &mut Rng) -> Model {
    let body = vec![conv("b", 10, 12, 3, 2, 1), Layer::Relu, conv("c", 12, 18, 3, 1, 1)];
    let mut layers = vec![conv("a", 3, 10, 3, 1, 1), Layer::Relu, residual(body, 8), Layer::Relu];
    layers.extend([
        Layer::MaxPool { size: 2, stride: 1, padding: 0 },
        Layer::GlobalAvgPool,
        Layer::Flatten,
        linear("z", 18, 5),
    ]);
    random_model(rng, Dims::new(3, 9, 7), layers)
}

/// Attacks from buffer to buffer and from slices: everything the same by bits.
fn compare(what: &str, host: &Host, net: &Network, attack: &Attack, images: &[f32], labels: &[i64]) -> Outcome {
    let given = host.filled(images);
    let made = host.buffer(images.len() + 3, Usage::COPY_SRC | Usage::COPY_DST);
    let mut told = 0;
    let mut count = |n| {
        told += n;
        true
    };
    let got = attack.run_buffers_with(net, &given, labels, &made, &mut count).unwrap();
    assert_eq!(told, got.sample_steps(), "{what}");
    let mut want = attack.run(net, images, labels).unwrap();
    assert_bits(what, &host.read(&made, images.len()), &want.adversarial);
    assert_bits("what was given is left alone", &host.read(&given, images.len()), images);
    let whole = want.clone();
    for pixels in [&mut want.clean, &mut want.adversarial, &mut want.linf, &mut want.l2] {
        pixels.clear();
    }
    // NaN is no equal of NaN; Debug tells numbers apart by their shortest decimal, which is one for one.
    assert_eq!(format!("{got:?}"), format!("{want:?}"), "{what}");
    whole
}

#[test]
fn buffers_give_the_bits_of_slices() {
    let host = Host::new();
    let mut rng = Rng::new(3);
    let (digit_images, digit_labels) = digits(33);
    let mixed = mixed(&mut rng);
    let mixed_images = rng.images(21 * mixed.input.len());
    let mixed_labels = own_labels(&Reference::new(mixed.clone()).unwrap(), &mixed_images);
    let cases = [(digits_model(), digit_images, digit_labels, 0.13), (mixed, mixed_images, mixed_labels, 0.02)];
    for (model, images, mut labels, eps) in cases {
        // One of them is wrong when clean.
        labels[5] = (labels[5] + 1) % model.logits() as i64;
        let mut off_grid = images.clone();
        off_grid.iter_mut().step_by(5).for_each(|x| *x = (*x + 0.0013).min(1.0));
        off_grid[3] = 1e-41;
        for (storage, batch) in [(Storage::Texture, None), (Storage::Buffer, None), (Storage::Buffer, Some(7))] {
            let options = Options { storage: Some(storage), batch, ..Options::default() };
            let net = Network::with_options(&host.gpu(), model.clone(), &options).unwrap();
            let pgd = Attack::pgd(Norm::Linf, eps).restarts(3).seed(5).first_id(7);
            let attacks = [
                Attack::ifgsm(eps),
                Attack::fgsm(eps).targets(Targets::Random).attack_all(true),
                pgd.clone(),
                pgd.clone().targets(Targets::LeastLikely).attack_all(true),
                pgd.clone().quantise(false),
                pgd.bounds(None),
                Attack::ifgsm(0.4 / 255.0),
            ];
            for attack in attacks {
                let what = format!("{} {storage:?} {batch:?} {attack:?}", model.arch);
                let out = compare(&what, &host, &net, &attack, &images, &labels);
                assert!(out.adversarial != images || attack.eps() < 0.002, "{what}: nothing was changed");
                let snapped = compare(&what, &host, &net, &attack, &off_grid, &labels).snapped;
                assert_eq!(snapped > 0.001, attack.delivers_bytes(), "{what}: {snapped}");
            }
            let given = host.filled(&images);
            assert_eq!(net.logits_buffer(&given, labels.len()).unwrap(), net.logits(&images).unwrap());
            let classes: Vec<u32> = labels.iter().map(|y| *y as u32).collect();
            let made = host.buffer(images.len(), Usage::COPY_SRC | Usage::COPY_DST);
            let got = net.input_gradient_buffer(&given, &classes, &made).unwrap();
            let want = net.input_gradient(&images, &classes).unwrap();
            assert_bits("gradient", &host.read(&made, images.len()), &want.gradient);
            assert_bits("loss", &got.loss, &want.loss);
            assert_eq!((got.health, got.gradient.len()), (want.health, 0));
        }
    }
    host.assert_undisturbed();
}

/// What `square` delivers and what is known of it are the same; but here a sample that has succeeded keeps its place.
#[test]
fn square_gives_the_bits_of_slices_and_takes_every_step() {
    let host = Host::new();
    let net = Network::with_options(&host.gpu(), digits_model(), &Options { batch: Some(7), ..Options::default() });
    let (net, (images, labels)) = (net.unwrap(), digits(20));
    let given = host.filled(&images);
    let made = host.buffer(images.len(), Usage::COPY_SRC | Usage::COPY_DST);
    let attack = Attack::square(Norm::Linf, 0.3).steps(50);
    let mut want = attack.run(&net, &images, &labels).unwrap();
    let got = attack.run_buffers(&net, &given, &labels, &made).unwrap();
    assert_bits("delivered", &host.read(&made, images.len()), &want.adversarial);
    let all = |out: &Outcome| -> u64 { out.attacked.iter().map(|attacked| 50 * u64::from(*attacked)).sum() };
    assert!(want.sample_steps() < all(&want), "nobody stopped early");
    assert_eq!(got.sample_steps(), all(&want));
    want.steps_taken.clone_from(&got.steps_taken);
    for pixels in [&mut want.clean, &mut want.adversarial, &mut want.linf, &mut want.l2] {
        pixels.clear();
    }
    assert_eq!(got, want);
}

#[test]
fn what_is_not_sound_is_marked_or_refused_as_from_slices() {
    let host = Host::new();
    let net = Network::new(&host.gpu(), digits_model()).unwrap();
    let (images, labels) = digits(9);
    for poison in [f32::NAN, f32::INFINITY, 3e38] {
        let mut poisoned = images.clone();
        poisoned[4 * 64 + 20] = poison;
        for all in [false, true] {
            let attack = Attack::pgd(Norm::Linf, 0.3).restarts(2).bounds(None).attack_all(all);
            let out = compare("poisoned", &host, &net, &attack, &poisoned, &labels);
            assert_eq!(out.first_unhealthy().map(|(i, _)| i), Some(4));
        }
        let given = host.filled(&poisoned);
        let made = host.buffer(images.len(), Usage::COPY_DST);
        assert_eq!(
            net.logits_buffer(&given, 9).unwrap().health,
            net.logits(&poisoned).unwrap().health,
            "{poison}: marks of logits"
        );
        let classes = [3; 9];
        let got = net.input_gradient_buffer(&given, &classes, &made).unwrap();
        assert_eq!(got.health, net.input_gradient(&poisoned, &classes).unwrap().health, "{poison}: marks of gradients");
    }
    let mut poisoned = images.clone();
    poisoned[0] = f32::NAN;
    // What was made of it is withheld where that is here, and the pixels are not.
    let made = host.buffer(images.len(), Usage::COPY_DST);
    let mut out = Attack::ifgsm(0.3).run_buffers(&net, &host.filled(&poisoned), &labels, &made).unwrap();
    out.withhold_unhealthy();
    assert_eq!(out.first_unhealthy().map(|(i, _)| i), Some(0));
    assert!((out.linf.len(), out.l2.len(), out.adversarial.len()) == (0, 0, 0));
    let [clean, adversarial] =
        [&out.clean_logits, &out.adversarial_logits].map(|z| z[..10].iter().map(|z| z.to_bits()));
    assert!(clean.eq(adversarial));
    compare("NaN within bounds", &host, &net, &Attack::ifgsm(0.3), &poisoned, &labels);
    let made = host.buffer(images.len(), Usage::COPY_DST);
    for value in [-0.01, 1.01, f32::INFINITY, f32::NEG_INFINITY, -1e-45, 1.0 + f32::EPSILON] {
        let mut wrong = images.clone();
        wrong[130] = value;
        for attack in [Attack::ifgsm(0.1), Attack::ifgsm(0.1).quantise(false)] {
            let refused = attack.run_buffers(&net, &host.filled(&wrong), &labels, &made).unwrap_err();
            assert!(matches!(attack.run(&net, &wrong, &labels), Err(Error::Data { .. })));
            let Error::Data { place, detail } = refused else { panic!("{value}: {refused:?}") };
            assert!(place == "sample 2" && detail.contains("bounds"), "{place}: {detail}");
        }
    }
    let mut zero = images.clone();
    zero[130] = -0.0;
    compare("minus zero is within bounds", &host, &net, &Attack::ifgsm(0.1), &zero, &labels);
    let none = host.filled(&[]);
    assert!(Attack::ifgsm(0.1).run_buffers(&net, &none, &[], &made).unwrap().is_empty());
    host.assert_undisturbed();
}

/// Weights near the largest number: logits, and gradients, that are finite when clean and not on the way.
#[test]
fn what_becomes_infinite_on_the_way_is_marked_as_from_slices() {
    let host = Host::new();
    let net = |weights: &[(&str, &[f32], &[f32])]| Network::new(&host.gpu(), chain(weights)).unwrap();
    let sick = |out: &Outcome| out.health.iter().filter(|h| !h.is_healthy()).count();
    let (images, labels) = ([0.0; 60], [0; 60]);
    let steep = net(&[("z", &[0.0, 1.5e38], &[0.0, -1.5e38])]);
    let attack = Attack::pgd(Norm::Linf, 3.0).steps(1).step_size(0.0).restarts(2).bounds(None);
    let out = compare("logits", &host, &steep, &attack, &images, &labels);
    assert!((10..60).contains(&sick(&out)), "{}", sick(&out));
    let long = net(&[("a", &[1e20], &[0.0]), ("z", &[0.0, 1e20], &[2.0, 0.0])]);
    for attack in [Attack::fgsm(0.1), Attack::uap(0.1)] {
        let attack = attack.loss(Loss::Margin).bounds(None);
        assert_eq!(sick(&compare("gradients", &host, &long, &attack, &images, &labels)), 60);
    }
    let made = host.buffer(60, Usage::COPY_DST);
    let got = long.input_gradient_buffer(&host.filled(&images), &[0; 60], &made).unwrap();
    assert_eq!(got.health, long.input_gradient(&images, &[0; 60]).unwrap().health);
    assert!(got.health.iter().all(|h| !h.is_healthy()));
}

#[test]
fn buffers_that_do_not_fit_are_refused_by_name() {
    let host = Host::new();
    let net = Network::new(&host.gpu(), digits_model()).unwrap();
    let (images, labels) = digits(4);
    let given = host.filled(&images);
    let made = host.buffer(images.len(), Usage::COPY_DST | Usage::COPY_SRC);
    let attack = Attack::ifgsm(0.1);
    let refused = |from: &wgpu::Buffer, to: &wgpu::Buffer, name: &str, word: &str| {
        let classes = [0; 4];
        let mut said = vec![attack.run_buffers(&net, from, &labels, to).unwrap_err()];
        said.push(net.input_gradient_buffer(from, &classes, to).unwrap_err());
        if name == "images" {
            said.push(net.logits_buffer(from, 4).unwrap_err());
        }
        for e in said {
            let name = if name == "adversarial" && e.to_string().contains("gradient") { "gradient" } else { name };
            assert!(matches!(e, Error::Usage(_) | Error::Data { .. }), "{e:?}");
            assert!(e.to_string().contains(name) && e.to_string().contains(word), "{name} {word}: {e}");
        }
    };
    refused(&host.buffer(256, Usage::COPY_DST), &made, "images", "COPY_SRC");
    refused(&given, &host.buffer(256, Usage::COPY_SRC), "adversarial", "COPY_DST");
    refused(&host.filled(&images[1..]), &made, "images", "1020 bytes, 4 samples take 1024");
    refused(&given, &host.buffer(255, Usage::COPY_DST), "adversarial", "1020 bytes");
    let many = net.logits_buffer(&given, 1 << 62).unwrap_err();
    assert!(matches!(&many, Error::Data { .. }), "{many:?}");
    let same = attack.run_buffers(&net, &given, &labels, &given).unwrap_err();
    assert!(matches!(&same, Error::Usage(m) if m.contains("must be two")), "{same}");
    let early = attack.clone().early_stop(true).run_buffers(&net, &given, &labels, &made).unwrap_err();
    assert!(matches!(&early, Error::Usage(m) if m.contains("early stop is for images in slices")), "{early}");

    let mapped = host.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("mapped"),
        size: 1024,
        usage: Usage::MAP_WRITE | Usage::COPY_SRC,
        mapped_at_creation: true,
    });
    refused(&mapped, &made, "images", "cannot be used");
    mapped.unmap();
    attack.run_buffers(&net, &mapped, &labels, &made).unwrap();
    let gone = host.filled(&images);
    gone.destroy();
    refused(&gone, &made, "images", "cannot be used");

    // Another device of the same instance.
    let sibling = pollster::block_on(host.adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let theirs = sibling.0.create_buffer(&wgpu::BufferDescriptor {
        label: Some("foreign"),
        size: 1024,
        usage: Usage::COPY_SRC | Usage::COPY_DST,
        mapped_at_creation: false,
    });
    refused(&theirs, &made, "images", "cannot be used");
    refused(&given, &theirs, "adversarial", "cannot be used");
    let data = |labels: &[i64]| attack.run_buffers(&net, &given, labels, &made).unwrap_err();
    assert!(matches!(data(&[0, 1, 10, 2]), Error::Data { .. }));
    assert!(matches!(Attack::ifgsm(-1.0).run_buffers(&net, &given, &labels, &made), Err(Error::Usage(_))));
    assert!(matches!(net.input_gradient_buffer(&given, &[10; 4], &made), Err(Error::Data { .. })));
    let stopped = attack.run_buffers_with(&net, &given, &labels, &made, &mut |_| false);
    assert_eq!(stopped.unwrap_err(), Error::Cancelled);
    // After all that it works as ever.
    compare("after refusals", &host, &net, &attack, &images, &labels);
    host.assert_undisturbed();
}

/// One thread's submission may take longer than GL's library waits for its one context (6 s). Others wait for as long as it
/// takes, whatever they do, and so does what they drop. Elsewhere nothing is held, and a short submission will do.
#[test]
fn threads_take_turns_however_long_one_has_the_device() {
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let held = if gpu.summary().backend == "gl" { 9.0 } else { 0.2 };
    let long = Network::new(&gpu, digits_model()).unwrap();
    // As many as one submission may hold.
    let steps = 8000 / long.plan().dispatches().count() as u32;
    let attack = |steps| Attack::ifgsm(0.1).steps(steps).untargeted().attack_all(true);
    let (images, labels) = digits(64);
    attack(4).run(&long, &images, &labels).unwrap();
    let start = Instant::now();
    attack(40).run(&long, &images, &labels).unwrap();
    let repeated = (held / (start.elapsed().as_secs_f64() / 40.0 * f64::from(steps))).ceil() as usize;
    let (images, labels) = (images.repeat(repeated), labels.repeat(repeated));

    let other = mixed(&mut Rng::new(8));
    let seen = Rng::new(9).images(3 * other.input.len());
    let logits = || Network::new(&gpu, other.clone()).unwrap().logits(&seen).unwrap().logits;
    let (want, stop) = (logits(), AtomicBool::new(false));
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    std::thread::scope(|threads| {
        let beside = [0, 1].map(|_| {
            threads.spawn(|| {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    assert_bits("beside", &logits(), &want);
                    rounds += 1;
                }
                rounds
            })
        });
        gpu.cut_at(u64::MAX);
        let ended = attack(steps).run_with(&long, &images, &labels, &mut |_| {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            true
        });
        stop.store(true, Ordering::Relaxed);
        let rounds = beside.map(|thread| thread.join().expect("no panic beside"));
        println!("{steps} steps of {} images, {longest:?} at most in one go, {rounds:?} rounds beside", labels.len());
        ended.unwrap();
        assert!(rounds.iter().all(|n| *n > 0));
    });
    assert!(held < 1.0 || longest > Duration::from_secs(6), "held for {longest:?} only");
}

/// The host paints images, has them attacked and paints over them again, waiting for nothing; two networks on its device run
/// in two threads meanwhile, and its own callbacks and error scopes are left alone.
#[test]
fn the_hosts_own_work_goes_on_beside() {
    let host = Host::new();
    let gpu = host.gpu();
    let first = Network::new(&gpu, digits_model()).unwrap();
    let second = Network::new(&gpu, mixed(&mut Rng::new(8))).unwrap();
    let attack = Attack::pgd(Norm::Linf, 0.1).restarts(2).attack_all(true);
    let scope = host.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let called_back = Arc::new(AtomicUsize::new(0));
    let stop = AtomicBool::new(false);
    let run = &|net: &Network, seed: u32| {
        let one = net.model().input.len();
        let images = host.buffer(16 * one, Usage::STORAGE | Usage::COPY_SRC);
        let made = host.buffer(16 * one, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST);
        for round in 0..4 {
            host.paint(&images, seed + round, 0.0);
            let painted = host.read(&images, 16 * one);
            let labels = own_labels(net, &painted);
            // Painted otherwise in between, and back: the attack sees what was submitted last.
            host.paint(&images, seed + 100, 0.005);
            host.paint(&made, seed, 0.0);
            host.paint(&images, seed + round, 0.0);
            let got = attack.run_buffers(net, &images, &labels, &made).unwrap();
            host.paint(&images, seed + 200, 0.0);
            let want = attack.run(net, &painted, &labels).unwrap();
            assert_bits("painted", &host.read(&made, 16 * one), &want.adversarial);
            assert_eq!((&got.success, &got.restart), (&want.success, &want.restart));
            assert!(want.adversarial != want.clean);
        }
    };
    std::thread::scope(|threads| {
        let beside = threads.spawn(|| {
            let canvas = host.buffer(4096, Usage::STORAGE | Usage::COPY_SRC);
            let want = {
                host.paint(&canvas, 1, 0.0);
                host.read(&canvas, 4096)
            };
            while !stop.load(Ordering::Relaxed) {
                host.paint(&canvas, 1, 0.0);
                let staging = host.buffer(4096, Usage::COPY_DST | Usage::MAP_READ);
                let note = called_back.clone();
                staging.map_async(wgpu::MapMode::Read, .., move |_| {
                    note.fetch_add(1, Ordering::Relaxed);
                });
                assert_bits("the host's own work", &host.read(&canvas, 4096), &want);
            }
        });
        // Two threads in one network take turns.
        let three = [(&first, 1), (&first, 2000), (&second, 1000)];
        let ends =
            three.map(|(net, seed)| threads.spawn(move || run(net, seed))).map(std::thread::ScopedJoinHandle::join);
        stop.store(true, Ordering::Relaxed);
        beside.join().unwrap();
        ends.into_iter().for_each(|end| end.unwrap());
    });
    assert!(called_back.load(Ordering::Relaxed) > 0);
    assert!(pollster::block_on(scope.pop()).is_none(), "the host's scope caught something");
    host.assert_undisturbed();
    // And the host is still told of its own mistakes.
    host.queue.write_buffer(&host.buffer(1, Usage::COPY_DST), 0, &[0; 8]);
    assert_eq!(host.uncaptured.lock().unwrap().len(), 1);
}

#[test]
fn a_network_of_ones_own() {
    let layers = vec![Layer::Flatten, linear("z", 4, 2)];
    let tensors = |weight: Vec<f32>| {
        Tensors::from([("z.weight".into(), (vec![2, 4], weight)), ("z.bias".into(), (vec![2], vec![0.5, 0.0]))])
    };
    let input = Dims::new(1, 2, 2);
    let weight = vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0];
    let net = Network::from_layers(gpu(), layers.clone(), input, tensors(weight)).unwrap();
    assert_eq!(net.logits(&[0.25, 0.0, 0.0, 1.0]).unwrap().logits, [0.75, 2.0]);
    let refused = Network::from_layers(gpu(), layers, input, Tensors::new());
    assert!(matches!(refused, Err(Error::Model { .. })));
}

#[test]
fn a_network_is_printed_without_its_weights() {
    let net = Network::new(gpu(), digits_model()).unwrap();
    let reference = Reference::new(digits_model()).unwrap();
    assert!(net.model().parameters() > 1000);
    for said in [format!("{net:?}"), format!("{:?}", net.model()), format!("{reference:?}")] {
        assert!(said.contains("weights, ") && !said.contains(&net.model().params["conv1"].weight[0].to_string()));
    }
    let plan = format!("{:?}", net.plan().resources);
    assert!(plan.contains(" bytes)") && plan.len() < 200 * net.plan().resources.len(), "{} bytes", plan.len());
}

/// A device keeps its pipelines for the next network of the same shapes, until it is told to let go of them.
#[test]
fn pipelines_are_forgotten_when_asked_to_be() {
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    let (images, labels) = digits(3);
    let compiled = |net: &Network| {
        let before = gpu.compile_time();
        (net.logits(&images).unwrap(), gpu.compile_time() > before)
    };
    let first = Network::new(&gpu, digits_model()).unwrap();
    let (want, _) = compiled(&first);
    assert_eq!(compiled(&Network::new(&gpu, digits_model()).unwrap()), (want.clone(), false));
    gpu.forget_pipelines();
    // What it holds it has still, and what it needs beside that is made.
    assert_eq!(compiled(&first), (want.clone(), false));
    Attack::apgd(Norm::L2, 0.5).steps(3).run(&first, &images, &labels).unwrap();
    gpu.forget_pipelines();
    assert_eq!(compiled(&Network::new(&gpu, digits_model()).unwrap()), (want, true));
}

/// An executor in a dozen lines: polls, and parks until it is woken.
fn run_by_hand<T>(future: impl Future<Output = T>) -> (T, usize) {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    for polls in 1.. {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return (value, polls),
            Poll::Pending => std::thread::park(),
        }
    }
    unreachable!()
}

#[test]
fn tasks_are_awaited_by_any_executor() {
    let (images, labels) = digits(12);
    let net = Arc::new(Network::new(gpu(), digits_model()).unwrap());
    let attack = Attack::pgd(Norm::Linf, 0.2).restarts(2);
    let want = attack.run(&*net, &images, &labels).unwrap();
    assert_eq!(pollster::block_on(attack.clone().spawn(net.clone(), images.clone(), labels.clone())).unwrap(), want);
    let (got, polls) = run_by_hand(async {
        let (net2, images2) = (net.clone(), images.clone());
        let logits = Task::spawn(move |_| net2.logits(&images2)).await?;
        assert_eq!(logits, net.logits(&images)?);
        // Two at once in one network take turns.
        let first = attack.clone().spawn(net.clone(), images.clone(), labels.clone());
        let second = attack.clone().spawn(net.clone(), images.clone(), labels.clone());
        assert_eq!(first.await?, want);
        second.await
    });
    assert_eq!(got.unwrap(), want);
    assert!((2..=8).contains(&polls), "{polls} polls: it was not woken, or all the time");
    let waited = attack.clone().spawn(net.clone(), images.clone(), labels.clone());
    assert_eq!(waited.wait().unwrap(), want);
    let reference: Arc<dyn Engine + Send + Sync> = Arc::new(Reference::new(digits_model()).unwrap());
    let out = pollster::block_on(Attack::fgsm(0.2).spawn(reference, images[..64].to_vec(), labels[..1].to_vec()));
    assert_eq!(out.unwrap().len(), 1);
    // Errors come out as they are.
    let refused = pollster::block_on(attack.spawn(net, images[1..].to_vec(), labels));
    assert!(matches!(refused, Err(Error::Data { .. })));
}

#[test]
fn a_task_tells_its_progress_and_ends_within_a_submission() {
    let (images, labels) = digits(2);
    let net = Arc::new(Network::new(gpu(), digits_model()).unwrap());
    let attack = |steps| Attack::ifgsm(0.3).steps(steps).attack_all(true);
    // How many steps a submission holds depends on the machine and on what else it does, so submissions are counted: each
    // tells its progress once.
    let endless = attack(30_000_000);
    let told = Arc::new(AtomicU64::new(0));
    let mut task = {
        let (net, images, labels, told, endless) =
            (net.clone(), images.clone(), labels.clone(), told.clone(), endless.clone());
        Task::spawn(move |control| {
            endless.run_with(&*net, &images, &labels, &mut |n| {
                told.fetch_add(1, Ordering::SeqCst);
                control.advance(n)
            })
        })
    };
    assert!(!task.is_finished());
    while told.load(Ordering::SeqCst) < 3 {
        std::thread::yield_now();
    }
    task.cancel();
    let before = told.load(Ordering::SeqCst);
    ends(&task);
    assert_eq!(pollster::block_on(&mut task), Err(Error::Cancelled));
    let after = told.load(Ordering::SeqCst) - before;
    assert!(after <= 1, "{after} submissions went on after it was cancelled");
    let steps = task.done();
    assert!((3..60_000_000).contains(&steps), "{steps} sample-steps told");

    // The same of an attack's own task.
    let mut task = endless.clone().spawn(net.clone(), images.clone(), labels.clone());
    while task.done() == 0 {
        std::thread::yield_now();
    }
    task.cancel();
    ends(&task);
    assert_eq!(pollster::block_on(&mut task), Err(Error::Cancelled));

    // Dropped, it gives the network free.
    drop(endless.spawn(net.clone(), images.clone(), labels.clone()));
    attack(1).run(&*net, &images, &labels).unwrap();
}

/// Waits for a task that was cancelled, far longer than a submission takes; one that does not hear of it would go on for days.
fn ends<T>(task: &Task<T>) {
    let patience = Instant::now();
    while !task.is_finished() {
        assert!(patience.elapsed().as_secs() < 60, "it was cancelled, and goes on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_progress_callback_that_runs_the_same_network_is_refused_and_one_that_panics_harms_nobody() {
    let (images, labels) = digits(3);
    let net = Network::new(gpu(), digits_model()).unwrap();
    let other = Network::new(gpu(), digits_model()).unwrap();
    let mut said = Vec::new();
    let mut nosy = |_: u64| {
        said.push(net.logits(&images).map(|_| ()));
        said.push(net.input_gradient(&images, &[0, 1, 2]).map(|_| ()));
        said.push(Attack::fgsm(0.1).run(&net, &images, &labels).map(|_| ()));
        assert!(net.gpu_bytes() > 0 && net.chunk() > 2);
        // Another network, and the same one in another thread's own time, are nobody's business.
        other.logits(&images).is_ok()
    };
    let attack = Attack::ifgsm(0.3);
    let out = attack.run_with(&net, &images, &labels, &mut nosy).unwrap();
    assert!(said.len() >= 3);
    assert!(said.iter().all(|s| matches!(s, Err(Error::Usage(m)) if m.contains("progress"))), "{said:?}");
    assert_eq!(out, attack.run(&net, &images, &labels).unwrap());

    let fall = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        attack.run_with(&net, &images, &labels, &mut |_| panic!("a callback"))
    }));
    assert!(fall.is_err());
    assert_eq!(out, attack.run(&net, &images, &labels).unwrap());
}

/// A host may open its device with less than WebGPU guarantees. What can run there runs, and what cannot says which limit it is.
#[test]
fn a_device_of_small_limits_runs_what_it_can() {
    let images = vec![0.25; 3 * 64];
    let labels = [1, 2, 3];
    let load = |host: &Host| Network::load(&host.gpu(), include_bytes!("../weights/digits-cnn.safetensors"));
    let usual = Host::new();
    let attack = Attack::ifgsm(0.2).steps(2).untargeted().attack_all(true);
    let want = attack.run(&load(&usual).unwrap(), &images, &labels).unwrap();

    let six = Host::with_limits(|l| l.max_storage_buffers_per_shader_stage = 6);
    let net = load(&six).unwrap();
    assert_bits("six", &attack.run(&net, &images, &labels).unwrap().adversarial, &want.adversarial);
    let refused = Attack::fab_t(Norm::Linf, 0.2).steps(2).attack_all(true).run(&net, &images, &labels);
    assert!(matches!(refused, Err(Error::Usage(why)) if why.contains("storage buffers")));

    for change in [(|l| *l = wgpu::Limits::downlevel_defaults()) as fn(&mut wgpu::Limits), |l| {
        l.max_storage_buffers_per_shader_stage = 4;
    }] {
        let error = load(&Host::with_limits(change)).err().unwrap();
        assert!(
            matches!(&error, Error::Model { detail, .. } if detail.contains("storage buffers, 4 allowed")),
            "{error:?}"
        );
    }

    // Not even what asks a device can run there.
    for (change, why) in [
        ((|l| l.max_storage_buffers_per_shader_stage = 0) as fn(&mut wgpu::Limits), "storage buffers, 0 allowed"),
        (|l| l.max_storage_buffer_binding_size = 64, "bytes, 64 allowed"),
    ] {
        let error = load(&Host::with_limits(change)).err().unwrap();
        assert!(matches!(&error, Error::NoAdapter(told) if told.contains(why)), "{error:?}");
    }

    // Textures are for devices that take them as wide as they are made.
    for change in [(|l| l.max_texture_dimension_2d = 1024) as fn(&mut wgpu::Limits), |l| {
        l.max_storage_textures_per_shader_stage = 0;
    }] {
        let net = load(&Host::with_limits(change)).unwrap();
        assert_bits("buffers", &attack.run(&net, &images, &labels).unwrap().adversarial, &want.adversarial);
    }
    let narrow = Host::with_limits(|l| l.max_texture_dimension_2d = 1024);
    let model = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let options = Options { storage: Some(Storage::Texture), ..Options::default() };
    let error = Network::with_options(&narrow.gpu(), model, &options).err().unwrap();
    assert!(error.to_string().contains("textures 1024 texels wide, where 2048 are needed"), "{error}");
    let uncaught = [usual, six, narrow].map(|host| host.uncaptured.lock().unwrap().clone());
    assert!(uncaught.iter().all(Vec::is_empty), "{uncaught:?}");
}

/// A host's device tells its host alone that it is gone: here it is found out by what it refuses.
#[test]
fn a_device_that_its_host_has_lost_is_lost() {
    let host = Host::new();
    let gpu = host.gpu();
    host.device.destroy();
    let error = Network::load(&gpu, include_bytes!("../weights/digits-cnn.safetensors")).err().unwrap();
    assert!(matches!(error, Error::DeviceLost(_)) && error.exit_code() == 6, "{error:?}");
}

/// One dispatch of this network is 300 million operations of a sample: of a device that nothing is known of no more than a few at a time.
#[test]
fn a_device_of_unknown_speed_is_given_little_at_a_time() {
    let mut rng = Rng::new(3);
    let layers = vec![conv("a", 64, 64, 3, 1, 1), Layer::GlobalAvgPool, linear("z", 64, 2)];
    let model = random_model(&mut rng, Dims::new(64, 64, 64), layers);
    let images = rng.images(20 * model.input.len());
    let open = || Network::new(&Gpu::new(&Adapter::Auto).unwrap(), model.clone()).unwrap();
    let (net, alone) = (open(), open());
    let all = net.logits(&images).unwrap().logits;
    let of_20 = net.plan().bytes(20);
    assert!(net.gpu_bytes() < of_20, "{} bytes, where 20 samples take {of_20}", net.gpu_bytes());
    let one = model.input.len();
    let each: Vec<f32> = (0..20).flat_map(|i| alone.logits(&images[i * one..(i + 1) * one]).unwrap().logits).collect();
    assert_bits("cut or not", &all, &each);
}

/// A rule's memory lies beside that of a batch, which is made smaller for it where both would be too much.
#[test]
fn what_an_attack_remembers_lies_within_the_budget() {
    let mut rng = Rng::new(5);
    let layers = vec![conv("a", 3, 8, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool, Layer::Flatten, linear("z", 8, 3)];
    let model = random_model(&mut rng, Dims::new(3, 32, 32), layers);
    let images = rng.images(150 * model.input.len());
    let labels = vec![0; 150];
    let net = |memory| Network::with_options(gpu(), model.clone(), &Options { memory, ..Options::default() }).unwrap();
    let (roomy, tight) = (net(1 << 30), net(4_000_000));
    let attacks =
        [Attack::mifgsm(0.02).steps(2), Attack::apgd(Norm::Linf, 0.02).steps(2), Attack::fab_t(Norm::L2, 0.1).steps(2)];
    assert_bits("logits", &tight.logits(&images).unwrap().logits, &roomy.logits(&images).unwrap().logits);
    let alone = tight.gpu_bytes();
    for attack in attacks.map(|attack| attack.attack_all(true)) {
        let [got, want] = [&tight, &roomy].map(|net| attack.run(net, &images, &labels).unwrap());
        assert_bits(attack.method().name(), &got.adversarial, &want.adversarial);
        assert!(tight.gpu_bytes() <= 4_000_000, "{} bytes with {}", tight.gpu_bytes(), attack.method().name());
    }
    assert!(alone > 3_500_000, "{alone} bytes: a batch alone takes all there is");
    assert!((2..150).contains(&tight.chunk()), "{}", tight.chunk());
}

/// Runs an attack on `net`, and `work` while the attack is in the middle of a run, held there by its callback.
fn while_busy<T>(net: &Network, work: impl FnOnce() -> T) -> T {
    let (images, labels) = digits(3);
    let (busy, is_busy) = std::sync::mpsc::channel();
    let (free, is_free) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|threads| {
        let run = threads.spawn(move || {
            Attack::ifgsm(0.3).attack_all(true).run_with(net, &images, &labels, &mut |steps| {
                if steps > 0 {
                    let _ = busy.send(());
                    let _ = is_free.recv();
                }
                true
            })
        });
        is_busy.recv().expect("the attack takes steps");
        let made = work();
        drop(free);
        run.join().expect("no panic").expect("nobody stopped it");
        made
    })
}

#[test]
fn a_task_that_waits_for_its_turn_hears_that_it_is_cancelled() {
    let host = Host::new();
    let net = Arc::new(Network::new(&host.gpu(), digits_model()).unwrap());
    let (images, labels) = digits(3);
    let given = host.filled(&images);
    while_busy(&net, || {
        for attack in [Attack::fgsm(0.1), Attack::uap(0.1)] {
            let mut task = attack.clone().spawn(net.clone(), images.clone(), labels.clone());
            let mut in_buffers = {
                let (net, labels, given) = (net.clone(), labels.clone(), given.clone());
                let made = host.buffer(images.len(), Usage::COPY_DST);
                Task::spawn(move |c| attack.run_buffers_with(&net, &given, &labels, &made, &mut |n| c.advance(n)))
            };
            std::thread::sleep(Duration::from_millis(30));
            for task in [&mut task, &mut in_buffers] {
                assert!(!task.is_finished(), "two run in one network");
                task.cancel();
                ends(task);
                assert_eq!((task.done(), pollster::block_on(task)), (0, Err(Error::Cancelled)));
            }
        }
        // Dropped, it leaves no thread behind that still has the network.
        drop(Attack::fgsm(0.1).spawn(net.clone(), images.clone(), labels.clone()));
        let patience = Instant::now();
        while Arc::strong_count(&net) > 1 {
            assert!(patience.elapsed().as_secs() < 60, "it was dropped, and waits on");
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    Attack::fgsm(0.1).run(&*net, &images, &labels).unwrap();
}

#[test]
fn a_run_asks_before_each_chunk_of_logits_whether_to_go_on() {
    let (images, _) = digits(130);
    let options = Options { batch: Some(20), ..Options::default() };
    let net = Network::with_options(gpu(), digits_model(), &options).unwrap();
    let reference = Reference::new(digits_model()).unwrap();
    for (engine, chunks) in [(&net as &dyn Engine, 7), (&reference, 3)] {
        let mut asked = 0;
        let want = engine.logits(&images).unwrap();
        let mut answer = |limit: i32| {
            asked = 0;
            let made = engine.logits_with(&images, &mut |steps| {
                assert_eq!(steps, 0);
                asked += 1;
                asked < limit
            });
            (asked, made)
        };
        assert_eq!(answer(1000), (chunks, Ok(want)));
        assert_eq!(answer(2), (2, Err(Error::Cancelled)));
    }
}

#[test]
fn a_callback_does_not_wait_for_another_network_that_is_busy() {
    let (images, labels) = digits(3);
    let [net, other] = [0; 2].map(|_| Network::new(gpu(), digits_model()).unwrap());
    let mut said = Vec::new();
    let mut asks = |_| {
        said.push(other.logits(&images).map(drop));
        true
    };
    while_busy(&other, || Attack::ifgsm(0.3).run_with(&net, &images, &labels, &mut asks).unwrap());
    assert!(!said.is_empty());
    assert!(said.iter().all(|s| matches!(s, Err(Error::Usage(m)) if m.contains("callback of another"))), "{said:?}");
    // Outside of a callback it waits.
    let waited = std::thread::scope(|threads| {
        let waits = while_busy(&other, || threads.spawn(|| other.logits(&images)));
        waits.join().expect("no panic")
    });
    assert_eq!(waited.unwrap(), other.logits(&images).unwrap());
}
