//! Checkpoints of PyTorch into weights: what `torch.save` wrote is read to the bit, and whatever else a file may hold is refused
//! in one line, without a panic, within bounded memory, leaving nothing behind.

#[path = "common/program.rs"]
mod program;
#[path = "common/torch.rs"]
mod torch;

use Py::{Bool, Call, Dict, Global, Int, List, Persistent, Raw, Storage, Tuple};
use program::{Bench, json, names, refused};
use safetensors::SafeTensors;
use signstep::data::{Checkpoint, is_checkpoint};
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use torch::{Py, Storages, dict, head, ints, legacy, listed, modern, modern_of, ordered, tensor, text, u32_at, zip};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(repository("tests/golden/checkpoint").join(name)).unwrap()
}

/// Type, shape and bytes of every tensor, by name.
fn tensors(bytes: &[u8]) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let facts = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(facts).collect()
}

/// What the library makes of the bytes of a checkpoint.
fn converted(bytes: &[u8]) -> signstep::Result<Vec<u8>> {
    Checkpoint::new("x.pt", Cursor::new(bytes), None)?.safetensors(&BTreeMap::new())
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A storage of f32 and the values 0, 1, 2, …
fn storage(key: &str, len: u64) -> (Py, (String, u64, Vec<u8>)) {
    let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
    (Storage("FloatStorage", key.into(), len as i64), (key.into(), len, floats(&values)))
}

/// The digits network that the program has inside, as a state dict with a name put before each tensor's.
fn digits(prefix: &str) -> (Vec<(Py, Py)>, Storages) {
    let bytes = fs::read(repository("weights/digits-cnn.safetensors")).unwrap();
    let (mut entries, mut storages) = (Vec::new(), Storages::new());
    for (i, (name, (_, shape, data))) in tensors(&bytes).into_iter().enumerate() {
        let shape: Vec<i64> = shape.iter().map(|s| *s as i64).collect();
        let stride: Vec<i64> = (1..=shape.len()).map(|i| shape[i..].iter().product()).collect();
        let len = data.len() / 4;
        let storage = Storage("FloatStorage", i.to_string(), len as i64);
        entries.push((text(&format!("{prefix}{name}")), tensor(storage, 0, (&shape, &stride))));
        storages.push((i.to_string(), len as u64, data));
    }
    (entries, storages)
}

#[test]
fn a_network_of_either_format_is_recognised_and_runs() {
    let bench = Bench::new();
    let (entries, storages) = digits("module.");
    fs::write(bench.path("old.pt"), legacy(&Dict(entries.clone()), &storages)).unwrap();
    fs::write(bench.path("new.pth"), modern(&dict(vec![("epoch", Int(3)), ("net", Dict(entries))]), &storages))
        .unwrap();
    let plain = bench.ok("convert old.pt old.safetensors");
    assert!(plain.contains("digits-cnn: 1×8×8 in, 10 logits, 20730 parameters"), "{plain}");
    assert!(plain.contains("old.safetensors: 10 tensors, sha256 "), "{plain}");

    let flags = "--arch digits-cnn --mean 0.25 --std 127.5/255 --classes 0,1,2,3,4,5,6,7,8,9 --eps 8/255 --alpha 0.01";
    let said = json(&bench.ok(&format!("convert new.pth new.safetensors {flags} --json")));
    let bytes = fs::read(bench.path("new.safetensors")).unwrap();
    let info = json(&bench.ok("info --model new.safetensors --json"));
    assert_eq!((&said["arch"], &said["sha256"], &said["tensors"]), (&"digits-cnn".into(), &info["sha256"], &10.into()));
    assert_eq!((&said["parameters"], &said["bytes"]), (&20_730.into(), &bytes.len().into()));
    assert_eq!((&info["eps"], &info["step_size"]), (&"8/255".into(), &"0.01".into()));
    assert_eq!((&info["classes"][9], &info["layers"][0]["name"]), (&"9".into(), &"normalise".into()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!((metadata["mean"].as_str(), metadata["std"].as_str()), ("[0.25]", "[0.5]"));

    let shipped = tensors(&fs::read(repository("weights/digits-cnn.safetensors")).unwrap());
    let named: BTreeMap<_, _> = shipped.into_iter().map(|(name, tensor)| (format!("module.{name}"), tensor)).collect();
    for file in ["old.safetensors", "new.safetensors"] {
        assert_eq!(tensors(&fs::read(bench.path(file)).unwrap()), named, "{file}");
    }
    assert_eq!(names(bench.folder.path()), ["new.pth", "new.safetensors", "old.pt", "old.safetensors"]);
}

#[test]
fn what_pytorch_wrote_is_read_to_the_bit() {
    let expected = golden("expected.safetensors");
    for file in ["zip.pt", "zip4.pt", "legacy.pt", "nested.pt"] {
        let bytes = golden(file);
        assert!(is_checkpoint(&bytes[..32]), "{file}");
        assert_eq!(tensors(&converted(&bytes).unwrap()), tensors(&expected), "{file}");
    }
    assert!(!is_checkpoint(&expected) && !is_checkpoint(b"") && !is_checkpoint(b"\x80\x02\0\0\0\0\0\0{"));
    let error = converted(&expected).unwrap_err().to_string();
    assert!(error.contains("looks like safetensors"), "{error}");
}

#[test]
fn views_are_written_as_they_are_seen() {
    let ((s, a), (t, b)) = (storage("0", 24), storage("k", 2));
    let views: Vec<(&str, Py, Vec<usize>, Vec<f32>)> = vec![
        ("rows", tensor(s.clone(), 0, (&[2, 3], &[3, 1])), vec![2, 3], vec![0., 1., 2., 3., 4., 5.]),
        ("turned", tensor(s.clone(), 0, (&[3, 2], &[1, 3])), vec![3, 2], vec![0., 3., 1., 4., 2., 5.]),
        ("later", tensor(s.clone(), 20, (&[4], &[1])), vec![4], vec![20., 21., 22., 23.]),
        ("stepped", tensor(s.clone(), 1, (&[2, 2], &[12, 5])), vec![2, 2], vec![1., 6., 13., 18.]),
        ("again", tensor(s.clone(), 3, (&[2, 2], &[0, 1])), vec![2, 2], vec![3., 4., 3., 4.]),
        ("one", tensor(s.clone(), 23, (&[1, 1], &[1 << 40, 7])), vec![1, 1], vec![23.]),
        ("scalar", tensor(t.clone(), 1, (&[], &[])), vec![], vec![1.]),
        ("none", tensor(t.clone(), 2, (&[3, 0], &[1, 1])), vec![3, 0], vec![]),
    ];
    let mut entries: Vec<_> = views.iter().map(|(name, py, ..)| (*name, py.clone())).collect();
    let size = Call(Box::new(Global("torch", "Size")), vec![ints(&[2])]);
    let given = vec![t.clone(), Int(0), size, ints(&[1]), Bool(false), Py::None, Dict(vec![])];
    let plain = Call(Box::new(Global("torch._utils", "_rebuild_tensor_v2")), given);
    entries.push(("sized", plain.clone()));
    let trained = vec![plain.clone(), Bool(true), ordered()];
    entries.push(("trained", Call(Box::new(Global("torch._utils", "_rebuild_parameter")), trained)));
    let early = vec![t, Int(0), ints(&[2]), ints(&[1])];
    entries.push(("early", Call(Box::new(Global("torch._utils", "_rebuild_tensor")), early)));
    // As Python 2 has it: the pairs of an OrderedDict are its argument.
    let pairs = entries.iter().map(|(name, py)| List(vec![text(name), py.clone()])).collect();
    let two = Call(Box::new(Global("collections", "OrderedDict")), vec![List(pairs)]);
    for root in [dict(entries), two.clone(), dict(vec![("model", dict(vec![("state_dict", two)]))])] {
        for file in [legacy(&root, &vec![a.clone(), b.clone()]), modern(&root, &vec![a.clone(), b.clone()])] {
            let found = tensors(&converted(&file).unwrap());
            for (name, _, shape, values) in &views {
                assert_eq!(found[*name], ("F32".to_string(), shape.clone(), floats(values)), "{name}");
            }
            for name in ["sized", "trained", "early"] {
                assert_eq!(found[name], ("F32".to_string(), vec![2], floats(&[0., 1.])), "{name}");
            }
            assert_eq!(found.len(), views.len() + 3);
        }
    }
}

#[test]
fn the_tensors_are_found_where_training_programs_put_them() {
    let (s, a) = storage("0", 2);
    let one = dict(vec![("w", tensor(s, 0, (&[2], &[1])))]);
    let open = |root: &Py, key| Checkpoint::new("x.pt", Cursor::new(modern(root, &vec![a.clone()])), key);
    for name in ["state_dict", "model_state_dict", "net", "model"] {
        let root = dict(vec![("epoch", Int(3)), (name, one.clone()), ("note", text("x"))]);
        assert_eq!(open(&root, None).unwrap().slots()[0].name, "w");
    }
    let both = dict(vec![("model", one.clone()), ("net", one.clone()), ("ema", one)]);
    let message = |key| open(&both, key).unwrap_err().to_string();
    assert!(message(None).contains("`net` and `model` could both be meant; --key says which"), "{}", message(None));
    assert!(message(Some("best")).contains("no entry `best`; there are `model`, `net`, `ema`"));
    assert!(open(&both, Some("ema")).is_ok());
    // Dots lead further in, unless that is what an entry is called.
    let inner = dict(vec![("b", both.clone())]);
    let deep = dict(vec![("a.b", dict(vec![("w", Int(3))])), ("state_dict", inner.clone()), ("a", inner)]);
    let message = |key| open(&deep, Some(key)).unwrap_err().to_string();
    assert!(message("a").contains("--key NAME says where: there are `a.b`"), "{}", message("a"));
    assert!(
        message("state_dict.b").contains("`state_dict.b.net` and `state_dict.b.model`"),
        "{}",
        message("state_dict.b")
    );
    assert_eq!(open(&deep, Some("state_dict.b.ema")).unwrap().slots()[0].name, "w");
    assert!(message("a.b").contains("no tensors"), "{}", message("a.b"));
    assert!(open(&deep, None).unwrap_err().to_string().contains("there are `state_dict.b`"));
    for key in ["a.", ".", "a.b.c", "a..b", "é.é"] {
        assert!(message(key).contains("has no entry"), "{key}: {}", message(key));
    }
}

#[test]
fn files_and_flags_are_guarded() {
    let bench = Bench::new();
    let (entries, storages) = digits("");
    let file = legacy(&Dict(entries.clone()), &storages);
    fs::write(bench.path("net.pt"), &file).unwrap();
    fs::write(bench.path("there.safetensors"), "mine").unwrap();
    let fails = |line: &str, code, words: &[&str]| refused(&bench.run(line), line, code, words);
    fails("convert net.pt there.safetensors", 8, &["there.safetensors", "--fresh"]);
    assert_eq!(fs::read(bench.path("there.safetensors")).unwrap(), b"mine");
    // What a killed process was writing goes with the next one; what is of another name stays.
    for name in [".there.safetensors.77.tmp", ".other.safetensors.77.tmp"] {
        fs::write(bench.path(name), "half").unwrap();
    }
    bench.ok("convert net.pt there.safetensors --fresh");
    assert!(!bench.path(".there.safetensors.77.tmp").exists());
    fs::remove_file(bench.path(".other.safetensors.77.tmp")).unwrap();
    bench.ok("info --model there.safetensors");
    fails("convert net.pt net.pt --fresh", 2, &["the same file"]);
    for flag in ["--classes", "--arch"] {
        fs::write(bench.path("mine.toml"), "mine").unwrap();
        fails(&format!("convert net.pt mine.toml {flag} mine.toml --fresh"), 2, &[flag, "the same file"]);
        assert_eq!(fs::read(bench.path("mine.toml")).unwrap(), b"mine");
    }
    fs::remove_file(bench.path("mine.toml")).unwrap();
    fails("convert net.pt missing/out.safetensors", 8, &["missing/out.safetensors"]);
    fails("convert missing.pt out.safetensors", 3, &["missing.pt", "cannot be read"]);
    fails("convert . out.safetensors", 3, &["not a regular file"]);
    fails("convert there.safetensors out.safetensors", 3, &["there.safetensors", "looks like safetensors"]);
    fails("convert net.pt out.safetensors --arch vgg", 2, &["--arch vgg", "digits-cnn", "wrn-#-#"]);
    fails("convert net.pt out.safetensors --arch wrn-28-10", 3, &["the tensors are none of a `wrn-28-10`"]);
    fails("convert net.pt out.safetensors --input-shape 3,32", 2, &["--input-shape 3,32", "C,H,W"]);
    fails("convert net.pt out.safetensors --input-shape 1,9,9", 3, &["1×9×9 given", "takes 1×8×8"]);
    fails("convert net.pt out.safetensors --arch lenet5", 3, &["net.pt: conv1.weight: has shape", "--any"]);
    // A network of one's own: the one in the file, and one that is not.
    let described = fs::read_to_string(repository("examples/networks/digits-cnn.toml")).unwrap();
    fs::write(bench.path("net.toml"), described.replace("outputs = 48", "outputs = 49")).unwrap();
    fails(
        "convert net.pt out.safetensors --arch net.toml",
        3,
        &["net.pt: linear1.weight: has shape [48, 128]", "[49, 128]"],
    );
    assert!(!bench.path("out.safetensors").exists());
    fs::write(bench.path("net.toml"), described).unwrap();
    let told = json(&bench.ok("convert net.pt own.safetensors --arch net.toml --json"));
    assert_eq!((&told["arch"], told["description_sha256"].as_str().map(str::len)), (&"digits-cnn".into(), Some(64)));
    assert_eq!(fs::read(bench.path("own.safetensors")).unwrap(), fs::read(bench.path("there.safetensors")).unwrap());
    for name in ["net.toml", "own.safetensors"] {
        fs::remove_file(bench.path(name)).unwrap();
    }
    fails("convert net.pt out.safetensors --mean 0.5", 2, &["--std"]);
    fails("convert net.pt out.safetensors --mean 0.5 --std 0", 2, &["--std 0"]);
    fails("convert net.pt out.safetensors --mean 0,0,0 --std 1,1,1", 3, &["3 means"]);
    fails("convert net.pt out.safetensors --classes a,b", 3, &["2 names for 10 logits"]);
    // No other network would be a way out.
    for flags in ["--mean 0,0,0 --std 1,1,1", "--classes a,b", "--input-shape 1,9,9"] {
        let output = bench.run(&format!("convert net.pt out.safetensors {flags}"));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !told.contains("--any"), "{flags}: {told}");
    }
    for (flags, warning) in [
        ("--mean 128 --std 64", "--mean 128: in pixels of [0, 1]"),
        ("--mean 0.5 --std 64", "--std 64: in pixels of [0, 1]"),
        ("--classes 0,1,2,3,4,5,6,7,8,0", "\"0\" is there twice"),
    ] {
        let output = bench.run(&format!("convert net.pt warned.safetensors {flags}"));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.contains("warning: ") && told.contains(warning), "{told}");
        fs::remove_file(bench.path("warned.safetensors")).unwrap();
    }
    fails("convert net.pt out.safetensors --eps -1", 2, &["--eps -1"]);
    for eps in ["inf", "0"] {
        fails(&format!("convert net.pt out.safetensors --eps {eps}"), 2, &["--eps", eps, "more than zero and finite"]);
    }
    fails("convert net.pt out.safetensors --eps 0.1 --step-size 0", 2, &["--step-size 0", "more than zero"]);
    fails("convert net.pt out.safetensors --step-size 0.1", 2, &["required", "--eps"]);
    fails("convert net.pt out.safetensors --any --eps 0.1", 2, &["--any"]);
    fails("convert net.pt out.safetensors --key model", 3, &["no entry `model`"]);
    for command in ["attack", "eval", "verify", "info", "tune", "bench steps"] {
        let words = ["net.pt: this is a checkpoint of PyTorch", "signstep convert net.pt net.safetensors"];
        fails(&format!("{command} --model net.pt"), 3, &words);
    }

    // One tensor too few: what fits best is named, and the tensors alone can be had.
    let few = Dict(entries[1..].to_vec());
    fs::write(bench.path("few.pt"), modern(&few, &storages)).unwrap();
    fails("convert few.pt out.safetensors", 3, &["few.pt: conv1.bias: this tensor is missing (as digits-cnn"]);
    assert_eq!(names(bench.folder.path()), ["few.pt", "net.pt", "there.safetensors"]);
    let said = json(&bench.ok("convert few.pt out.safetensors --any --json"));
    assert_eq!((&said["tensors"], said["arch"].is_null()), (&9.into(), true));
    assert_eq!(tensors(&fs::read(bench.path("out.safetensors")).unwrap()).len(), 9);
}

/// As the help says it.
#[test]
fn a_step_in_the_weights_is_taken_with_their_radius_alone() {
    let bench = Bench::new();
    let (entries, storages) = digits("");
    fs::write(bench.path("net.pt"), legacy(&Dict(entries), &storages)).unwrap();
    bench.ok("convert net.pt net.safetensors --eps 0.1 --step-size 0.02");
    for (flags, step) in [
        ("", "0.02"),
        ("--method pgd --steps 10", "0.02"),
        ("--eps 0.1", "0.025"),
        ("--steps 5", "0.05"),
        ("--min-eps", "0.025"),
        ("--method mifgsm", "0.01"),
        ("--norm l2", "0.125"),
    ] {
        let line = format!("attack --model net.safetensors --limit 1 --json --fresh {flags}");
        let report = json(&bench.ok(&line));
        assert_eq!(report["config"]["step_size"]["text"], step, "{line}");
    }
}

/// A file that must be refused, and a word of why.
struct Case {
    name: String,
    file: Vec<u8>,
    why: &'static str,
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: impl Into<String>, file: Vec<u8>, why: &'static str) {
        self.0.push(Case { name: name.into(), file, why });
    }

    /// In both formats.
    fn both(&mut self, name: &str, root: &Py, storages: &Storages, why: &'static str) {
        self.add(format!("{name}, old"), legacy(root, storages), why);
        self.add(format!("{name}, zip"), modern(root, storages), why);
    }

    /// Opcodes alone, between the protocol and the end.
    fn opcodes(&mut self, name: &str, opcodes: &[u8], why: &'static str) {
        let pickle = [&[0x80, 4], opcodes, b"."].concat();
        self.add(format!("{name}, zip"), modern_of(pickle.clone(), &vec![]), why);
        self.add(format!("{name}, old"), [head(), pickle, List(vec![]).pickle(true)].concat(), why);
    }
}

