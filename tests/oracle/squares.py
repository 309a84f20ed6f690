#!/usr/bin/env python3
"""How often Square turns a digit: AutoAttack's, the same with its squares as in the paper, and the engine's.

    python tests/oracle/squares.py 83 244 311 --work WORK --out tests/oracle/squares.json [--seeds 0 1 2 3 4 5 6 7 8 9]

AutoAttack draws the corner of a square from 0 to h - s - 1: its squares never reach the last row and column. The paper draws from 0 to
h - s, and so does the engine. A handful of images decides what that comes to on digits-cnn-robust: those that Square turned in any
run of autoattack.json, by either range, and those named beside them: 83, 244 and 311 fell to the engine's Square in the suite. Here
they are attacked by it alone, with 5,000 queries, for each seed, by all three. One seed means little; with ten it is seen which images
only squares at the edge turn.

Ends with 1 where the mean number of images turned differs by more than four standard errors between the engine and the squares of the
paper. Needs torch, safetensors, pyautoattack (pip install --no-deps).
"""
import argparse, json, statistics, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch
import torch
from pyautoattack.square import SquareAttack
from safetensors.torch import load_file, save_file

from autoattack import ROBUST, digits

HERE = Path(__file__).parent
ENGINE = "square:steps=5000:restarts=1:schedule=10000"


def by_library(net, x, y, eps, seed, as_in_paper):
    attack = SquareAttack(net, p_init=0.8, n_queries=5000, eps=eps, norm="Linf", seed=seed, device="cpu", resc_schedule=False)
    range_of = attack.random_int
    changed = (lambda low, high, **more: range_of(low, high + 1, **more)) if as_in_paper else range_of
    with patch.object(attack, "random_int", changed), torch.no_grad():
        adv = attack.perturb(x, y)
        assert (adv - x).abs().max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1
        return (net(adv).argmax(1) != y).tolist()


def by_engine(a, data, eps, seed):
    out = a.work / f"squares-{seed}"
    command = [a.program, "eval", "--attacks", ENGINE, "--model", ROBUST, "--data", data, "--eps", eps, "--seed", seed,
               "--no-quantize", "--fresh", "--json", "--out", out]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return [b == 0 for b in load_file(out / "eval.safetensors")["broken_by_float"].tolist()]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("images", type=int, nargs="*")
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--program", type=Path, default="target/release/signstep")
    p.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    p.add_argument("--json", type=Path, default=HERE / "autoattack.json")
    a = p.parse_args()
    torch.set_num_threads(1)
    said, net, x, y = digits(a)
    net.eval().requires_grad_(False)
    runs = json.loads(a.json.read_text())["digits"]["runs"]
    turned = {i for r in runs for key in ("fates", "fates_square_as_in_paper") for i, fate in enumerate(r[key]) if fate == "3"}
    rows = sorted(turned | set(a.images))
    a.work.mkdir(parents=True, exist_ok=True)
    data = a.work / "squares.safetensors"
    save_file({"images": (x[rows] * 255).round().byte(), "labels": y[rows]}, data)

    start, sides = time.time(), {"autoattack": [], "squares_as_in_paper": [], "engine": []}
    for seed in a.seeds:
        sides["autoattack"].append(by_library(net, x[rows], y[rows], said["eps"], seed, False))
        sides["squares_as_in_paper"].append(by_library(net, x[rows], y[rows], said["eps"], seed, True))
        sides["engine"].append(by_engine(a, data, said["eps"], seed))
        print(f"{time.time() - start:5.0f} s seed {seed}: turned of {len(rows)}", {k: sum(v[-1]) for k, v in sides.items()}, flush=True)

    counts = {k: [sum(run) for run in v] for k, v in sides.items()}
    share = {k: [sum(run[i] for run in v) / len(v) for i in range(len(rows))] for k, v in sides.items()}
    print("image " + " ".join(f"{k:>20}" for k in sides))
    for i, row in enumerate(rows):
        print(f"{row:5} " + " ".join(f"{share[k][i]:20.0%}" for k in sides))
    print("turned " + ", ".join(f"{k} {statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for k, v in counts.items()))
    report = {"versions": {m: version(m) for m in ("torch", "pyautoattack")}, "seeds": a.seeds, "images": rows, "turned": counts, "share": share}
    a.out.write_text("{\n " + ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in report.items()) + "\n}\n")
    one, other = counts["engine"], counts["squares_as_in_paper"]
    error = sum(statistics.variance(v) / len(v) for v in (one, other)) ** 0.5
    off = abs(statistics.mean(one) - statistics.mean(other))
    sys.exit("the engine's squares turn another number of images" if off > 4 * error + 1e-9 else 0)


if __name__ == "__main__":
    main()
