#!/usr/bin/env python3
"""Targeted FAB on the held-out digits: the engine beside torchattacks, whose code is the authors'.

    python tests/oracle/digits_fab.py [IMAGES] [--program target/release/signstep] [--norms linf l2]

Both aim at the nine wrong classes one after the other, 100 steps each, no restarts. No rounding, for torchattacks rounds nothing.
Held, for each network, norm and eps: clean predictions equal; what the engine delivers lies in the ball and in [0, 1], and PyTorch
classifies it as the engine says; as many images survive both attacks, within one in a hundred but at least two. The way of FAB is
long, and an image whose nearest success lies at the very edge of the ball may fall on either side.

Needs torch, torchattacks, safetensors.
"""
import argparse, json, subprocess, sys, tempfile, time
from pathlib import Path
import torch
import torchattacks
from safetensors import safe_open
from safetensors.torch import load_file

HOME = Path(__file__).resolve().parents[2]
sys.path.append(str(HOME / "weights"))
from make_digits_cnn import DigitsCnn

CASES = [("digits-cnn", "linf", 0.1), ("digits-cnn-robust", "linf", 0.3), ("digits-cnn", "l2", 0.7), ("digits-cnn-robust", "l2", 1.5)]


def load(name):
    path = HOME / "weights" / f"{name}.safetensors"
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    net = DigitsCnn(*(json.loads(meta[k])[0] for k in ("mean", "std"))).eval()
    net.load_state_dict(load_file(path))
    return path, net.requires_grad_(False)


def size(norm, d):
    return d.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("images", type=int, nargs="?", default=450)
    p.add_argument("--program", type=Path, default=HOME / "target/release/signstep")
    p.add_argument("--norms", nargs="+", choices=["linf", "l2"], default=["linf", "l2"])
    a = p.parse_args()
    torch.set_num_threads(1)
    digits, failures = load_file(HOME / "weights/digits.safetensors"), []
    x, y = digits["images"][: a.images].float() / 255, digits["labels"][: a.images].long()

    def expect(what, holds):
        print("ok  " if holds else "FAIL", what, flush=True)
        if not holds:
            failures.append(what)

    for name, norm, eps in CASES:
        if norm not in a.norms:
            continue
        weights, net = load(name)
        with tempfile.TemporaryDirectory() as out:
            command = [a.program, "attack", "--model", weights, "--limit", a.images, "--method", "fab-t", "--norm", norm, "--eps", eps,
                       "--no-quantize", "--out", Path(out) / "run", "--json"]
            start = time.time()
            report = json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout)
            engine_seconds, ours = time.time() - start, load_file(Path(out) / "run" / "adversarial.safetensors")
        start = time.time()
        fab = torchattacks.FAB(net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=100, n_restarts=1, multi_targeted=True, n_classes=10)
        theirs = fab(x, y)
        torch_seconds = time.time() - start

        clean, end = net(x).argmax(1), ours["adversarial_logits"].argmax(1)
        their_end, moved = net(theirs).argmax(1), ours["adversarial"]
        case = f"{name} {norm} {eps}: "
        expect(case + "clean predictions equal", torch.equal(ours["clean_logits"].argmax(1), clean) and torch.equal(ours["labels"], y))
        far = size(norm, moved - x).max().item()
        expect(case + f"largest move {far:.7f}, pixels in [0, 1]", far <= eps + 1e-6 and moved.min() >= 0 and moved.max() <= 1)
        expect(case + "PyTorch classifies what is delivered as the engine does", torch.equal(net(moved).argmax(1), end))
        right = clean == y
        here, there = right & (end == y), right & (their_end == y)
        n, both = len(y), right & (end != y) & (their_end != y)
        expect(case + f"survivors: engine {int(here.sum())}, torchattacks {int(there.sum())} of {n}, another fate for {int((here != there).sum())}",
               abs(int(here.sum()) - int(there.sum())) <= max(2, n // 100))
        assert abs(report["robust_accuracy_float"] * n - int(here.sum())) < 1e-6
        mean = lambda adv: size(norm, adv - x)[both].mean().item()
        print(f"     images that both turn move by {mean(moved):.5f} on average here and {mean(theirs):.5f} there; "
              f"engine {engine_seconds:.0f} s, torchattacks {torch_seconds:.0f} s", flush=True)
    sys.exit(f"{len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main()