/// A small sound file: two tensors.
fn small() -> (Py, Storages) {
    let ((s, a), (t, b)) = (storage("0", 6), storage("1", 3));
    let root = dict(vec![("w", tensor(s, 0, (&[2, 3], &[3, 1]))), ("b", tensor(t, 0, (&[3], &[1])))]);
    (root, vec![a, b])
}

fn opcodes(cases: &mut Cases) {
    let allowed = b"NKMJGUXTCB}](taesucRbQqrhj.)\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x8f\x90\x91\x93\x94\x95\x96";
    for opcode in (0..=255_u8).filter(|b| !allowed.contains(b)) {
        let pickle = [&b"\x80\x02}X\x01\x00\x00\x00w"[..], &[opcode], b"0\n0\n0\n0\n0\n0\ns."].concat();
        cases.add(format!("opcode {opcode:#04x}"), modern_of(pickle, &vec![]), "is not allowed");
    }
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("importlib", "import_module"),
        ("runpy", "_run_code"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("copyreg", "_reconstructor"),
        ("collections", "deque"),
        ("pickle", "loads"),
        ("marshal", "loads"),
        ("types", "CodeType"),
        ("ctypes", "CDLL"),
        ("socket", "socket"),
        ("shutil", "rmtree"),
        ("webbrowser", "open"),
        ("numpy", "load"),
        ("torch", "load"),
        ("torch", "UntypedStorage"),
        ("torch", "ComplexFloatStorage"),
        ("torch", "QInt8Storage"),
        ("torch.cuda", "FloatStorage"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch.nn.modules.linear", "Linear"),
        ("__main__", "Net"),
        ("\u{1b}[2J", "x"),
        ("", ""),
    ] {
        let called = |global: String| [global.as_bytes(), b"X\x02\x00\x00\x00id\x85R"].concat();
        let global = format!("c{module}\n{name}\n");
        let mut stack = vec![0x8c, module.len() as u8];
        stack.extend(module.bytes().chain([0x8c, name.len() as u8]).chain(name.bytes()).chain([0x93]));
        cases.opcodes(&format!("{module:?}.{name}"), &called(global), "is not allowed");
        cases.opcodes(&format!("{module:?}.{name} from the stack"), &stack, "is not allowed");
        cases.opcodes(&format!("{module:?}.{name} by INST"), format!("(i{module}\n{name}\n").as_bytes(), "INST");
    }
}

fn machines(cases: &mut Cases) {
    let many = 1 << 20;
    for (name, opcodes, why) in [
        ("a list that holds itself", b"]\x94h\x00a".to_vec(), "holds a list"),
        ("a dictionary that holds itself", b"}\x94X\x03\x00\x00\x00neth\x00s".to_vec(), "no tensors where they are"),
        ("a state dict in itself", b"}\x94X\x05\x00\x00\x00modelh\x00s".to_vec(), "no tensors where they are"),
        ("a tuple of a million tuples in each other", [&b")"[..], &vec![0x85; many - 1]].concat(), "holds a tuple"),
        ("marks without end", vec![b'('; 8 << 20], "nested more than"),
        ("lists in lists", b"](".repeat(100_000), "nested more than"),
        ("values without end", vec![b'N'; 8 << 20], "more than 1048576 values"),
        ("the same one without end", [&b"N\x94"[..], &b"h\0".repeat(4 << 20)].concat(), "more than 1048576 values"),
        ("each twice the one before", [&b")\x94"[..], &b"h\0h\0\x86q\0".repeat(500_000)].concat(), "more than 1048576"),
        ("a memo of four billion", b"Nr\xff\xff\xff\xff".to_vec(), "place 4294967295"),
        ("a memo from nowhere", b"j\xff\xff\xff\xff".to_vec(), "is empty"),
        ("text of 4 GiB", b"X\xff\xff\xff\xff".to_vec(), "truncated"),
        ("bytes of 4 GiB", b"B\xff\xff\xff\xff".to_vec(), "truncated"),
        ("text of 2^64 bytes", [&[0x8d][..], &[0xff; 8]].concat(), "BINUNICODE8"),
        ("bytes of 2^64 bytes", [&[0x8e][..], &[0xff; 8]].concat(), "truncated"),
        ("an array of 2^64 bytes", [&[0x96][..], &[0xff; 8]].concat(), "truncated"),
        ("a number of 2^31 bytes", [&[0x8b][..], &[0xff; 4]].concat(), "LONG4"),
        ("a frame of 2^64 bytes", [&[0x95][..], &[0xff; 8]].concat(), "a frame of"),
        ("a protocol inside", b"\x80\x04N".to_vec(), "PROTO"),
        ("no value", b"".to_vec(), "other than one value"),
        ("two values", b"NN".to_vec(), "other than one value"),
        ("a mark left over", b"(N".to_vec(), "other than one value"),
        ("a tuple of nothing", b"t".to_vec(), "no mark"),
        ("items below a mark", b"}N(s".to_vec(), "nothing is on the stack"),
        ("a key without a value", b"}(Nu".to_vec(), "a key without"),
        ("items of a tuple", b")Na".to_vec(), "no list"),
        ("entries of a list", b"]NNs".to_vec(), "no dictionary"),
        ("attributes of a number", b"K\x01Nb".to_vec(), "BUILD"),
        ("a call of a number", b"K\x01)R".to_vec(), "cannot be called"),
        ("a call of a storage", b"ctorch\nFloatStorage\n)R".to_vec(), "cannot be called"),
        ("a dictionary of a number", b"ccollections\nOrderedDict\nK\x01\x85R".to_vec(), "list of pairs"),
        ("a name without an end", [b"c".to_vec(), vec![b'a'; 1000]].concat(), "does not end"),
        ("a global of numbers", b"K\x01K\x02\x93".to_vec(), "no text"),
        ("text that is none", b"X\x01\x00\x00\x00\xff".to_vec(), "not UTF-8"),
        ("a persistent id that is a number", b"K\x01Q".to_vec(), "no tuple"),
        ("a persistent id of a module", b"(X\x06\x00\x00\x00moduleNNNtQ".to_vec(), "kind `module`"),
        ("None", b"N".to_vec(), "holds None"),
        ("a number", b"K\x01".to_vec(), "holds a number"),
        ("an empty dictionary", b"}".to_vec(), "no tensors where they are"),
        (
            "a storage",
            Storage("FloatStorage", "0".into(), 0).pickle(false)[2..].split_last().unwrap().1.to_vec(),
            "storage",
        ),
    ] {
        cases.opcodes(name, &opcodes, why);
    }
    for (name, pickle) in
        [("no protocol", &b"N."[..]), ("protocol 1", b"\x80\x01N."), ("protocol 9", b"\x80\x09N."), ("nothing", b"")]
    {
        cases.add(name, modern_of(pickle.to_vec(), &vec![]), "offset 0");
    }
    cases.add("a pickle of 17 MiB", modern_of(vec![0x80; 17 << 20], &vec![]), "at most 16777216");
    cases.add(
        "old, 17 MiB of text",
        [head(), b"\x80\x02X\0\0\0\x01".to_vec(), vec![b'a'; 17 << 20]].concat(),
        "truncated",
    );
}

fn state_dicts(cases: &mut Cases) {
    let (s, a) = storage("0", 6);
    let one = || vec![a.clone()];
    let sound = tensor(s.clone(), 0, (&[2, 3], &[3, 1]));
    let rebuild = |arguments| Call(Box::new(Global("torch._utils", "_rebuild_tensor_v2")), arguments);
    let max = i64::MAX;
    let view = |offset, shape: &[i64], stride: &[i64]| tensor(s.clone(), offset, (shape, stride));
    let storage_of = |class, key: &str, len| tensor(Storage(class, key.into(), len), 0, (&[1], &[1]));
    for (name, value, why) in [
        ("an offset beyond", view(1, &[2, 3], &[3, 1]), "outside its storage of 6"),
        ("an offset far beyond", view(max, &[1], &[1]), "outside its storage"),
        ("an offset below", view(-1, &[2], &[1]), "a negative offset"),
        ("an offset beyond for nothing", view(7, &[0], &[1]), "outside its storage"),
        ("a shape beyond", view(0, &[7], &[1]), "outside its storage"),
        ("a stride beyond", view(0, &[2, 3], &[4, 1]), "outside its storage"),
        ("a stride that overflows", view(0, &[3, 3], &[max, max]), "outside its storage"),
        ("a stride below", view(5, &[2], &[-1]), "a side or stride of -1"),
        ("a side below", view(0, &[-1], &[1]), "a side or stride of -1"),
        ("a shape that overflows", view(0, &[max, max], &[0, 0]), "too large"),
        ("a product of 2^64", view(0, &[1 << 32, 1 << 32], &[0, 0]), "too large"),
        ("six values a billion times", view(0, &[1 << 28, 1], &[0, 1]), "share too much"),
        ("six values four thousand times", view(0, &[4096, 6], &[0, 1]), "share too much"),
        ("more strides than sides", view(0, &[2], &[1, 1]), "1 sides, but 2 strides"),
        ("nine axes", view(0, &[1; 9], &[1; 9]), "9 axes"),
        ("a shape that is a list", rebuild(vec![s.clone(), Int(0), List(vec![Int(6)]), ints(&[1])]), "no tuple"),
        ("a side that is text", rebuild(vec![s.clone(), Int(0), Tuple(vec![text("6")]), ints(&[1])]), "no tuple"),
        ("a side of 2^70", view_of(&s, b"\x8a\x09\0\0\0\0\0\0\0\0\x40"), "no tuple"),
        ("a tensor of nothing", rebuild(vec![]), "not described"),
        ("a tensor of text", rebuild(vec![text("0"), Int(0), ints(&[6]), ints(&[1])]), "not described"),
        ("an offset that is a float", rebuild(vec![s.clone(), Py::Float(0.), ints(&[6]), ints(&[1])]), "not described"),
        (
            "a conjugate",
            rebuild(vec![
                s.clone(),
                Int(0),
                ints(&[6]),
                ints(&[1]),
                Bool(false),
                ordered(),
                dict(vec![("conj", Bool(true))]),
            ]),
            "conjugates",
        ),
        (
            "a parameter of nothing",
            Call(Box::new(Global("torch._utils", "_rebuild_parameter")), vec![]),
            "a parameter of",
        ),
        (
            "a parameter of a number",
            Call(Box::new(Global("torch._utils", "_rebuild_parameter")), vec![Int(1)]),
            "is a number",
        ),
        ("a storage that is not there", storage_of("FloatStorage", "9", 1), "storage `9` is missing"),
        ("a storage elsewhere", storage_of("FloatStorage", "../../etc/passwd", 1), "is missing"),
        ("a storage of another type", storage_of("DoubleStorage", "0", 6), "in two ways"),
        ("a storage of another length", storage_of("FloatStorage", "0", 7), "in two ways"),
        ("a storage of less than nothing", storage_of("FloatStorage", "9", -1), "does not describe"),
        ("a storage of 2^63", storage_of("DoubleStorage", "9", max), "storage `9`"),
        ("a number", Int(1), "bad: is a number"),
        ("None", Py::None, "is None"),
        ("text", text("x"), "is text"),
        ("a dictionary", dict(vec![]), "is a dictionary"),
        ("a number of NumPy", Call(Box::new(Global("numpy.core.multiarray", "scalar")), vec![]), "is an object"),
    ] {
        let root = dict(vec![("good", sound.clone()), ("bad", value)]);
        cases.both(name, &root, &one(), why);
    }
    let (integers, bools) = (Storage("LongStorage", "1".into(), 1), Storage("BoolStorage", "1".into(), 8));
    for (name, storage) in [("integers", integers), ("truth", bools)] {
        let root = dict(vec![("good", sound.clone()), (name, tensor(storage.clone(), 0, (&[1], &[1])))]);
        let Storage(_, _, len) = storage else { unreachable!() };
        cases.both(name, &root, &vec![a.clone(), ("1".into(), len as u64, vec![0; 8])], "only floats are supported");
    }
    let counted = dict(vec![("num_batches_tracked", sound.clone())]);
    cases.both("nothing but a count", &counted, &one(), "holds no tensors");
    let twice = Dict(vec![(text("w"), sound.clone()), (text("w"), sound.clone())]);
    cases.both("a name twice", &twice, &one(), "two of this name");
    let named = |name: Py| Dict(vec![(name, sound.clone())]);
    cases.both("a number for a name", &named(Int(1)), &one(), "whose name is no text");
    for name in ["", "a\nb", "\u{1b}[2J", "__metadata__", &"x".repeat(2000)] {
        cases.both(&format!("the name {name:.20?}"), &named(text(name)), &one(), "not a name for a tensor");
    }
    let crowd = (0..4097).map(|i| (text(&i.to_string()), sound.clone())).collect();
    cases.both("a crowd", &Dict(crowd), &one(), "more than 4096 tensors");
    let wrapped = |name: &'static str, inner: Py| dict(vec![(name, inner)]);
    let deep = ["net", "net", "net", "net"].into_iter().fold(named(text("w")), |inner, name| wrapped(name, inner));
    cases.both("wrapped four times", &deep, &one(), "no tensors where they are");
    let both = dict(vec![("net", named(text("w"))), ("model", named(text("w")))]);
    cases.both("two of them", &both, &one(), "could both be meant");
    cases.both("under another name", &dict(vec![("ema", named(text("w"))), ("x", Int(1))]), &one(), "`ema`, `x`");
}

/// A tensor with opcodes of one's own as its only side.
fn view_of(storage: &Py, side: &[u8]) -> Py {
    let shape = Tuple(vec![Raw(side.to_vec())]);
    let arguments = vec![storage.clone(), Int(0), shape, ints(&[1])];
    Call(Box::new(Global("torch._utils", "_rebuild_tensor_v2")), arguments)
}

fn archives(cases: &mut Cases) {
    let (root, storages) = small();
    let sound = modern(&root, &storages);
    let (places, end) = (listed(&sound), sound.len() - 22);
    let last = *places.last().unwrap();
    // Every number is that of a place in the file: change it there.
    let mut patch = |name: &str, at: usize, bytes: &[u8], why: &'static str| {
        let mut file = sound.clone();
        assert_ne!(&file[at..at + bytes.len()], bytes, "{name}: nothing is changed");
        file[at..at + bytes.len()].copy_from_slice(bytes);
        cases.add(format!("zip: {name}"), file, why);
    };
    let header = |i: usize| u32_at(&sound, places[i] + 42) as usize;
    let data = |i: usize| header(i + 1) - 16 - u32_at(&sound, places[i] + 24) as usize;
    for i in 0..places.len() {
        let at = places[i];
        patch(&format!("entry {i} encrypted"), at + 8, &[0x09], "encrypted");
        patch(&format!("entry {i} strongly encrypted"), at + 8, &[0x48], "encrypted");
        patch(&format!("entry {i} with a hidden header"), at + 9, &[0x28], "encrypted");
        patch(&format!("entry {i} with a flag"), at + 8, &[0x0c], "are not known");
        patch(&format!("entry {i} deflated"), at + 10, &[8], "compressed (method 8)");
        patch(&format!("entry {i} in a method of its own"), at + 10, &[99], "compressed (method 99)");
        patch(
            &format!("entry {i} with another checksum"),
            at + 16,
            &[!sound[at + 16]],
            "is not what the directory says",
        );
        patch(&format!("entry {i} unpacking to 4 GiB"), at + 24, &[0xfe, 0xff, 0xff, 0xff], "two sizes");
        patch(&format!("entry {i} of 4 GiB"), at + 20, &[0xfe; 8], "runs into the directory");
        patch(&format!("entry {i} of zip64"), at + 20, &[0xff; 8], "zip64");
        patch(&format!("entry {i} at a place of zip64"), at + 42, &[0xff; 4], "zip64");
        patch(&format!("entry {i} on another disk"), at + 34, &[1], "several parts");
        patch(&format!("entry {i} flags in its header"), header(i) + 6, &[0x00], "its header is not");
        patch(&format!("entry {i} method in its header"), header(i) + 8, &[8], "its header is not");
        patch(&format!("entry {i} size in its header"), header(i) + 22, &[1], "its header is not");
        patch(&format!("entry {i} name in its header"), header(i) + 30, b"x", "its header is not");
        let other = if i == 0 { "not a checkpoint" } else { "its header is not" };
        patch(&format!("entry {i} without a header"), header(i), b"QK", other);
        patch(&format!("entry {i} shorter by padding"), header(i) + 28, &[sound[header(i) + 28] - 1], "");
        if i > 0 {
            patch(
                &format!("entry {i} where the one before is"),
                at + 42,
                &sound[places[i - 1] + 42..][..4],
                "overlaps",
            );
            patch(
                &format!("entry {i} inside the one before"),
                at + 42,
                &(header(i) as u32 - 8).to_le_bytes(),
                "zip entry",
            );
            patch(&format!("entry {i} at the beginning"), at + 42, &[0; 4], "zip entry");
        }
        if i + 1 < places.len() {
            patch(&format!("entry {i} damaged"), data(i), &[!sound[data(i)]], "checksum");
            patch(
                &format!("entry {i} with another tail"),
                header(i + 1) - 12,
                &[!sound[header(i + 1) - 12]],
                "what follows it",
            );
            patch(&format!("entry {i} without a tail"), header(i + 1) - 16, b"QK", "what follows it");
        }
        for name in ["..", "/", "a\\", "a\0", "\u{7f}"] {
            // A folder that leads out; in the directory alone, where it is looked at first.
            let bytes = if name == ".." { b"../".to_vec() } else { name.as_bytes().to_vec() };
            patch(&format!("entry {i} named {name:?}"), at + 46, &bytes, "not a name that PyTorch gives");
        }
    }
    patch("on disk 1", end + 4, &[1], "several parts");
    patch("of two parts", end + 8, &[1], "several parts");
    patch("with a comment", end + 20, &[1], "comment");
    patch("of 65,535 entries", end + 8, &[0xff; 4], "zip64");
    patch("with a directory of 4 GiB", end + 12, &[0xff; 4], "zip64");
    patch("with a directory elsewhere", end + 16, &[0; 4], "records do not say");
    patch("without an end", end, b"QK", "truncated");
    patch("one entry fewer", end + 8, &[places.len() as u8 - 1, 0, places.len() as u8 - 1], "records do not say");
    patch("other counts in zip64", end - 76 + 24, &[1], "records do not say");
    patch("another place in zip64", end - 20 + 8, &[1], "records do not say");
    patch("zip64 that is none", end - 76, b"QK", "records do not say");
    patch("zip64 on two disks", end - 4, &[2], "records do not say");
    patch("no place for zip64", end - 20, b"QK", "is not where the archive says");
    patch("a directory that is none", last, b"QK", "does not begin as one");
    patch("a name of 64 KiB", last + 28, &[0xff, 0xff], "cut off");
    patch("a name that is not UTF-8", last + 46, &[0xff], "not UTF-8");
    cases.add("zip: something before it", [b"x".to_vec(), sound.clone()].concat(), "not a checkpoint");
    cases.add("zip: something after it", [sound.clone(), b"x".to_vec()].concat(), "truncated, or something follows");
    cases.add("zip: two of them", [sound.clone(), sound.clone()].concat(), "");

    let named = |names: &[&str]| -> Vec<u8> {
        let bytes = |name: &&str| {
            let bytes = if name.ends_with("data.pkl") { root.pickle(false) } else { Vec::new() };
            (name.to_string(), bytes)
        };
        zip(&names.iter().map(bytes).collect::<Vec<_>>())
    };
    cases.add("zip: nothing in it", zip(&[]), "");
    cases.add("zip: no pickle", named(&["net/version"]), "without `data.pkl`");
    cases.add("zip: a pickle too deep", named(&["a/b/data.pkl"]), "without `data.pkl`");
    cases.add("zip: a pickle in no folder", named(&["data.pkl"]), "without `data.pkl`");
    cases.add("zip: two pickles", named(&["a/data.pkl", "b/data.pkl"]), "not in `a`");
    cases.add("zip: a name twice", named(&["a/data.pkl", "a/data.pkl"]), "two of this name");
    cases.add("zip: TorchScript", named(&["a/data.pkl", "a/constants.pkl"]), "TorchScript");
    cases.add("zip: storages missing", named(&["a/data.pkl"]), "storage `0` is missing");
    cases.add("zip: storages empty", named(&["a/data.pkl", "a/data/0", "a/data/1"]), "0 bytes for 6 values of F32");
    for name in ["a/../b", "../a", "/a", "a//b", "a/", "./a", "a\\b", "C:\\a", "a\nb", ".."] {
        cases.add(format!("zip: the name {name:?}"), named(&["a/data.pkl", name]), "not a name that PyTorch gives");
    }
    let many: Vec<String> = (0..65_534).map(|i| format!("a/{}{i}", "x".repeat(100))).collect();
    let many = zip(&many.into_iter().map(|name| (name, Vec::new())).collect::<Vec<_>>());
    cases.add("zip: 65,534 entries", many, "at most 8388608 are read");
    let mut entries =
        vec![("a/data.pkl".to_string(), root.pickle(false)), ("a/byteorder".to_string(), b"big".to_vec())];
    entries.extend(storages.iter().map(|(key, _, bytes)| (format!("a/data/{key}"), bytes.clone())));
    cases.add("zip: big-endian", zip(&entries), "little-endian");
    entries[1].1 = b"little".to_vec();
    entries[0].1.push(b'.');
    cases.add("zip: something after the pickle", zip(&entries), "something follows the pickle");
}

