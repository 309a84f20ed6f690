//! The n-th call to the GPU library fails, for every n: a typed error comes out and no panic, and the same network goes on where the
//! device is still there, another context where it is not, with the same bits as if nothing had been.

mod common;
#[path = "common/program.rs"]
mod program;

use common::{Rng, conv, linear, random_model};
use program::{Bench, names};
use signstep::attack::{Engine, Loss, Sample};
use signstep::fault::{Fault, plan_for_next};
use signstep::model::{Conv2d, Dims, Layer};
use signstep::trial::Clock;
use signstep::tune::tune;
use signstep::wgpu::{self, BufferUsages as Usage};
use signstep::{Adapter, Attack, Error, Gpu, Model, Network, Norm, Options, Outcome, Result, Training};
use std::cell::{Cell, RefCell};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// What stands ready on a device, to be run any number of times: gives everything that it found, as bytes.
type Ready = Box<dyn Fn() -> Result<Vec<u8>>>;

/// Puts something on a device.
type Subject = (&'static str, fn(&Gpu) -> Result<Ready>);

const SUBJECTS: [Subject; 8] = [
    ("logits", |gpu| with(gpu, |net| Ok(bytes(&net.logits(&images())?.logits)))),
    ("input gradient", |gpu| {
        with(gpu, |net| Ok(bytes(&net.input_gradient(&images(), &LABELS.map(|y| y as u32))?.gradient)))
    }),
    ("ifgsm", |gpu| with(gpu, |net| attack(net, &Attack::ifgsm(0.2).steps(2).untargeted()))),
    ("pgd with restarts", |gpu| with(gpu, |net| attack(net, &Attack::pgd(Norm::L2, 0.4).steps(2).restarts(2)))),
    ("apgd", |gpu| with(gpu, |net| attack(net, &Attack::apgd(Norm::Linf, 0.1).steps(3).untargeted().early_stop(true)))),
    ("uap", |gpu| with(gpu, |net| attack(net, &Attack::uap(0.2).steps(2).untargeted()))),
    ("buffers", buffers),
    ("training", training),
];

const LABELS: [i64; 3] = [0, 2, 1];
const ONE: usize = 2 * 5 * 5;

fn images() -> Vec<f32> {
    Rng::new(3).images(3 * ONE)
}

fn layers() -> Vec<Layer> {
    vec![conv("a", 2, 5, 3, 1, 1), Layer::Relu, linear("z", 5 * 5 * 5, 3)]
}

fn model() -> Model {
    random_model(&mut Rng::new(5), Dims::new(2, 5, 5), layers())
}

/// Three images in batches of at most two.
fn with(gpu: &Gpu, run: fn(&Network) -> Result<Vec<u8>>) -> Result<Ready> {
    let net = Network::with_options(gpu, model(), &Options { batch: Some(2), ..Options::default() })?;
    Ok(Box::new(move || run(&net)))
}

fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn told(outcome: &Outcome) -> Vec<u8> {
    let steps: Vec<u32> = outcome.steps_taken.iter().map(|n| *n as u32).collect();
    [bytes(&outcome.adversarial), bytes(&outcome.adversarial_logits), bytes(&steps)].concat()
}

fn attack(net: &Network, attack: &Attack) -> Result<Vec<u8>> {
    attack.run(net, &images(), &LABELS).map(|outcome| told(&outcome))
}

fn buffers(gpu: &Gpu) -> Result<Ready> {
    let net = Network::with_options(gpu, model(), &Options { batch: Some(2), ..Options::default() })?;
    Ok(Box::new(move || {
        let [from, to] = HOST.with(|host| host.borrow().clone().expect("a device"));
        let logits = net.logits_buffer(&from, 3)?;
        let gradient = net.input_gradient_buffer(&from, &[0, 2, 1], &to)?;
        let outcome = Attack::pgd(Norm::Linf, 0.2).steps(2).run_buffers(&net, &from, &LABELS, &to)?;
        Ok([bytes(&logits.logits), bytes(&gradient.loss), told(&outcome)].concat())
    }))
}

thread_local! {
    /// Buffers of the host program on the device that is tried now: images, and where to put others.
    static HOST: RefCell<Option<[wgpu::Buffer; 2]>> = const { RefCell::new(None) };
}

fn training(gpu: &Gpu) -> Result<Ready> {
    let named = |name: &str, inputs, outputs, kernel| {
        Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride: 1, padding: 1, bias: false })
    };
    let layers = vec![
        named("a", 2, 4, 3),
        Layer::BatchNorm { name: "n".into(), channels: 4, eps: 1e-5 },
        Layer::Relu,
        linear("z", 4 * 5 * 5, 3),
    ];
    let mut rng = Rng::new(9);
    let shapes: [(&str, &[usize]); 7] = [
        ("a.weight", &[4, 2, 3, 3]),
        ("n.weight", &[4]),
        ("n.bias", &[4]),
        ("n.running_mean", &[4]),
        ("n.running_var", &[4]),
        ("z.weight", &[3, 100]),
        ("z.bias", &[3]),
    ];
    let tensors = shapes.map(|(name, shape)| {
        (name.to_string(), (shape.to_vec(), rng.vec(shape.iter().product(), |r| 0.5 + 0.3 * r.unit())))
    });
    let net = Training::from_layers(gpu, layers, Dims::new(2, 5, 5), tensors.into_iter().collect())?;
    Ok(Box::new(move || {
        let one = |y: i64| Sample { class: y as u32, label: y as u32, direction: 1.0, ..Sample::default() };
        let gradient = net.loss_gradient(&images(), &LABELS.map(one), Loss::CrossEntropy)?;
        Ok([bytes(&net.logits(&images())?.logits), bytes(&gradient.gradient)].concat())
    }))
}

