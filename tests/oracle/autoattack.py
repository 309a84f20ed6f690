#!/usr/bin/env python3
"""Runs AutoAttack's standard suite (APGD-CE, APGD-T, FAB-T, Square; Linf) by its authors' code, and counts what it spends.

    python tests/oracle/autoattack.py digits --out tests/oracle/autoattack.json
    python tests/oracle/autoattack.py mnist --limit 1000 --data DIR --checkpoints DIR --out tests/oracle/autoattack.json

digits: digits-cnn-robust on the 450 held-out digits. mnist: the adversarially trained LeNet-5 of mnist_lenet5.py on the first
--limit test images (its checkpoint and MNIST are read where they lie). Each writes its own entry of --out and leaves the other.

The suite is that of pip's pyautoattack, github.com/fra31/auto-attack made a package (APGD and FAB were read beside the original and
are the same), with nothing changed: 100 iterations, 9 target classes, 5,000 queries, each attack on what the former left.
Counted are samples, not batches: a forward pass of 250 images counts 250. FAB and APGD classify more often than they
differentiate. Clean accuracy and the suite's own checks of the model and of what was delivered are not counted.
Needs torch, numpy, safetensors, pyautoattack (pip install --no-deps).
"""
import argparse, json, logging, platform, sys, time
from importlib.metadata import version
from pathlib import Path
import torch
from pyautoattack import AutoAttack
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SEED, BATCH = 0, 250


class Counted(torch.nn.Module):
    """Counts the samples that go through, and those whose gradient comes back."""

    def __init__(self, net):
        super().__init__()
        self.net, self.forwards, self.gradients = net, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        z = self.net(x)
        if z.requires_grad:
            z.register_hook(lambda g: self.count(len(g)))
        return z

    def count(self, n):
        self.gradients += n


def suite(net, x, y, eps):
    model = Counted(net)
    aa = AutoAttack(model, eps=eps, norm="Linf", seed=SEED, version="standard")
    order, entries, spent, start = list(aa.attacks_to_run), {}, [0, 0], time.time()

    def take():
        now = [model.forwards, model.gradients]
        out = [b - a for a, b in zip(spent, now)]
        spent[:] = now
        return out

    def watch(name, attack):
        """Books what one attack spends; called once for each batch of survivors."""
        perturb = attack.perturb

        def booked(x, y):
            entry = entries.setdefault(name, {"attacked": 0, "broken": 0, "forwards": 0, "gradients": 0})
            take()  # clean accuracy and the suite's checks
            adv = perturb(x, y)
            forwards, gradients = take()
            with torch.no_grad():
                broken = (net(adv).argmax(1) != y).sum().item()
            assert (adv - x).abs().max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1, "outside the ball"
            for key, value in (("attacked", len(x)), ("broken", broken), ("forwards", forwards), ("gradients", gradients)):
                entry[key] += value
            print(f"{time.time() - start:5.0f} s {name}: {entry}", flush=True)
            return adv

        attack.perturb = booked

    for name, attack in zip(order, (aa.apgd, aa.apgd_targeted, aa.fab, aa.square)):
        watch(name, attack)
    assert order == ["apgd-ce", "apgd-t", "fab-t", "square"], order
    adv, _ = aa.run_standard_evaluation(x, y, batch_size=BATCH)
    with torch.no_grad():
        clean = net(x).argmax(1) == y
        left = int(clean.sum())
        robust = torch.cat([net(part).argmax(1) for part in adv.split(BATCH)]) == y
    result = {"samples": len(x), "clean_accuracy": left / len(x), "attacks": []}
    for name in order:
        entry = entries.get(name)
        if entry is None:  # nothing was left to attack
            break
        assert entry["attacked"] == left, (entry, left)
        left -= entry["broken"]
        per = {f"{k}_per_attacked": round(entry[k] / entry["attacked"], 2) for k in ("forwards", "gradients")}
        result["attacks"].append({"attack": name} | entry | {"robust_accuracy": left / len(x)} | per)
    assert left == int(robust.sum()), (left, int(robust.sum()))
    total = {k: sum(e[k] for e in result["attacks"]) for k in ("forwards", "gradients")}
    total |= {f"{k}_per_sample": round(total[k] / len(x), 2) for k in ("forwards", "gradients")}
    return result | {"robust_accuracy": left / len(x), "total": total, "robust": "".join(map(str, robust.int().tolist()))}


def digits(_):
    sys.path.insert(0, str(ROOT / "weights"))
    from make_digits_cnn import DigitsCnn

    path = ROOT / "weights/digits-cnn-robust.safetensors"
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    net = DigitsCnn(json.loads(meta["mean"])[0], json.loads(meta["std"])[0])
    net.load_state_dict(load_file(path))
    data = load_file(ROOT / "weights/digits.safetensors")
    x, y = data["images"][:450].float() / 255, data["labels"][:450]
    return {"network": "digits-cnn-robust", "data": "digits, the 450 held out", "eps": float(meta["eps"])}, net, x, y


def mnist(a):
    from mnist_lenet5 import EPS, LeNet5, idx

    net = LeNet5()
    net.load_state_dict(torch.load(a.checkpoints / "mnist_lenet5_advtrained.pt", map_location="cpu", weights_only=True))
    x, y = (idx(a.data / f"t10k-{part}-ubyte.gz")[: a.limit] for part in ("images-idx3", "labels-idx1"))
    said = {"network": "LeNet-5 of advertorch, adversarially trained", "data": f"MNIST test, first {len(x)}", "eps": EPS}
    return said, net, x.float().unsqueeze(1) / 255, y.long()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("which", choices=("digits", "mnist"))
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--limit", type=int, default=1000)
    p.add_argument("--data", type=Path)
    p.add_argument("--checkpoints", type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("auto-attack").addHandler(logging.StreamHandler(sys.stdout))

    said, net, x, y = {"digits": digits, "mnist": mnist}[a.which](a)
    net.eval().requires_grad_(False)
    versions = {"python": platform.python_version()} | {m: version(m) for m in ("torch", "pyautoattack")}
    said |= {"norm": "linf", "seed": SEED, "batch": BATCH, "versions": versions} | suite(net, x, y, said["eps"])

    report = json.loads(a.out.read_text()) if a.out.exists() else {}
    report[a.which] = said
    # One key a line, one attack a line.
    def entry(e):
        attacks = ",\n   ".join(json.dumps(r) for r in e["attacks"])
        return ",\n  ".join(f'"{k}": ' + (f"[\n   {attacks}\n  ]" if k == "attacks" else json.dumps(v)) for k, v in e.items())

    a.out.write_text("{\n " + ",\n ".join(f'"{k}": {{\n  {entry(report[k])}\n }}' for k in sorted(report)) + "\n}\n")
    print(json.dumps(said["attacks"], indent=1), said["total"], said["robust_accuracy"])


if __name__ == "__main__":
    main()
