#!/usr/bin/env python3
"""PyTorch beside the engine: sample-steps (forward, input gradient, sign, clamp) for each second of process CPU time.

    python benches/pytorch.py [--threads 1] [WEIGHTS.safetensors ...]

Batch norm folded as the engine folds it, parameters frozen, channels-last: PyTorch at its best on a CPU. Needs torch, safetensors.
"""
import argparse, json, resource, statistics, sys, time
from pathlib import Path
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.utils.fusion import fuse_conv_bn_eval

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "weights"))


def network(path):
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    if meta["arch"] == "resnet20":
        from make_resnet20_cifar10 import ResNet20 as Net
    else:
        from make_digits_cnn import DigitsCnn as Net
    net = Net()
    net.load_state_dict(load_file(path), strict=False)
    net.eval()
    for module in list(net.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            if hasattr(module, norm):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, torch.nn.Identity())
    for w in net.parameters():
        w.requires_grad_(False)
    mean, std = (torch.tensor(json.loads(meta[k])).view(1, -1, 1, 1) for k in ("mean", "std"))
    shape = tuple(int(v) for v in meta["input"].split(","))
    net = net.to(memory_format=torch.channels_last)
    return meta["arch"], shape, lambda x: net((x - mean) / std)


def cpu():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", nargs="*", default=[str(ROOT / f"weights/{n}.safetensors") for n in ("digits-cnn", "resnet20-cifar10")])
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(f"torch {torch.__version__}, {a.threads} threads, {a.rounds} rounds, medians")
    for path in a.weights:
        arch, shape, f = network(path)
        for batch in (1, 8, 64):
            x0 = (torch.rand(batch, *shape) * 255).round() / 255
            x0 = x0.contiguous(memory_format=torch.channels_last)
            target = torch.ones(batch, dtype=torch.int64)
            lo, hi = (x0 - 8 / 255).clamp(0, 1), (x0 + 8 / 255).clamp(0, 1)
            steps, cpus, walls = 4, [], []
            for _ in range(a.rounds + 1):
                x, c, w = x0.clone(), cpu(), time.time()
                for _ in range(steps):
                    x = x.detach().requires_grad_(True)
                    loss = torch.nn.functional.cross_entropy(f(x), target, reduction="sum")
                    (g,) = torch.autograd.grad(loss, x)
                    with torch.no_grad():
                        x = (x - g.sign() / 255).clamp(lo, hi)
                cpus.append(cpu() - c)
                walls.append(time.time() - w)
            done = batch * steps
            print(f"{arch:14} batch {batch:4}: {done / statistics.median(cpus[1:]):10.1f} sample-steps/CPU s {done / statistics.median(walls[1:]):10.1f} /wall s")


if __name__ == "__main__":
    main()
