#!/usr/bin/env python3
"""Writes fab.safetensors: shortest ways to a plane within the box [0, 1], by the projections of FAB's authors, in float64.

    python tests/golden/fab.py --out tests/golden

They are those of torchattacks (torchattacks.attacks.fab), which are the authors' own. Points with many values at the box's edges,
directions with zeros and with sizes far apart, planes near and far on either side, and some that the box does not reach.
Needs torch, torchattacks, safetensors.
"""
import argparse, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torchattacks.attacks.fab import projection_l2, projection_linf

sys.path.append(str(Path(__file__).resolve().parents[2] / "weights"))
from make_digits import sort_header

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--out", type=Path, required=True)
out = p.parse_args().out / "fab.safetensors"
torch.manual_seed(5)
tensors = {}
for name, n, length in [("small", 48, 7), ("large", 8, 300)]:
    x = torch.rand(n, length).mul(1.6).sub(0.3).clamp(0, 1)
    w = torch.randn(n, length)
    w[::3] *= 10 ** (-3 * torch.rand(n, length))[::3]
    w[torch.rand(n, length) < 0.2] = 0
    w[:, 0] = 1.0
    w /= w.abs().amax(1, keepdim=True)
    # As a share of how far the box reaches, on the side where the plane lies; two in eight are beyond it.
    share = torch.tensor([0.01, 0.1, 0.3, 0.6, 0.9, 0.97, 1.05, 3.0]).repeat(n // 8)
    sign = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    down, up = (w.clamp(min=0) * x - w.clamp(max=0) * (1 - x)).sum(1), (w.clamp(min=0) * (1 - x) - w.clamp(max=0) * x).sum(1)
    height = sign * share * torch.where(sign > 0, down, up)
    wide = lambda t: t.double().clone()
    b = (wide(w) * wide(x)).sum(1) - wide(height)
    tensors |= {f"{name}.x": x, f"{name}.w": w, f"{name}.height": height}
    for norm, projection in ("linf", projection_linf), ("l2", projection_l2):
        tensors[f"{name}.{norm}"] = projection(wide(x), wide(w), b.clone())
    # Within the box, and on the plane where the box reaches it.
    for norm in "linf", "l2":
        d = tensors[f"{name}.{norm}"]
        left = ((wide(w) * d).sum(1) + wide(height)).abs()
        assert ((wide(x) + d) > -1e-12).all() and ((wide(x) + d) < 1 + 1e-12).all()
        assert (left[share < 1] < 1e-12).all() and (left[share > 1] > 0.04 * height.abs()[share > 1]).all()
save_file({k: v.contiguous() for k, v in tensors.items()}, out)
sort_header(out)