fn open() -> Gpu {
    let gpu = Gpu::new(&Adapter::Auto).expect("tests need an adapter: sh tests/with-driver cargo test");
    let usage = Usage::COPY_SRC | Usage::COPY_DST;
    let buffer = |label| {
        let size = 4 * (3 * ONE) as u64;
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
    };
    let buffers = [Some("from"), Some("to")].map(buffer);
    gpu.queue().write_buffer(&buffers[0], 0, &bytes(&images()));
    HOST.set(Some(buffers));
    gpu
}

/// Puts it on the device and runs it.
fn whole((_, put): Subject, gpu: &Gpu) -> Result<Vec<u8>> {
    put(gpu)?()
}

/// Whether an error is the one that a fault is told as.
fn is_told(fault: Fault, e: &Error) -> bool {
    match fault {
        Fault::Memory => matches!(e, Error::OutOfMemory { .. }) && e.exit_code() == 5,
        // A host program's buffer that the library refuses is the host's mistake.
        Fault::Refused => matches!(e, Error::Internal(_) | Error::Usage(_)),
        Fault::Lost | Fault::Timeout | Fault::Dropped => matches!(e, Error::DeviceLost(_)) && e.exit_code() == 6,
    }
}

/// No call that will ever be made.
const NEVER: u64 = u64::MAX;

#[test]
fn every_call_may_fail_and_the_same_network_goes_on() {
    let (gpu, mut faults) = (open(), 0);
    for subject in SUBJECTS {
        let (name, put) = subject;
        let want = whole(subject, &gpu).unwrap();
        for fault in [Fault::Memory, Fault::Refused, Fault::Timeout] {
            gpu.fail_at(NEVER, fault);
            let ready = put(&gpu).unwrap();
            assert!(ready().unwrap() == want, "{name}: not the same bits from run to run");
            let all = gpu.calls();
            for n in 1..=all {
                let what = format!("{name}, {fault:?} at call {n} of {all}");
                let told = |e: &Error| assert!(is_told(fault, e), "{what}: {e:?}");
                gpu.fail_at(n, fault);
                let ready = match put(&gpu) {
                    Ok(ready) => ready,
                    Err(e) => {
                        told(&e);
                        continue;
                    }
                };
                match ready() {
                    Err(e) => told(&e),
                    // Nothing is waited for behind the last copy: the next one who waits is told.
                    Ok(got) => {
                        assert!(fault == Fault::Timeout && n + 8 >= all && got == want, "{what}: a result");
                        told(&ready().expect_err("a fault that was told nobody"));
                    }
                }
                // The same network, with whatever memory and bindings it had made by then.
                gpu.fail_at(NEVER, fault);
                assert!(ready().unwrap() == want, "{what}: other bits than before");
            }
            faults += all;
        }
        println!("{name}: done");
    }
    println!("{faults} faults");
    assert!(faults >= 200, "{faults}");
}

