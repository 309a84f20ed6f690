#!/usr/bin/env python3
"""Rows 0 to 7 of `signstep study` in PyTorch, in f64, on the same weights, images and targets.

    signstep study --out DIR --tensors [--model FILE --data PATH --eps E --limit N]
    python tests/oracle/study.py DIR --weights FILE [--rows 0,1,2]

DIR holds study.json and study.safetensors. FILE is the network of rows 1 to 7 (digits-cnn or a resnet of weights/). Each row is written
here from what its experiment says, and calls nothing of the engine. A row is `ok` where

- the share of images that reach their target is within one point,
- the signs of the first gradient differ from the engine's in no more than 0.1 % of the pixels, pixel by pixel,
- the share of pixels that are moved another way than in the row compared with is within 0.1 % of the pixels, or, where it follows
  from ten steps of images that share something, within one twentieth of itself.

In training mode one sign that rounds the other way moves everybody in the batch, and ten steps of f32 and of f64 end elsewhere. There
every step is repeated from where the engine was: pixels that go elsewhere must be no more than 0.1 % in each of the ten, and the
last step's images are the ones that are judged. What ten steps of PyTorch's own lead to is told beside.

Exits with 1 where any row fails; NaN fails. Needs torch, numpy and safetensors.
"""
import argparse, json, sys, time
from pathlib import Path
from unittest.mock import patch
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "golden"))
from make import Normalised
from seeded import networks

POINT, PIXELS, CHAOS = 0.01, 0.001, 0.05
ROUNDING = 5e-6  # steps that cancel each other leave less


def ordered_conv2d(x, weight, bias=None, stride=1, padding=0, *_):
    """Every pixel summed in the same order. A digit's background ties in a max-pool, and a matrix product may break ties by rounding."""
    h, w = x.shape[2:]
    x = F.pad(x, (padding[0],) * 4)
    taps = [(dy, dx) for dy in range(weight.shape[2]) for dx in range(weight.shape[3])]
    assert stride in (1, (1, 1)) and padding[0] == weight.shape[2] // 2
    y = sum((x[:, None, :, dy : dy + h, dx : dx + w] * weight[None, :, :, dy, dx, None, None]).sum(2) for dy, dx in taps)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def network(file):
    """In f64, with the normalisation that the weights' metadata ask for."""
    with safe_open(file, "pt") as f:
        meta = f.metadata()
    net = networks()[meta["arch"]][1]()
    missing, left = net.load_state_dict(load_file(file), strict=False)
    assert not left and all(name.endswith("num_batches_tracked") for name in missing), (missing, left)
    net = net.double().requires_grad_(False)
    mean, std = (json.loads(meta[key]) if key in meta else None for key in ("mean", "std"))
    return Normalised(net, mean, std).double() if mean else net


def gradient(net, x, targets, reduction, training):
    # Running statistics must stay as they are: no row is to depend on the one before it.
    net.train(training)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.track_running_stats = not training
            if training:
                m.saved = m.running_mean, m.running_var
                m.running_mean = m.running_var = None
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(net(x), targets, reduction=reduction)
    (grad,) = torch.autograd.grad(loss, x)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d) and training:
            m.running_mean, m.running_var = m.saved
            m.track_running_stats = True
    net.eval()
    return grad


def logits(net, x):
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(64)])


class Run:
    def __init__(self, x, first):
        self.x, self.first = x, first


def join(parts):
    return Run(torch.cat([p.x for p in parts]), torch.cat([p.first for p in parts]))


