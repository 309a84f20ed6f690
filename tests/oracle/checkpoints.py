#!/usr/bin/env python3
"""Checkpoints that PyTorch writes, through `signstep convert`, beside what PyTorch reads of them.

    python tests/oracle/checkpoints.py [--cases 40] [--program target/release/signstep]

Random state dicts in both formats and every pickle protocol from 2 to 5: all types of floats, NaN and infinities among the values,
transposed, strided, overlapping, channels-last, scalar and empty tensors, storages that several share, Parameters, counts, metadata of
modules, alone or among other things. What is converted must be what torch.load gives, to the bit. Then networks that the engine
knows, in four types, which it must recognise; and what is more than tensors, which it must refuse. Needs torch, numpy, safetensors.
"""
import argparse, json, subprocess, sys, tempfile
from collections import OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "weights"))
from make_digits_cnn import DigitsCnn
from mnist_lenet5 import LeNet5

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def values(r, *shape):
    t = torch.from_numpy(r.standard_normal(shape)).to(TYPES[r.integers(4)])
    if t.numel() and r.random() < 0.3:
        t.view(-1)[r.integers(t.numel())] = [float("nan"), float("inf"), -0.0, 6e-8][r.integers(4)]
    return t


def views(r):
    """A tensor, or several of one storage."""
    a, b = int(r.integers(1, 7)), int(r.integers(1, 7))
    t = values(r, a, b)
    pick = r.integers(9)
    if pick == 0:
        return [t, t.t(), t[:, b // 2], t[a // 2 :, ::2]]
    if pick == 1:
        return [values(r, 2, 3, a, b).to(memory_format=torch.channels_last)]
    if pick == 2:
        return [values(r, a * b + 8).as_strided((a, b), (1, 1), 2)]  # neighbours share values
    if pick == 3:
        return [values(r), values(r, 0, a), values(r, a, 1).expand(a, 2)]
    if pick == 4:
        return [torch.nn.Parameter(t)]
    if pick == 5:
        return [values(r, a, 2, b, 3).permute(2, 0, 3, 1)]
    if pick == 6:
        return [t[-1:], t.flatten()[a * b - 1]]
    return [t]


def state_dict(r):
    state = OrderedDict() if r.random() < 0.7 else {}
    for i in range(int(r.integers(1, 12))):
        for j, t in enumerate(views(r)):
            state[f"layer{i}.{'é' if r.random() < 0.1 else 'part'}{j}"] = t
        if r.random() < 0.3:
            state[f"layer{i}.num_batches_tracked"] = torch.tensor(i)
    if isinstance(state, OrderedDict):
        state._metadata = OrderedDict([("", {"version": 1})])
    return state


def wrapped(r, state):
    """The state dict alone, or among what training programs keep."""
    if r.random() < 0.4:
        return state
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    adam.step()
    around = {"epoch": 7, "acc": np.float64(93.5), "loss": torch.tensor(0.5), "optimizer": adam.state_dict(), "none": None,
              "device": torch.device("cuda", 0), "size": torch.Size([2, 3]), "lr": 0.1, "big": 2**80, "list": [1, (2, "x")],
              "args": argparse.Namespace(lr=0.1, data=Path("data"), betas=(0.9, 0.99), gpus={0, 1}, frozen=frozenset({2})),
              "scheduler": torch.optim.lr_scheduler.MultiStepLR(adam, [1, 2]).state_dict(), "losses": np.ones((2, 3), np.float32),
              "meters": defaultdict(list, {"loss": [1.0]}), "more": SimpleNamespace(date=datetime.now(), dtype=torch.float32)}
    around[["state_dict", "model_state_dict", "net", "model"][r.integers(4)]] = state
    return around


def same(a, b):
    """Equal to the bit, NaN included; and a NaN beside a number is not equal."""
    bits = lambda t: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()).view(-1).view(torch.uint8)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def read(path):
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=40)
    p.add_argument("--program", type=Path, default="target/release/signstep")
    a = p.parse_args()
    assert not same(torch.tensor([1.0]), torch.tensor([float("nan")])) and not same(torch.zeros(1), -torch.zeros(1))
    failures, count = [], 0

    def convert(what, *flags):
        return subprocess.run([str(a.program), "convert", work / "x.pt", work / "x.safetensors", "--fresh", *flags],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def expect(what, holds, why=""):
        nonlocal count
        count += 1
        if not holds:
            print("FAIL", what, why.strip())
            failures.append(what)

    def compare(what, state, *flags):
        done = convert(what, *flags)
        if done.returncode:
            return expect(what, False, done.stderr)
        want = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
        got = read(work / "x.safetensors")
        differ = sorted(want.keys() ^ got.keys()) or [name for name in want if not same(want[name], got[name])]
        expect(what, not differ, str(differ))
        return done.stdout

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for case in range(a.cases):
            r = np.random.default_rng(case)
            state = state_dict(r)
            everything = wrapped(r, state)
            for new in (True, False):
                for protocol in (2, 3, 4, 5):
                    torch.save(everything, work / "x.pt", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
                    compare(f"case {case}, {'zip' if new else 'old'}, protocol {protocol}", state, "--any")
        for name, net in (("digits-cnn", DigitsCnn()), ("lenet5", LeNet5())):
            for dtype in TYPES:
                for new in (True, False):
                    state = {"module." + key: t for key, t in net.to(dtype).state_dict().items()}
                    torch.save({"state_dict": state}, work / "x.pt", _use_new_zipfile_serialization=new)
                    said = compare(f"{name} in {dtype}", state, "--json")
                    expect(f"{name} is recognised", said and json.loads(said)["arch"] == name)
        t = torch.ones(2, 2)
        for what, thing in {
            "a module": torch.nn.Linear(2, 2), "a namespace among tensors": {"a": t, "args": argparse.Namespace(lr=1)}, "a set": {"a": t, "b": {1}},
            "sparse": {"a": t.to_sparse()}, "complex": {"a": t.to(torch.complex64)}, "conjugate": {"a": torch.ones(2, dtype=torch.complex64).conj()},
            "quantised": {"a": torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)}, "integers": {"a": t.long()}, "a tensor": t,
            "unsigned": {"a": t.to(torch.uint16)}, "bytes": {"a": bytearray(b"x")}, "a storage": {"a": t.untyped_storage()},
            "an array": {"a": np.ones(2)},
        }.items():
            for new in (True, False):
                torch.save(thing, work / "x.pt", _use_new_zipfile_serialization=new)
                (work / "x.safetensors").unlink(missing_ok=True)
                done = convert(what, "--any")
                said = done.stderr.splitlines()
                expect(f"{what} is refused", done.returncode == 3 and len(said) == 1 and not (work / "x.safetensors").exists(), done.stderr)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), work / "x.pt")
        expect("TorchScript is refused", convert("TorchScript", "--any").returncode == 3)
    print(f"{count - len(failures)} of {count} hold")
    sys.exit(f"{len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main()
