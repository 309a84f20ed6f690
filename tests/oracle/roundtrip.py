#!/usr/bin/env python3
"""The way from PyTorch into the engine and back.

    python tests/oracle/roundtrip.py prepare OUTDIR [--images u8|f32]
    signstep attack --model OUTDIR/model.safetensors --data OUTDIR/data.safetensors --out OUTDIR/run
    python tests/oracle/roundtrip.py check OUTDIR [--run OUTDIR/run] [--eps 0.3]

prepare writes a state_dict and a batch of images as a user of PyTorch would, by safetensors.torch.save_file: the digits-cnn of
weights/ and 64 of its held-out digits. check loads what the engine delivered and holds it against the same model in PyTorch.
Needs torch, safetensors.
"""
import argparse, json, sys
from pathlib import Path
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
sys.path.insert(0, str(WEIGHTS))
from make_digits_cnn import DigitsCnn

N = 64


def prepare(a):
    a.outdir.mkdir(parents=True, exist_ok=True)
    with safe_open(WEIGHTS / "digits-cnn.safetensors", "pt") as f:
        meta = f.metadata()
    model = DigitsCnn()
    model.load_state_dict(load_file(WEIGHTS / "digits-cnn.safetensors"))
    save_file(model.state_dict(), a.outdir / "model.safetensors", metadata=meta)

    digits = load_file(WEIGHTS / "digits.safetensors")
    images, labels = digits["images"][:N].clone(), digits["labels"][:N].clone()
    if a.images == "f32":
        images = images.float() / 255
    save_file({"images": images, "labels": labels}, a.outdir / "data.safetensors")
    print("written", a.outdir / "model.safetensors", "and", a.outdir / "data.safetensors", tuple(images.shape), images.dtype)


def check(a):
    with safe_open(a.outdir / "model.safetensors", "pt") as f:
        meta = f.metadata()
    model = DigitsCnn(json.loads(meta["mean"])[0], json.loads(meta["std"])[0]).eval()
    model.load_state_dict(load_file(a.outdir / "model.safetensors"))
    data = load_file(a.outdir / "data.safetensors")
    images, labels = data["images"], data["labels"]
    if images.dtype == torch.uint8:
        images = images.float() / 255
    eps = a.eps if a.eps is not None else float(meta["eps"])

    out = load_file((a.run or a.outdir / "run") / "adversarial.safetensors")
    n, k = len(labels), len(json.loads(meta["classes"]))
    failures = []

    def expect(what, holds):
        print("ok  " if holds else "FAIL", what)
        if not holds:
            failures.append(what)

    shapes = {
        "clean": (torch.float32, images.shape), "adversarial": (torch.float32, images.shape),
        "labels": (torch.int64, (n,)), "targets": (torch.int64, (n,)),
        "clean_logits": (torch.float32, (n, k)), "adversarial_logits": (torch.float32, (n, k)),
        "attacked": (torch.bool, (n,)), "success": (torch.bool, (n,)),
        "loss": (torch.float32, (n,)), "linf": (torch.float32, (n,)), "l2": (torch.float32, (n,)),
    }
    for name, (dtype, shape) in shapes.items():
        got = out.get(name)
        expect(f"{name} is {dtype} {tuple(shape)}", got is not None and got.dtype == dtype and tuple(got.shape) == tuple(shape))
    if failures:
        return failures

    clean, adv = out["clean"], out["adversarial"]
    expect("labels are those given", torch.equal(out["labels"], labels))
    expect("clean is the batch given, bit for bit", torch.equal(clean, images))
    expect("adversarial lies on the k/255 grid, bit for bit", torch.equal(adv, (adv * 255).round() / 255))
    expect("adversarial lies in [0, 1]", bool(((adv >= 0) & (adv <= 1)).all()))
    moved = (adv.double() - clean.double()).abs().flatten(1).amax(1)
    expect(f"|adversarial - clean| <= {eps:g} + 1e-6 (largest {moved.max():.6f})", moved.max().item() <= eps + 1e-6)
    expect("linf is that distance", torch.allclose(out["linf"].double(), moved, rtol=0, atol=1e-6))
    length = (adv.double() - clean.double()).flatten(1).norm(dim=1)
    expect("l2 is the Euclidean distance", torch.allclose(out["l2"].double(), length, rtol=1e-5, atol=1e-6))

    def same_logits(name, ours, theirs):
        gap = (ours - theirs).abs().max().item()
        expect(f"{name} agree with PyTorch (largest difference {gap:.2g})", torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4))
        flips = (ours.argmax(1) != theirs.argmax(1)).sum().item()
        expect(f"PyTorch predicts the same classes from {name.removesuffix('_logits')} ({flips} differ)", flips == 0)

    with torch.no_grad():
        z0, z1 = model(clean), model(adv)
    same_logits("clean_logits", out["clean_logits"], z0)
    same_logits("adversarial_logits", out["adversarial_logits"], z1)

    # success and attacked, decided again from PyTorch's predictions
    targets, targeted = out["targets"], out["targets"] >= 0
    attacked = (z0.argmax(1) == labels) & (targets != labels)
    expect("attacked: right when clean, target not the label", torch.equal(out["attacked"].bool(), attacked))
    hit = torch.where(targeted, z1.argmax(1) == targets, z1.argmax(1) != labels)
    expect("success: PyTorch sees it too", torch.equal(out["success"].bool(), hit & attacked))
    expect("samples that were not attacked are unchanged", torch.equal(adv[~attacked], clean[~attacked]))
    print(f"{n} samples, {int(attacked.sum())} attacked, {int((hit & attacked).sum())} successes")
    return failures


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    q = sub.add_parser("prepare")
    q.add_argument("outdir", type=Path)
    q.add_argument("--images", choices=("u8", "f32"), default="u8")
    q = sub.add_parser("check")
    q.add_argument("outdir", type=Path)
    q.add_argument("--run", type=Path, help="the engine's output folder, default OUTDIR/run")
    q.add_argument("--eps", type=float, help="default: what the weights suggest")
    a = p.parse_args()
    if a.command == "prepare":
        prepare(a)
    elif failures := check(a):
        sys.exit(f"{len(failures)} checks failed")


if __name__ == "__main__":
    main()
