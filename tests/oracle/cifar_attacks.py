#!/usr/bin/env python3
"""Runs torchattacks' BIM and foolbox's LinfBasicIterativeAttack on a ResNet-20, for the engine's rates to be compared with.

    python tests/oracle/cifar_attacks.py --weights weights/resnet20-cifar10.safetensors --data DIR --limit 1000 \\
        --out tests/oracle/cifar_resnet20.json

DIR holds CIFAR-10's test_batch.bin; the first --limit images are used. Everything is float: no rounding to bytes, all images
attacked, the last iterate judged. Robust accuracy: right when clean and after the attack, over all images. Targeted success:
classified as the target, over those right when clean (no target equals its label).
Needs torch, safetensors, torchattacks and foolbox (torchattacks pins an old requests: pip install --no-deps torchattacks).
"""
import argparse, json, platform, sys, time
from importlib.metadata import version
from pathlib import Path
import foolbox
import torch
import torchattacks
from safetensors import safe_open
from safetensors.torch import load_file

BUDGETS = [("8/255", "2/255", 10, 8 / 255, 2 / 255), ("1/255", "0.25/255", 10, 1 / 255, 0.25 / 255), ("2/255", "0.5/255", 10, 2 / 255, 0.5 / 255)]
SEED = 10


class Pixels(torch.nn.Module):
    """Takes images in [0, 1]: eps and step size are counted in pixels."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


@torch.no_grad()
def logits(model, x):
    return torch.cat([model(part) for part in x.split(250)])


def by_torchattacks(model, x, y, targets, eps, step, steps):
    bim = torchattacks.BIM(model, eps=eps, alpha=step, steps=steps)
    if targets is not None:
        bim.set_mode_targeted_by_label(quiet=True)  # BIM then takes the targets in place of the labels
        y = targets
    return bim(x, y)


def by_foolbox(model, x, y, targets, eps, step, steps):
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    bim = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=step, steps=steps, random_start=False)
    criterion = foolbox.criteria.Misclassification(y) if targets is None else foolbox.criteria.TargetedMisclassification(targets)
    return bim(wrapped, x, criterion, epsilons=eps)[1]


LIBRARIES = {"torchattacks BIM": by_torchattacks, "foolbox LinfBasicIterativeAttack": by_foolbox}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--limit", type=int, default=1000)
    p.add_argument("--batch", type=int, default=125)
    a = p.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "weights"))
    from make_resnet20_cifar10 import ResNet20, load

    with safe_open(a.weights, "pt") as f:
        meta = f.metadata()
    net = ResNet20()
    missing = net.load_state_dict(load_file(a.weights), strict=False)
    assert not missing.unexpected_keys and all(k.endswith("num_batches_tracked") for k in missing.missing_keys), missing
    for w in net.parameters():
        w.requires_grad_(False)  # foolbox would otherwise pile up gradients of the weights
    model = Pixels(net, json.loads(meta["mean"]), json.loads(meta["std"])).eval()

    x, y = load([f"{a.data}/test_batch.bin"])
    x, y = x[: a.limit].float() / 255, y[: a.limit]
    n = len(x)
    clean = logits(model, x).argmax(1)
    right = clean == y
    offset = torch.randint(1, 10, (n,), generator=torch.Generator().manual_seed(SEED))
    targets = {
        "none": None,
        "random": (y + offset) % 10,
    }

    results, start = [], time.time()
    for eps_text, step_text, steps, eps, step in BUDGETS:
        for library, run in LIBRARIES.items():
            for kind, t in targets.items():
                parts = [run(model, x[i], y[i], None if t is None else t[i], eps, step, steps) for i in torch.arange(n).split(a.batch)]
                adv = torch.cat(parts)
                assert (adv - x).abs().max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1, "outside the ball"
                after = logits(model, adv).argmax(1)
                row = {
                    "library": library, "targets": kind, "eps": eps_text, "step_size": step_text, "steps": steps,
                    "robust_accuracy": (right & (after == y)).sum().item() / n,
                    "targeted_success": None if t is None else (right & (after == t)).sum().item() / max(1, right.sum().item()),
                }
                print(f"{time.time() - start:4.0f} s", row, flush=True)
                results.append(row | {"predictions": "".join(map(str, after.tolist()))})

    report = {
        "data": f"CIFAR-10 test, first {n}",
        "samples": n,
        "clean_correct": int(right.sum()),
        "clean_accuracy": right.sum().item() / n,
        "versions": {"python": platform.python_version(), **{m: version(m) for m in ("torch", "torchattacks", "foolbox", "safetensors")}},
        "results": results,
        "labels": y.tolist(),
        "clean_predictions": clean.tolist(),
        "random_targets": targets["random"].tolist(),
    }
    # One key a line, lists on one line: the file can be read and compared.
    rows = ",\n  ".join(json.dumps(r) for r in results)
    body = ",\n ".join(f'"{k}": ' + (f"[\n  {rows}\n ]" if k == "results" else json.dumps(v)) for k, v in report.items())
    Path(a.out).write_text("{\n " + body + "\n}\n")


if __name__ == "__main__":
    main()
