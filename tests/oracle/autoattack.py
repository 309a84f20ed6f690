#!/usr/bin/env python3
"""AutoAttack's standard suite (APGD-CE, APGD-T, FAB-T, Square; Linf) by its authors' code, and the engine's beside it.

    python tests/oracle/autoattack.py library digits --seeds 0 1 2 3 4 --square-as-in-paper --out tests/oracle/autoattack.json
    python tests/oracle/autoattack.py library mnist --limit 300 --data DIR --checkpoints DIR --out tests/oracle/autoattack.json
    python tests/oracle/autoattack.py engine digits --work WORK [--program target/release/signstep]
    python tests/oracle/autoattack.py engine mnist --data DIR --checkpoints DIR --work WORK

digits: digits-cnn-robust on the 450 held-out digits. mnist: the adversarially trained LeNet-5 of mnist_lenet5.py on the first
--limit test images (its checkpoint and MNIST are read where they lie).

`library` runs AutoAttack once for each seed and replaces that entry of --out. The suite is that of pip's pyautoattack,
github.com/fra31/auto-attack made a package (APGD and FAB were read beside the original and are the same), with nothing changed: 100
iterations, 9 target classes, 5,000 queries, each attack on what the former left. Counted are samples, not batches: a forward pass of
250 images counts 250. FAB and APGD classify more often than they differentiate. Clean accuracy and the suite's own checks of the
model and of what was delivered are not counted. `fates` has a character for each image: the index of the attack that turned it, `+`
where none did, `-` where it was wrong when clean.

AutoAttack draws the corner of a square from 0 to h - s - 1, so its squares never reach the last row and column; the paper
(Andriushchenko et al. 2020, algorithm 2) draws from 0 to h - s, and so does the engine. With --square-as-in-paper Square runs a second
time on the same images with that one range as in the paper, and `fates_square_as_in_paper` tells what became of them.

`engine` runs the engine, in float, for as many seeds (or takes the runs that lie in WORK), on all the images or the first --limit, and
prints robust accuracy after each attack and how often each image stands (of a run that has `robust` in place of `fates`, 1 for who
stands, only the end). Random numbers cannot be shared. It exits with 1 where the mean after some attack lies more than
0.1 points and four standard errors of the difference from AutoAttack's: with its squares as in the paper, where they were run. One run
on each side has no error that could be told: there 1 point is allowed.
Needs torch, numpy, safetensors, and for `library` pyautoattack (pip install --no-deps).
"""
import argparse, json, logging, platform, statistics, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
BATCH = 250
ORDER = ["apgd-ce", "apgd-t", "fab-t", "square"]
ROBUST = ROOT / "weights/digits-cnn-robust.safetensors"


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


def suite(net, x, y, eps, seed, as_in_paper):
    from pyautoattack import AutoAttack

    model = Counted(net)
    aa = AutoAttack(model, eps=eps, norm="Linf", seed=seed, version="standard")
    entries, spent, start = {}, [0, 0], time.time()
    place = {image.numpy().tobytes(): i for i, image in enumerate(x)}
    assert len(place) == len(x), "images that are equal"
    with torch.no_grad():
        fates = ["+" if right else "-" for right in (net(x).argmax(1) == y).tolist()]
    paper = {}

    def take():
        now = [model.forwards, model.gradients]
        out = [b - a for a, b in zip(spent, now)]
        spent[:] = now
        return out

    def fallen(adv, x, y):
        assert (adv - x).abs().max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1, "outside the ball"
        with torch.no_grad():
            wrong = net(adv).argmax(1) != y
        return [place[image.numpy().tobytes()] for image in x[wrong]]

    def watch(index, attack):
        """Books what one attack spends; called once for each batch of survivors."""
        name, perturb, range_of = ORDER[index], attack.perturb, getattr(attack, "random_int", None)

        def booked(x, y):
            entry = entries.setdefault(name, {"attacked": 0, "broken": 0, "forwards": 0, "gradients": 0})
            take()  # clean accuracy and the suite's checks
            adv = perturb(x, y)
            forwards, gradients = take()
            broken = fallen(adv, x, y)
            for key, value in (("attacked", len(x)), ("broken", len(broken)), ("forwards", forwards), ("gradients", gradients)):
                entry[key] += value
            print(f"{time.time() - start:5.0f} s {name}: {entry}", flush=True)
            if name == "square" and as_in_paper:
                with patch.object(attack, "random_int", lambda low, high, **more: range_of(low, high + 1, **more)):
                    paper.update(dict.fromkeys(fallen(perturb(x, y), x, y), str(index)))
            for i in broken:
                fates[i] = str(index)
            return adv

        attack.perturb = booked

    assert aa.attacks_to_run == ORDER, aa.attacks_to_run
    for index, attack in enumerate((aa.apgd, aa.apgd_targeted, aa.fab, aa.square)):
        watch(index, attack)
    adv, _ = aa.run_standard_evaluation(x, y, batch_size=BATCH)
    with torch.no_grad():
        robust = torch.cat([net(part).argmax(1) for part in adv.split(BATCH)]) == y
    left = len(x) - fates.count("-")
    attacks = []
    for name in ORDER:
        entry = entries.get(name)
        if entry is None:  # nothing was left to attack
            break
        assert entry["attacked"] == left, (entry, left)
        left -= entry["broken"]
        per = {f"{k}_per_attacked": round(entry[k] / entry["attacked"], 2) for k in ("forwards", "gradients")}
        attacks.append({"attack": name} | entry | {"robust_accuracy": left / len(x)} | per)
    assert left == int(robust.sum()) == fates.count("+"), (left, int(robust.sum()))
    total = {k: sum(e[k] for e in attacks) for k in ("forwards", "gradients")}
    total |= {f"{k}_per_sample": round(total[k] / len(x), 2) for k in ("forwards", "gradients")}
    run = {"seed": seed, "attacks": attacks, "robust_accuracy": left / len(x), "total": total, "fates": "".join(fates)}
    if as_in_paper:
        before = ["+" if fate == "3" else fate for fate in fates]
        run["fates_square_as_in_paper"] = "".join(paper.get(i, fate) for i, fate in enumerate(before))
    return run