def attack(net, x0, targets, batch, *, alpha, steps, eps, lo, hi, reduction="sum", direction=-1, training=False, loop=False, start=None):
    """`batch` images at a time: x <- x + direction * alpha * sign(gradient), within ball and bounds."""
    def one(x0, targets, start):
        x, first = start.clone(), None
        for _ in range(steps):
            sign = gradient(net, x, targets, reduction, training).sign()
            first = sign if first is None else first
            if loop:
                for i in range(len(x)):
                    x[i] = x[i] + direction * alpha * sign[i]
            else:
                x = x + direction * alpha * sign
            x = torch.clamp(x, min=x0 - eps, max=x0 + eps).clamp(lo, hi)
        return Run(x, first)
    start = x0 if start is None else start
    return join([one(x, t, s) for x, t, s in zip(x0.split(batch), targets.split(batch), start.split(batch))])


def shared(net, x0, targets, batch, *, alpha, steps, eps, lo, hi):
    """One gradient, averaged over the batch, and one perturbation for all of it."""
    def one(x0, targets):
        delta, x, first = torch.zeros_like(x0[0]), x0.clone(), None
        for _ in range(steps):
            sign = gradient(net, x, targets, "mean", False).mean(0).sign()
            first = sign if first is None else first
            delta = (delta - alpha * sign).clamp(-eps, eps)
            x = (x0 + delta).clamp(lo, hi)
        return Run(x, first.expand_as(x0))
    return join([one(x, t) for x, t in zip(x0.split(batch), targets.split(batch))])


def moves(x, x0):
    d = x - x0
    return torch.where(d.abs() < ROUNDING, torch.zeros_like(d), d).sign()


def differ(a, b):
    return (a != b).double().mean().item()


