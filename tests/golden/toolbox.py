#!/usr/bin/env python3
"""Writes toolbox.safetensors: what the attacks of the Adversarial Robustness Toolbox do to digits, step by step.

    python tests/golden/toolbox.py --weights weights --out tests/golden

On the eight digits of attacks.safetensors and digits-cnn in f32. Nothing of ART's is changed: its estimator is asked for gradients
through a class that writes down where and what. What the file holds is in README.md beside this script.

ART clamps to [0, 1] first and to the ball last, the engine the other way round. In the maximum norm that is the same point. In L2
it is not once a pixel meets its bound, so for L2 the digits are paled until none can.
Needs torch, safetensors, numpy, adversarial-robustness-toolbox (with six and scipy).
"""
import argparse, json, platform
from importlib.metadata import version
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from art.attacks.evasion import AutoProjectedGradientDescent, BasicIterativeMethod, FastGradientMethod, MomentumIterativeMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from safetensors import safe_open
from safetensors.torch import load_file, save_file
import make
from make_digits_cnn import DigitsCnn

FEW, SEED = 3, 0
EPS, ALPHA, STEPS = 0.2, 0.05, 10
# Paled digits lie in [0.3, 0.7], and no pixel moves farther than eps.
EPS_L2, ALPHA_L2 = 0.3, 0.075
ITERATIONS, BEFORE_A_CHECK = 30, 7


class Watched(PyTorchClassifier):
    """Writes down each gradient that is asked for, and where."""

    def loss_gradient(self, x, y, **more):
        g = super().loss_gradient(x=x, y=y, **more)
        self.steps.append((torch.as_tensor(x).detach().clone(), torch.as_tensor(g).detach().clone()))
        return g


def run(attack, net, x, y, targets=None):
    classes = y if targets is None else targets
    attack.estimator.steps = []
    np.random.seed(SEED)
    final = torch.from_numpy(attack.generate(x.numpy(), y=F.one_hot(classes, 10).float().numpy()))
    at, g = (torch.stack(part) for part in zip(*attack.estimator.steps))
    z = torch.stack([net(row) for row in at])
    loss = torch.stack([F.cross_entropy(row, classes, reduction="none") for row in z])
    out = {"x": at, "g": g, "loss": loss, "predicted": z.argmax(2), "start": at[0], "final": final}
    return out if targets is None else out | {"targets": targets}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    torch.set_num_threads(1)
    weights = "digits-cnn.safetensors"
    with safe_open(a.weights / weights, "pt") as f:
        meta = f.metadata()
    net = DigitsCnn(json.loads(meta["mean"])[0], json.loads(meta["std"])[0]).eval().requires_grad_(False)
    net.load_state_dict(load_file(a.weights / weights))
    # The sum, not the mean: what is divided by three is not undone exactly.
    estimator = Watched(net, torch.nn.CrossEntropyLoss(reduction="sum"), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
    recorded = load_file(a.out / "attacks.safetensors")
    x, y = recorded["images"], recorded["labels"]
    x = x.reshape(-1, 1, 8, 8)
    pale = 0.3 + 0.4 * x[:FEW]
    targets = (y + 1 + torch.arange(len(y)) % 9) % 10

    some = {"eps": EPS, "eps_step": ALPHA, "max_iter": STEPS, "verbose": False}
    linf = ProjectedGradientDescent(estimator, norm="inf", num_random_init=1, **some)
    l2 = ProjectedGradientDescent(estimator, norm=2, eps=EPS_L2, eps_step=ALPHA_L2, max_iter=STEPS, num_random_init=0, verbose=False)
    auto = AutoProjectedGradientDescent(estimator, norm="inf", eps=EPS, eps_step=2 * EPS, max_iter=ITERATIONS, nb_random_init=1, verbose=False)
    few = (x[:FEW], y[:FEW])
    runs = {
        "fgsm": run(FastGradientMethod(estimator, norm="inf", eps=EPS), net, x, y),
        "fgsm_l2": run(FastGradientMethod(estimator, norm=2, eps=1.0), net, x, y),
        "bim": run(BasicIterativeMethod(estimator, **some), net, *few),
        "bim_targeted": run(BasicIterativeMethod(estimator, targeted=True, **some), net, *few, targets[:FEW]),
        "pgd": run(linf, net, *few),
        "mim": run(MomentumIterativeMethod(estimator, norm="inf", decay=1.0, **some), net, *few),
        "pgd_l2": run(l2, net, pale, y[:FEW]) | {"images": pale},
        "apgd": run(auto, net, *few),
    }
    # ART's Auto-PGD leaves out what is wrong, and has rules of its own for its checks: up to the first it is the paper's.
    assert runs["apgd"]["x"].shape[1] == FEW and len(runs["apgd"]["x"]) == ITERATIONS
    for key in ("x", "g", "loss", "predicted"):
        runs["apgd"][key] = runs["apgd"][key][:BEFORE_A_CHECK]
    runs["apgd"]["final"] = runs["apgd"]["x"][-1]

    out = {"images": x.flatten(1), "labels": y}
    for name, one in runs.items():
        assert all(torch.isfinite(v).all() for v in one.values()), name
        out[f"{name}.rows"] = torch.arange(one["x"].shape[1])
        for key, v in one.items():
            out[f"{name}.{key}"] = v.flatten(-3) if v.shape[-2:] == (8, 8) else v
        wrong = (net(one["final"]).argmax(1) != y[: len(one["final"])]).sum().item()
        print(f"{name}: {len(one['x'])} gradients of {one['x'].shape[1]}, wrong at the end {wrong}, loss {one['loss'][0].mean():.3g} to {one['loss'][-1].mean():.3g}")
    versions = {"python": platform.python_version()} | {m: version(m) for m in ("torch", "adversarial-robustness-toolbox", "numpy")}
    path = a.out / "toolbox.safetensors"
    save_file({k: v.detach().clone().contiguous() for k, v in out.items()}, path, metadata={"weights": weights, "versions": json.dumps(versions)})
    make.sort_header(path)
    print("written", path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