def digits(_):
    sys.path.insert(0, str(ROOT / "weights"))
    from make_digits_cnn import DigitsCnn

    with safe_open(ROBUST, "pt") as f:
        meta = f.metadata()
    net = DigitsCnn(json.loads(meta["mean"])[0], json.loads(meta["std"])[0])
    net.load_state_dict(load_file(ROBUST))
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


def written(report):
    """One key a line; of a run one attack a line."""
    def run(r):
        attacks = ",\n     ".join(json.dumps(attack) for attack in r["attacks"])
        return ",\n    ".join(f'"{k}": ' + (f"[\n     {attacks}\n    ]" if k == "attacks" else json.dumps(v)) for k, v in r.items())

    def entry(e):
        runs = ",\n   ".join(f"{{\n    {run(r)}\n   }}" for r in e["runs"])
        return ",\n  ".join(f'"{k}": ' + (f"[\n   {runs}\n  ]" if k == "runs" else json.dumps(v)) for k, v in e.items())

    return "{\n " + ",\n ".join(f'"{k}": {{\n  {entry(report[k])}\n }}' for k in sorted(report)) + "\n}\n"


def run_library(a):
    torch.use_deterministic_algorithms(True)
    logging.getLogger("auto-attack").addHandler(logging.StreamHandler(sys.stdout))
    said, net, x, y = {"digits": digits, "mnist": mnist}[a.which](a)
    net.eval().requires_grad_(False)
    versions = {"python": platform.python_version()} | {m: version(m) for m in ("torch", "pyautoattack")}
    with torch.no_grad():
        clean = (net(x).argmax(1) == y).sum().item() / len(x)
    said |= {"norm": "linf", "batch": BATCH, "versions": versions, "samples": len(x), "clean_accuracy": clean, "runs": []}
    for seed in a.seeds:
        said["runs"].append(suite(net, x, y, said["eps"], seed, a.square_as_in_paper))
        report = json.loads(a.out.read_text()) if a.out.exists() else {}
        report[a.which] = said
        a.out.write_text(written(report))
        print(seed, json.dumps(said["runs"][-1], indent=1), flush=True)


def one_run(a, known, seed):
    """Fates of the images in one run of the engine, and the gradients and forward passes of each attack."""
    out = a.work / f"{a.which}-{seed}"
    if not (out / "eval.json").exists():
        a.work.mkdir(parents=True, exist_ok=True)
        model, data = ROBUST, ROOT / "weights/digits.safetensors"
        if a.which == "mnist":
            model, data = a.work / "lenet5-adv.safetensors", a.data
            state = torch.load(a.checkpoints / "mnist_lenet5_advtrained.pt", map_location="cpu", weights_only=True)
            save_file(state, model, metadata={"arch": "lenet5"})
        command = [a.program, "eval", "--suite", "autoattack", "--model", model, "--data", data, "--limit", a.limit,
                   "--eps", known["eps"], "--seed", seed, "--no-quantize", "--json", "--out", out]
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((out / "eval.json").read_text())
    assert report["data"]["samples"] == a.limit and report["config"]["seed"] == seed
    broken = load_file(out / "eval.safetensors")["broken_by_float"].tolist()
    return "".join({-1: "+", -2: "-"}.get(b, str(b)) for b in broken), report["attacks"]