fn old_files(cases: &mut Cases) {
    let (root, storages) = small();
    let pickles = |parts: &[&[u8]], storages: &Storages| {
        let mut file = parts.concat();
        for (_, len, bytes) in storages {
            file.extend(len.to_le_bytes());
            file.extend(bytes);
        }
        file
    };
    let (magic, body) = (head()[..15].to_vec(), root.pickle(true));
    let keys = |keys: Vec<Py>| List(keys).pickle(true);
    let sound = keys(vec![text("0"), text("1")]);
    let (version, facts) = (Int(1001).pickle(true), dict(vec![("little_endian", Bool(true))]).pickle(true));
    assert!(converted(&pickles(&[&magic, &version, &facts, &body, &sound], &storages)).is_ok());
    let other_magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x18.".to_vec();
    let behind = [&b"\x80\x02]\x94."[..], &magic].concat();
    let big = dict(vec![("little_endian", Bool(false))]).pickle(true);
    for (name, parts, why) in [
        ("another magic number", [&other_magic, &version, &facts, &body, &sound], "not a checkpoint"),
        ("magic behind another pickle", [&behind, &version, &facts, &body, &sound], "not PyTorch's magic"),
        ("version 1002", [&magic, &Int(1002).pickle(true), &facts, &body, &sound], "not 1001"),
        ("version by name", [&magic, &text("1001").pickle(true), &facts, &body, &sound], "not 1001"),
        ("big-endian", [&magic, &version, &big, &body, &sound], "little-endian"),
        ("no endian", [&magic, &version, &dict(vec![]).pickle(true), &body, &sound], "little-endian"),
        ("no facts", [&magic, &version, &Int(1).pickle(true), &body, &sound], "little-endian"),
        ("keys in a tuple", [&magic, &version, &facts, &body, &ints(&[0, 1]).pickle(true)], "no list"),
        ("keys that are numbers", [&magic, &version, &facts, &body, &keys(vec![Int(0), Int(1)])], "no text"),
        ("a key unknown", [&magic, &version, &facts, &body, &keys(vec![text("0"), text("2")])], "no tensor knows it"),
        ("a key twice", [&magic, &version, &facts, &body, &keys(vec![text("0"), text("0")])], "storage `0`"),
        ("a key missing", [&magic, &version, &facts, &body, &keys(vec![text("0")])], "storage `1` is missing"),
        ("no keys", [&magic, &version, &facts, &body, &keys(vec![])], "is missing"),
        ("keys in another order", [&magic, &version, &facts, &body, &keys(vec![text("1"), text("0")])], "storage `1`"),
        ("keys left out", [&magic, &version, &facts, &body, &vec![]], "offset 0"),
    ] {
        cases.add(format!("old: {name}"), pickles(&parts.map(Vec::as_slice), &storages), why);
    }
    let sound = legacy(&root, &storages);
    cases.add("old: something at the end", [sound.clone(), vec![0]].concat(), "something follows");
    for len in [0, 5, 7, 1 << 40, u64::MAX] {
        let mut wrong = storages.clone();
        wrong[0].1 = len;
        cases.add(format!("old: a storage of {len}"), legacy(&root, &wrong), "for 6 values of F32");
    }
    // The file says that there is more than there is: nothing is taken for it.
    for len in [1 << 20, 1 << 31, 1 << 62] {
        let s = Storage("FloatStorage", "0".into(), len);
        let root = dict(vec![("w", tensor(s, 0, (&[len], &[1])))]);
        let missing = vec![("0".to_string(), len as u64, vec![0; 64])];
        cases.both(&format!("a storage of {len} that is not there"), &root, &missing, "");
    }
    // As torch wrote it, but with a view where None should be.
    let id = vec![text("storage"), Global("torch", "FloatStorage"), text("0"), text("cpu"), Int(6), ints(&[0, 1, 2])];
    let viewed = tensor(Persistent(Box::new(Tuple(id))), 0, (&[6], &[1]));
    cases.both("a view of a storage", &dict(vec![("w", viewed)]), &vec![storages[0].clone()], "does not describe");
}