class Check:
    def __init__(self, study, tensors):
        self.rows = {row["id"]: row for row in study["rows"]}
        self.tensors, self.failed, self.runs = tensors, 0, {}

    def __call__(self, name, net, x0, targets, run, step=None):
        row = self.rows.get(name)
        if row is None or row.get("success_rate") is None:
            print(f"--   {name}: not in the study")
            return
        self.runs[name] = run
        rate = lambda x: (logits(net, x).argmax(1) == targets).double().mean().item()
        hits, told, good = rate(run.x), [], True
        if step:
            told.append(f"ten steps of PyTorch's own {hits:.4f}")
            path = self.tensors[f"{name}.path"].double()
            after = list(path[1:]) + [self.tensors[f"{name}.images"].double()]
            ahead = [step(x.view_as(x0)) for x in path]
            lost = [((x.flatten() - y).abs() > ROUNDING).double().mean().item() for x, y in zip(ahead, after)]
            told.append(f"pixels that go elsewhere in a step: {100 * max(lost):.4f} % at most")
            good, hits = good and max(lost) <= PIXELS, rate(ahead[-1])
        told.insert(0, f"success {row['success_rate']:.4f} here {hits:.4f}")
        good = good and abs(row["success_rate"] - hits) <= POINT
        ours = self.tensors[f"{name}.first_signs"].view_as(x0).double() - 1
        first = differ(ours, run.first)
        told.append(f"first signs other than the engine's {100 * first:.4f} %")
        good = good and first <= PIXELS
        base = self.runs.get(row["against"])
        if base is not None:
            share, engine = differ(moves(run.x, x0), moves(base.x, x0)), row["signs_differ"]
            told.append(f"moved another way than in {row['against']}: {100 * engine:.3f} % here {100 * share:.3f} %")
            good = good and abs(share - engine) <= max(PIXELS, CHAOS * engine)
            for ours, theirs in ((row["first_signs_differ"], differ(run.first, base.first)),):
                told.append(f"first signs {100 * ours:.3f} % here {100 * theirs:.3f} %")
                good = good and abs(ours - theirs) <= PIXELS
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {'; '.join(told)}", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("study", type=Path)
    args.add_argument("--weights", type=Path, required=True)
    args.add_argument("--rows", default="0,1,2,3,4,5,6,7")
    a = args.parse_args()
    study = json.loads((a.study / "study.json").read_text())
    tensors = load_file(a.study / "study.safetensors")
    config, wanted = study["config"], {int(row) for row in a.rows.split(",")}
    check, begun = Check(study, tensors), time.time()

    if 0 in wanted and "examples.images" in tensors:
        net = networks()["resnet18"][1]()
        weights = {k[len("weights."):]: v for k, v in tensors.items() if k.startswith("weights.")}
        missing, left = net.load_state_dict(weights, strict=False)
        assert not left and all(name.endswith("num_batches_tracked") for name in missing), (missing, left)
        net = net.double().requires_grad_(False)
        x0, targets = tensors["examples.images"].double(), tensors["examples.targets"]
        assert targets[0] == 1
        letters = iter("abcdefghijkl")
        free = dict(alpha=0.01, steps=10, eps=float("inf"), lo=-float("inf"), hi=float("inf"))
        for training, direction in ((True, 1), (False, 1), (False, -1), (True, -1)):
            way = dict(free, training=training, direction=direction)
            for batch, reduction, loop in ((1, "sum", False), (len(x0), "mean", False), (len(x0), "mean", True)):
                run = attack(net, x0, targets, batch, reduction=reduction, loop=loop, **way)
                check(f"0{next(letters)}", net, x0, targets, run)

    if wanted - {0}:
        net = network(a.weights)
        x0, targets = tensors["rows.images"].double(), tensors["rows.targets"]
        b = config["minibatch"]
        way = dict(alpha=config["step_size"]["value"], steps=config["steps"], eps=config["eps"]["value"], lo=0.0, hi=1.0)
        has_batch_norm = any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
        has_max_pool = study["model"]["arch"] == "digits-cnn"
        with patch.object(F, "conv2d", ordered_conv2d if has_max_pool else F.conv2d):
            check("1", net, x0, targets, attack(net, x0, targets, 1, **way))
            if 2 in wanted:
                check("2", net, x0, targets, attack(net, x0, targets, b, reduction="mean", **way))
            if 3 in wanted:
                check("3", net, x0, targets, attack(net, x0, targets, b, loop=True, **way))
            if 4 in wanted:
                check("4", net, x0, targets, attack(net, x0, targets, b, direction=1, **way))
            if 5 in wanted:
                check("5a", net, x0, targets, shared(net, x0, targets, b, **way))
                check("5b", net, x0, targets, shared(net, x0, targets, len(x0), **way))
            if 6 in wanted and "pair.images" in tensors:
                p, t = tensors["pair.images"].double(), tensors["pair.targets"]
                c = min(b, len(p))
                check("6a", net, p, t, attack(net, p, t, 1, **way))
                check("6b", net, p, t, attack(net, p, t, c, reduction="mean", **way))
                check("6c", net, p, t, shared(net, p, t, c, **way))
                order = torch.cat([torch.arange(0, len(p), 2), torch.arange(1, len(p), 2)])
                run, back = shared(net, p[order], t[order], max(c // 2, 1), **way), order.argsort()
                check("6d", net, p, t, Run(run.x[back], run.first[back]))
                if has_batch_norm:
                    step = lambda x: attack(net, p, t, c, training=True, start=x, **dict(way, steps=1)).x
                    check("6e", net, p, t, attack(net, p, t, c, training=True, **way), step)
            if 7 in wanted and has_batch_norm:
                step = lambda x: attack(net, x0, targets, b, training=True, start=x, **dict(way, steps=1)).x
                check("7a", net, x0, targets, attack(net, x0, targets, b, training=True, **way), step)
                # Dealt out like cards.
                order = torch.cat([torch.arange(first, len(x0), len(x0) // b) for first in range(len(x0) // b)])

                def dealt(start, steps):
                    ways = dict(way, steps=steps)
                    run = attack(net, x0[order], targets[order], b, training=True, start=start[order], **ways)
                    return Run(run.x[order.argsort()], run.first[order.argsort()])

                check("7b", net, x0, targets, dealt(x0, way["steps"]), lambda x: dealt(x, 1).x)
    print(f"{check.failed} of {len(check.runs)} rows failed, {time.time() - begun:.0f} s")
    sys.exit(check.failed > 0)


main()