/// Kernels are compiled and habits asked as well: everything that a device is used for from the moment that it is open.
#[test]
fn every_call_may_be_the_last_one_and_another_context_goes_on() {
    let mut faults = 0;
    for (subject, fault) in SUBJECTS.into_iter().flat_map(|s| [(s, Fault::Lost), (s, Fault::Dropped)]) {
        let (name, _) = subject;
        let want = whole(subject, &open()).unwrap();
        let gpu = open();
        gpu.fail_at(NEVER, fault);
        assert!(whole(subject, &gpu).unwrap() == want, "{name}");
        let all = gpu.calls();
        // Work that is dropped is found out in one place: every third call will do.
        for n in (1..=all).step_by(if fault == Fault::Dropped { 3 } else { 1 }) {
            let gpu = open();
            gpu.fail_at(n, fault);
            let what = format!("{name}, {fault:?} at call {n} of {all}");
            match whole(subject, &gpu) {
                Err(e) => assert!(is_told(fault, &e), "{what}: {e:?}"),
                // What was read back before is right.
                Ok(got) => assert!(n + 8 >= all && got == want, "{what}: a result"),
            }
            faults += 1;
        }
        println!("{name}, {fault:?}: {all} calls");
    }
    println!("{faults} faults");
}

/// A tile that cannot be tried is left out; where nothing can be tried there is an error; results are what they were.
#[test]
fn a_tuning_passes_by_what_fails_or_says_why_it_cannot_go_on() {
    let (gpu, model) = (open(), model());
    let bits = |gpu: &Gpu, tuning| {
        let options = Options { tuning, ..Options::default() };
        Network::with_options(gpu, model.clone(), &options)?.logits(&images()).map(|z| bytes(&z.logits))
    };
    let want = bits(&gpu, Default::default()).unwrap();
    gpu.fail_at(NEVER, Fault::Memory);
    // A clock that goes as it likes: any tile may be the fastest, and nothing is measured for long.
    let now = Cell::new(Duration::ZERO);
    let dice = RefCell::new(Rng::new(7));
    let clock = || {
        now.set(now.get() + Duration::from_millis(dice.borrow_mut().range(20, 1000) as u64));
        now.get()
    };
    let tuned = |gpu: &Gpu| tune(gpu, &model, 1, &Clock::Process(&clock), &mut |_| true);
    tuned(&gpu).unwrap();
    let all = gpu.calls();
    let (mut ended, mut passed) = (0, 0);
    for (fault, points) in [(Fault::Memory, 12), (Fault::Refused, 12), (Fault::Timeout, 12), (Fault::Lost, 4)] {
        for n in (1..=all / 2).step_by((all / 2 / points) as usize) {
            let gpu = if fault == Fault::Lost { open() } else { gpu.clone() };
            gpu.fail_at(n, fault);
            match tuned(&gpu) {
                Err(e) => {
                    assert!(is_told(fault, &e), "{fault:?} at call {n} of {all}: {e:?}");
                    ended += 1;
                }
                Ok(tuning) => {
                    assert!(fault != Fault::Lost, "a tuning of a lost device, lost at call {n} of {all}");
                    gpu.fail_at(NEVER, fault);
                    assert!(bits(&gpu, tuning).unwrap() == want, "{fault:?} at call {n} of {all}");
                    passed += 1;
                }
            }
        }
    }
    gpu.fail_at(NEVER, Fault::Memory);
    assert!(bits(&gpu, tuned(&gpu).unwrap()).unwrap() == want);
    println!("{ended} ended, {passed} passed by");
    assert!(ended > 0 && passed > 0);
}

