#!/usr/bin/env python3
"""One perturbation for all images, in PyTorch: the same algorithm, a dozen lines, on the held-out digits.

    python tests/oracle/uap.py --out tests/oracle/uap.json

For each loss and aim it records the success rate among the images that are right when clean (in float, nothing is rounded), and
before every step the perturbation; for the first aim also the sum of all gradients there, so that steps can be compared one at a
time. `tests/uap.rs` holds the engine against it. PyTorch sums over the batch in an order of its own, so a sum near zero may have
the other sign here. Needs torch, safetensors.
"""
import argparse, json
from pathlib import Path
import torch
from family import network

EPS, STEP, STEPS = 0.3, 0.075, 10


def losses(loss, z, y):
    if loss == "ce":
        return torch.nn.functional.cross_entropy(z, y, reduction="none")
    rows = torch.arange(len(z))
    others = z.masked_fill(torch.nn.functional.one_hot(y, z.shape[1]).bool(), -torch.inf).amax(1)
    return others - z[rows, y]


def fit(model, x, y, loss, direction):
    """The perturbation after all steps, and before each step it and the sum of all gradients there."""
    eps, step = torch.tensor(EPS), torch.tensor(STEP)
    delta, way = torch.zeros_like(x[0]), []
    for _ in range(STEPS):
        images = (x + delta).clamp(0, 1).requires_grad_(True)
        total = torch.autograd.grad(losses(loss, model(images), y).sum(), images)[0].sum(0) * direction
        way.append((delta, total))
        delta = (delta + step * total.sign()).clamp(-eps, eps)
    return delta, way


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    torch.set_num_threads(1)
    model, x, labels = network("digits", None)
    right = model(x).argmax(1) == labels
    cases = []
    for loss, target in (("ce", None), ("margin", None), ("ce", 3)):
        moves = right if target is None else right & (labels != target)
        goal = labels if target is None else torch.full_like(labels, target)
        delta, way = fit(model, x[moves], goal[moves], loss, 1 if target is None else -1)
        predicted = model((x + delta).clamp(0, 1)).argmax(1)
        hit = (predicted != labels if target is None else predicted == target)[moves]
        case = {"loss": loss, "target": target, "attacked": int(moves.sum()), "successes": int(hit.sum())}
        case["perturbations"] = [d.flatten().tolist() for d, _ in way] + [delta.flatten().tolist()]
        if not cases:
            case["sums"] = [s.flatten().tolist() for _, s in way]
        cases.append(case)
        print(loss, target, case["successes"], "of", case["attacked"])
    short = lambda o: json.loads(json.dumps(o), parse_float=lambda t: float(f"{float(t):.9g}"))
    rows = ",\n  ".join(json.dumps(short(c)) for c in cases)
    versions = json.dumps({"torch": torch.__version__.split("+")[0]})
    a.out.write_text(f'{{\n "versions": {versions},\n "eps": {EPS}, "step_size": {STEP}, "steps": {STEPS},\n "cases": [\n  {rows}\n ]\n}}\n')


if __name__ == "__main__":
    main()
