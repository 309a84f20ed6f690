#!/usr/bin/env python3
"""Small checkpoints as PyTorch writes them, and the tensors that they hold.

    python tests/golden/checkpoint.py --out tests/golden/checkpoint

One state dict in four files (`zip.pt`, `legacy.pt`, `zip4.pt` with pickle protocol 4, `nested.pt` among other things), and
`expected.safetensors`, written by safetensors' own writer. Needs torch, numpy, safetensors.
"""
import argparse
from collections import OrderedDict
from pathlib import Path
import numpy as np
import torch
from safetensors.torch import save_file


def state():
    """Every type of float, views of all kinds, and what a state dict has beside its tensors."""
    g = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=g)
    base = random(4, 5)
    dict_ = OrderedDict([
        ("f32", random(2, 3)), ("f64", random(3).double()), ("f16", random(2, 2).half()), ("bf16", random(4).bfloat16()),
        ("whole", base), ("transposed", base.t()), ("column", base[:, 2]), ("corner", base[1:3, 2:]), ("stepped", base[::2, ::3]),
        ("scalar", torch.tensor(2.5)), ("empty", torch.zeros(0, 3)), ("repeated", random(3, 1).expand(3, 2)),
        ("channels_last", random(2, 3, 2, 2).to(memory_format=torch.channels_last)),
        ("parameter", torch.nn.Parameter(random(3))), ("special", torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45])),
        ("bn.num_batches_tracked", torch.tensor(7)),
    ])
    dict_._metadata = OrderedDict([("", {"version": 1}), ("bn", {"version": 2})])
    return dict_


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    tensors = state()
    torch.save(tensors, a.out / "zip.pt")
    torch.save(tensors, a.out / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(tensors, a.out / "zip4.pt", pickle_protocol=4)
    net = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    among = {"net": tensors, "acc": np.float64(91.5), "loss": torch.tensor(0.25), "epoch": 3, "optimizer": optimiser.state_dict(),
             "device": torch.device("cpu"), "size": torch.Size([2, 3]), "note": "é"}
    torch.save(among, a.out / "nested.pt", _use_new_zipfile_serialization=False)
    floats = {name: t.detach().clone().contiguous() for name, t in tensors.items() if t.is_floating_point()}
    save_file(floats, a.out / "expected.safetensors")


if __name__ == "__main__":
    main()