/// Every opcode boundary of the pickle, and every eighth byte elsewhere.
fn cut_files(cases: &mut Cases) {
    let (root, storages) = small();
    for (name, file) in [("old", legacy(&root, &storages)), ("zip", modern(&root, &storages))] {
        for end in (0..file.len()).step_by(8) {
            cases.add(format!("{name}, cut at {end}"), file[..end].to_vec(), "");
        }
    }
}

#[test]
fn what_is_no_checkpoint_is_refused_in_a_line_within_bounded_memory() {
    let mut cases = Cases::default();
    opcodes(&mut cases);
    machines(&mut cases);
    state_dicts(&mut cases);
    archives(&mut cases);
    old_files(&mut cases);
    cut_files(&mut cases);
    assert!(cases.0.len() >= 300, "{}", cases.0.len());

    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for Case { name, file, why } in &cases.0 {
        fs::write(folder.path().join("x.pt"), file).unwrap();
        // Linux keeps the promise of memory: the program itself, the largest of the files and what they may ask for.
        let mut command = if cfg!(target_os = "linux") {
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -v 300000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_signstep")]);
            command
        } else {
            Command::new(env!("CARGO_BIN_EXE_signstep"))
        };
        command.args(["convert", "x.pt", "x.safetensors", "--any"]).env("NODEVICE_SELECT", "1");
        let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        let line = errors.strip_suffix('\n').unwrap_or_default();
        let told = line.starts_with("error: model: x.pt: ") && line.contains(why) && !line.contains(char::is_control);
        if output.status.code() != Some(3) || !output.stdout.is_empty() || !told || names(folder.path()) != ["x.pt"] {
            // So that the next one is judged alone.
            let _ = fs::remove_file(folder.path().join("x.safetensors"));
            wrong.push(format!("{name}: {}, `{why}` expected: {errors:?}", output.status));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.0.len(), wrong.join("\n"));
}

#[test]
fn files_cut_at_any_byte_are_refused() {
    for file in ["zip.pt", "zip4.pt", "legacy.pt", "nested.pt"] {
        let bytes = golden(file);
        for end in 0..bytes.len() {
            assert_eq!(converted(&bytes[..end]).unwrap_err().exit_code(), 3, "{file}, cut at {end}");
        }
    }
}

/// In the zip format every byte that matters is checked: a change is noticed or changes nothing. The old format has no checksums, so
/// that other values, names or shapes may come out, but never more than the file holds.
#[test]
fn changed_bytes_are_refused_or_harmless() {
    let (root, storages) = small();
    let files =
        [golden("zip.pt"), golden("zip4.pt"), golden("legacy.pt"), modern(&root, &storages), legacy(&root, &storages)];
    let (mut refused, mut all) = (0, 0);
    for (i, file) in files.iter().enumerate() {
        let sound = converted(file).unwrap();
        let mut changed = file.clone();
        for at in 0..file.len() {
            for mask in [0x01, 0x80, 0xff, 0x5a] {
                changed[at] ^= mask;
                all += 1;
                match converted(&changed) {
                    Ok(bytes) if file.starts_with(b"PK") => {
                        assert!(bytes == sound, "file {i}, byte {at}, mask {mask:#04x}");
                    }
                    Ok(bytes) => assert!(bytes.len() <= 2 * file.len() + (1 << 16), "file {i}, byte {at}"),
                    Err(e) => {
                        let line = e.to_string();
                        assert!(
                            e.exit_code() == 3 && !line.contains(char::is_control),
                            "file {i}, byte {at}: {line:?}"
                        );
                        refused += 1;
                    }
                }
                changed[at] ^= mask;
            }
        }
    }
    assert!(refused > all / 2, "{refused} of {all}");
}