const INJECTED: &str = "SIGNSTEP_TEST_INJECTED";

/// Not a test of its own: the program with a fault in it, when the test below starts it.
#[test]
fn the_program_with_a_fault() {
    let Ok(line) = std::env::var(INJECTED) else { return };
    let mut words = line.split_whitespace();
    let (fault, call) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
    let fault = FAULTS.into_iter().find(|f| format!("{f:?}") == fault).unwrap();
    plan_for_next(call, fault);
    let code = signstep::cli::run(["signstep"].into_iter().chain(words).map(Into::into));
    std::process::exit(i32::from(code));
}

const FAULTS: [Fault; 5] = [Fault::Memory, Fault::Refused, Fault::Lost, Fault::Timeout, Fault::Dropped];

/// A line of the program whose `n`-th call fails.
fn with_fault(bench: &Bench, fault: Fault, n: usize, line: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_program_with_a_fault", "--nocapture"]).stdin(Stdio::null());
    command.env(INJECTED, format!("{fault:?} {n} {line}")).env("NODEVICE_SELECT", "1");
    command.env("SIGNSTEP_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.current_dir(bench.folder.path()).output().unwrap()
}

#[test]
fn a_device_that_does_not_answer_is_listed_and_says_why() {
    let bench = Bench::new();
    for (line, said) in [("devices -v", "  does not answer: "), ("devices -v --json", "\"error\": \"")] {
        let output = with_fault(&bench, Fault::Refused, 1, line);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("features") && text.contains(said), "{line}: {output:?}");
    }
}

/// In the program's own folders: nothing half-written, and the same command goes on.
#[test]
fn the_program_ends_with_the_right_code_and_goes_on_where_it_was() {
    let lines = [
        ("attack --method pgd --eps 0.2 --steps 2 --restarts 2 --limit 12 --chunk 4", "adversarial.safetensors", 41),
        ("eval --attacks fgsm,apgd:steps=2 --eps 0.1 --limit 8 --chunk 4", "eval.safetensors", 83),
    ];
    let bench = Bench::new();
    let (mut faults, mut resumed) = (0, 0);
    for (line, tensors, stride) in lines {
        let file = |out: &str| std::fs::read(bench.path(out).join(tensors)).unwrap();
        bench.ok(&format!("{line} --out whole --fresh"));
        let want = file("whole");
        let (mut n, mut reached) = (1, true);
        while reached {
            let fault = FAULTS[faults % 4];
            let output = with_fault(&bench, fault, n, &format!("{line} --out run"));
            let said = String::from_utf8_lossy(&output.stderr);
            let what = format!("{line}: {fault:?} at call {n}: {said}");
            assert!(!said.contains("panicked"), "{what}");
            reached = output.status.code() != Some(0);
            if reached {
                let code = if fault == Fault::Memory { 5 } else { 6 };
                assert_eq!(output.status.code(), Some(code), "{what}");
                assert!(said.lines().any(|l| l.starts_with("error: ")), "{what}");
                faults += 1;
                if bench.path("run").exists() {
                    let left = names(&bench.path("run"));
                    assert_eq!(left, ["parts"], "{what}");
                    let parts = names(&bench.path("run/parts"));
                    assert!(parts.iter().all(|name| !name.ends_with(".tmp")), "{what}: {parts:?}");
                    resumed += usize::from(parts.iter().any(|name| name.ends_with(".safetensors")));
                }
            }
            bench.ok(&format!("{line} --out run"));
            assert!(file("run") == want, "{what}");
            std::fs::remove_dir_all(bench.path("run")).unwrap();
            n += stride;
        }
        std::fs::remove_dir_all(bench.path("whole")).unwrap();
    }
    println!("{faults} faults, {resumed} of them with parts kept");
    assert!(faults >= 20 && resumed >= 3, "{faults} faults, {resumed} of them with parts kept");
}