def after(fates, index):
    """Robust accuracy after the attack `index`."""
    return sum(f == "+" or f.isdigit() and int(f) > index for f in fates) / len(fates)


def spread(rates):
    shown = f"{100 * statistics.mean(rates):.2f}"
    return shown + (f" ± {100 * statistics.stdev(rates):.2f}" if len(rates) > 1 else "")


def run_engine(a):
    known = json.loads(a.json.read_text())[a.which]
    runs = known["runs"]
    a.limit = min(a.limit or known["samples"], known["samples"])
    ours = [one_run(a, known, a.seed + i) for i in range(a.runs or len(runs))]
    engine = [fates for fates, _ in ours]
    known_end = [r.get("fates") or r["robust"].replace("1", "+").replace("0", "?") for r in runs]
    sides = {"AutoAttack": [fates[: a.limit] for fates in known_end]}
    if all("fates_square_as_in_paper" in r for r in runs):
        sides["squares as in the paper"] = [r["fates_square_as_in_paper"][: a.limit] for r in runs]
    held = list(sides)[-1]
    print(f"{'after':8} {'engine':>15}" + "".join(f" {name:>24}" for name in sides) + f"  points from {held}, allowed")
    failures = 0
    for index, name in enumerate(ORDER):
        if name != ORDER[-1] and any("?" in fates for fates in sides["AutoAttack"]):
            continue
        got = [after(fates, index) for fates in engine]
        rates = {side: [after(fates, index) for fates in all_of] for side, all_of in sides.items()}
        off = 100 * (statistics.mean(got) - statistics.mean(rates[held]))
        allowed = 1.0
        if len(got) > 1 and len(runs) > 1:
            allowed = max(0.1, 400 * sum(statistics.variance(r) / len(r) for r in (got, rates[held])) ** 0.5)
        failures += abs(off) > allowed + 1e-9
        print(f"{name:8} {spread(got):>15}" + "".join(f" {spread(r):>24}" for r in rates.values()) + f"  {off:+.2f} {allowed:.2f}")

    stands = lambda all_of: [sum(f[i] == "+" for f in all_of) / len(all_of) for i in range(a.limit)]
    share, mine = {side: stands(all_of) for side, all_of in sides.items()}, stands(engine)
    for side, theirs in share.items():
        agree = sum(m == t for m, t in zip(mine, theirs))
        far = [(i, m, t) for i, (m, t) in enumerate(zip(mine, theirs)) if abs(m - t) > 0.5]
        print(f"{side}: {agree} of {len(mine)} images stand as often; by more than half of the runs differ "
              + (", ".join(f"{i} (engine {m:.0%}, {t:.0%})" for i, m, t in far) or "none"))
    for what, key in (("gradients", "gradients"), ("forwards", "forward_passes")):
        ratio = [statistics.mean(r["total"][what] for r in runs) / known["samples"],
                 statistics.mean(sum(attack[key] for attack in spent) for _, spent in ours) / a.limit]
        print(f"{what} an image: engine {ratio[1]:.1f}, AutoAttack {ratio[0]:.1f}")
    sys.exit(f"{failures} failed" if failures else 0)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    for name in ("library", "engine"):
        q = sub.add_parser(name)
        q.add_argument("which", choices=("digits", "mnist"))
        q.add_argument("--data", type=Path)
        q.add_argument("--checkpoints", type=Path)
    q = sub.choices["library"]
    q.add_argument("--out", type=Path, required=True)
    q.add_argument("--limit", type=int, default=1000)
    q.add_argument("--seeds", type=int, nargs="+", default=[0])
    q.add_argument("--square-as-in-paper", action="store_true")
    q = sub.choices["engine"]
    q.add_argument("--work", type=Path, required=True)
    q.add_argument("--program", type=Path, default="target/release/signstep")
    q.add_argument("--json", type=Path, default=Path(__file__).parent / "autoattack.json", help="what `library` wrote")
    q.add_argument("--seed", type=int, default=0, help="the first")
    q.add_argument("--limit", type=int)
    q.add_argument("--runs", type=int, help="as many as the library's where it is not given")
    a = p.parse_args()
    torch.set_num_threads(1)
    (run_library if a.command == "library" else run_engine)(a)


if __name__ == "__main__":
    main()
