#!/usr/bin/env python3
"""Writes attacks.safetensors: what other people's attacks do to digits, step by step.

    python tests/golden/attacks.py --weights weights --out tests/golden

Recorded from torchattacks (MIFGSM, NIFGSM, PGDL2) and from AutoAttack's own APGD (pip's pyautoattack: its autopgd_base.py is that
of github.com/fra31/auto-attack at a392200 but for its imports), on digits-cnn in f32, as the libraries run. Nothing
of theirs is changed: torch.autograd.grad is wrapped, and what is at hand in the function that calls it is read there. The
convolution is make.py's plain one: pixels that are equal by symmetry stay equal, and a max-pool over them takes the first.

Of 256 attacked digits those are kept that stay farthest from all kinks (ReLU, max-pool, order of the four largest logits) in
every step: another order of summation then takes the same branches. What the file holds is in README.md beside this script.
Needs torch, safetensors, torchattacks, foolbox, pyautoattack (all with pip install --no-deps: torchattacks pins an old requests).
"""
import argparse, json, platform, sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch
import foolbox
import torch
import torch.nn.functional as F
import torchattacks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from make import clearance, grid, plain_conv2d, sort_header

MANY, ROWS, FEW = 256, 8, 3  # MANY is a power of two: the libraries' mean over the batch is then undone exactly
EPS, EPS_L2, SEED = 0.2, 1.0, 0
LEAST_CE = 1e-3
ALPHA, ALPHA_L2, STEPS, DECAY = 0.05, 0.25, 10, 1.0
ITERATIONS = 30
TORCHATTACKS = f"torchattacks {version('torchattacks')}"
AUTOATTACK = f"AutoAttack's own code, pyautoattack {version('pyautoattack')}"
NETWORK = "digits-cnn.safetensors"
LENGTHS = (10, 20, 30, 50, 100)


@contextmanager
def watched(caller, names):
    """Yields a list that gets, each time the function `caller` asks autograd for a gradient, its locals `names` and the
    gradient `g`, and one that gets `names` when it returns."""
    steps, returns, grad = [], [], torch.autograd.grad

    def copy(frame):
        return {k: frame.f_locals[k].detach().clone() for k in names if isinstance(frame.f_locals.get(k), torch.Tensor)}

    def spy(*args, **named):
        out = grad(*args, **named)
        frame = sys._getframe(1)
        assert frame.f_code is caller.__code__, frame.f_code
        steps.append(copy(frame) | {"g": out[0].detach().clone()})
        return out

    def profile(frame, event, _):
        if event == "return" and frame.f_code is caller.__code__:
            returns.append(copy(frame))

    with patch.object(torch.autograd, "grad", spy):
        sys.setprofile(profile)
        try:
            yield steps, returns
        finally:
            sys.setprofile(None)


def stack(steps, key):
    return torch.stack([s[key] for s in steps])


def momentum_run(attack, model, x, y, targets, point):
    """One of torchattacks' loops. They differentiate the mean cross-entropy, negated when targeted; here is the gradient of the sum."""
    if targets is not None:
        attack.set_mode_targeted_by_label(quiet=True)
    classes = y if targets is None else targets
    with watched(type(attack).forward, (point, "outputs")) as (steps, _):
        final = attack(x, classes)
    z = stack(steps, "outputs")
    at = stack(steps, point)
    return {
        "x": at, "g": stack(steps, "g") * (len(x) if targets is None else -len(x)),
        "loss": torch.stack([F.cross_entropy(row, classes, reduction="none") for row in z]),
        "predicted": z.argmax(2), "logits": z, "start": at[0], "final": final,
    }


def apgd_run(attack, x, y):
    """AutoAttack's loop, on images that are all classified right: none is left out, rows stay rows."""
    names = ("x_adv", "logits", "loss_indiv", "step_size", "x_best", "x_best_adv", "loss_best", "acc")
    with watched(APGDAttack.attack_single_run, names) as (steps, returns):
        final = attack.perturb(x, y)
    assert len(steps) == attack.n_iter + 1 and len(returns) == 1, (len(steps), len(returns))
    z, end = stack(steps, "logits"), returns[0]
    # What the loop holds when it asks for gradient t+1 is what the check of iteration t left.
    after = [s["step_size"] for s in steps[2:]] + [end["step_size"]]
    out = {
        "x": stack(steps, "x_adv"), "g": stack(steps, "g"), "loss": stack(steps, "loss_indiv"), "predicted": z.argmax(2), "logits": z,
        "step_size": torch.stack(after).flatten(1), "start": steps[0]["x_adv"], "final": final,
        "last_wrong": end["x_best_adv"], "best": end["x_best"], "best_loss": end["loss_best"],
    }
    if attack.y_target is not None:
        out["targets"] = attack.y_target.clone()
    return out


def kinks(model64, run):
    """Per step and sample, the distance from the nearest kink: of the network's, and of the order of the largest logits."""
    near = []
    for x, z in zip(run["x"], run["logits"]):
        top = z.double().sort(dim=1, descending=True).values[:, :5]
        near.append(torch.minimum(clearance(model64, x.double()), (top[:, :-1] - top[:, 1:]).amin(1)))
    return torch.stack(near)


def record(model, model64, x, y):
    targets = (y + 1 + torch.arange(len(y)) % 9) % 10
    runs, meta = {}, {}
    for kind, t in (("", None), ("_targeted", targets)):
        for name, cls, point in (("mifgsm", torchattacks.MIFGSM, "adv_images"), ("nifgsm", torchattacks.NIFGSM, "nes_images")):
            runs[name + kind] = momentum_run(cls(model, eps=EPS, alpha=ALPHA, steps=STEPS, decay=DECAY), model, x, y, t, point)
            meta[name + kind] = {"norm": "linf", "eps": EPS, "alpha": ALPHA, "steps": STEPS, "momentum": DECAY, "loss": "ce"}
        attack = torchattacks.PGDL2(model, eps=EPS_L2, alpha=ALPHA_L2, steps=STEPS, random_start=False)
        runs["pgd_l2" + kind] = momentum_run(attack, model, x, y, t, "adv_images")
        meta["pgd_l2" + kind] = {"norm": "l2", "eps": EPS_L2, "alpha": ALPHA_L2, "steps": STEPS, "loss": "ce"}
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=ALPHA_L2, steps=STEPS, random_start=False)
        criterion = foolbox.criteria.Misclassification(y) if t is None else foolbox.criteria.TargetedMisclassification(t)
        second = attack(wrapped, x, criterion, epsilons=EPS_L2)[1]
        runs["pgd_l2" + kind]["final_foolbox"] = second
        print(f"pgd_l2{kind}: torchattacks and foolbox end at most {(runs['pgd_l2' + kind]['final'] - second).abs().max():.2g} apart")
    for name in runs:
        meta[name] |= {"library": TORCHATTACKS, "targeted": name.endswith("_targeted"), "random_start": False}
        if name.endswith("_targeted"):
            runs[name]["targets"] = targets
        if name.startswith("pgd_l2"):
            meta[name]["final_foolbox"] = f"foolbox {version('foolbox')} L2ProjectedGradientDescentAttack"
    for norm, eps in (("Linf", EPS), ("L2", EPS_L2)):
        for loss in ("ce", "dlr"):
            attack = APGDAttack(model, n_iter=ITERATIONS, norm=norm, n_restarts=1, eps=eps, seed=SEED, loss=loss, device="cpu")
            runs[f"apgd_{norm.lower()}_{loss}"] = apgd_run(attack, x, y)
            meta[f"apgd_{norm.lower()}_{loss}"] = {"norm": norm.lower(), "eps": eps, "loss": loss, "targeted": False}
    attack = APGDAttack_targeted(model, n_iter=ITERATIONS, norm="Linf", n_restarts=1, eps=EPS, seed=SEED, n_target_classes=1, device="cpu")
    runs["apgdt_linf"] = apgd_run(attack, x, y)
    meta["apgdt_linf"] = {"norm": "linf", "eps": EPS, "loss": "dlr-targeted", "targeted": False, "target": "second most likely when clean"}
    for name in runs:
        if name.startswith("apgd"):
            meta[name] |= {"library": AUTOATTACK, "steps": ITERATIONS, "restarts": 1, "rho": 0.75, "step_size": 2 * meta[name]["eps"], "random_start": True}

    near = {name: kinks(model64, run) for name, run in runs.items()}
    for name, run in runs.items():  # softmax - 1 has no digits left in f32 where cross-entropy is almost 0
        if meta[name]["loss"] == "ce":
            near[name] = near[name].masked_fill(run["loss"] < LEAST_CE, -1)
    # Which rows go where: FEW for APGD, FEW for the targeted runs, and all of these with the rest for the others. The last of the
    # first is one that holds against some APGD: what that delivers is then the clean image.
    held = {name: (run["final"] == x).flatten(1).all(1) for name, run in runs.items() if name.startswith("apgd")}
    print("held against", {name: int(v.sum()) for name, v in held.items()}, "of", len(x))
    held = torch.stack(list(held.values())).any(0)
    group = lambda name: "apgd" if name.startswith("apgd") else "targeted" if name.endswith("_targeted") else "all"
    least = {g: torch.stack([v.amin(0) for name, v in near.items() if group(name) in (g, "all")]).amin(0) for g in ("apgd", "targeted", "all")}
    rows = torch.tensor([], dtype=torch.int64)

    def take(v, n):
        nonlocal rows
        best = v.index_fill(0, rows, -2).topk(n)
        assert best.values.min() > 0, best
        rows = torch.cat([rows, best.indices])

    take(least["apgd"], FEW - 1)
    take(least["apgd"].masked_fill(~held, -2), 1)
    take(least["targeted"], FEW)
    take(least["all"], ROWS - 2 * FEW)
    which = {"apgd": torch.arange(FEW), "targeted": torch.arange(FEW, 2 * FEW), "all": torch.arange(ROWS)}
    out = {"images": x[rows], "labels": y[rows]}
    for name, run in runs.items():
        assert all(torch.isfinite(v).all() for v in run.values()), name
        out[f"{name}.rows"] = which[group(name)]
        keep, axes = rows[which[group(name)]], {"x": 1, "g": 1, "loss": 1, "predicted": 1, "step_size": 1}
        for key, v in run.items():
            if key != "logits":
                v = v.index_select(axes.get(key, 0), keep)
                out[f"{name}.{key}"] = v.flatten(-3) if v.shape[-3:] == x.shape[1:] else v
        meta[name] |= {"nearest_kink": f"{near[name][:, keep].min():.1e}"}
        fooled = (run["predicted"][-1] if name.startswith("apgd") else model(run["final"]).argmax(1)) != y
        print(f"{name}: {len(keep)} rows, nearest kink {meta[name]['nearest_kink']}, last point wrong {int(fooled[keep].sum())} of {len(keep)} kept, "
              f"{int(fooled.sum())} of {len(y)} run, loss {out[name + '.loss'][0].mean():.3g} to {out[name + '.loss'][-1].mean():.3g}")
    return out, meta


class Prescribed(APGDAttack):
    """AutoAttack's loop with a loss that is read from a table: its schedule alone remains."""

    def dlr_loss(self, z, y):
        loss = self.table[self.calls] + 0 * z.sum(1)
        self.calls += 1
        return loss


def sequences(n):
    """Losses of n + 1 points (the start first) for 16 samples, f32."""
    t = torch.arange(n + 1, dtype=torch.float64)
    gen = torch.Generator().manual_seed(7)
    rand = lambda: torch.rand(n + 1, generator=gen, dtype=torch.float64)
    walk = torch.cumsum(rand() - 0.4, 0)
    late = torch.where(t < 60, 0.2 * torch.sin(2.1 * t), 0.05 * (t - 55))
    flat = torch.full_like(t, 0.5)
    stairs = torch.floor(t / 4) / 10
    period = lambda p: ((t % p) / p) - 0.01 * t / p  # falls once in p steps: p - 1 rises of p
    return torch.stack([
        0.1 * t,                                   # rises for ever
        -0.9 + 0.008 * t,                          # rises for ever, negative: a DLR that nears its bound
        2 - 0.01 * t,                              # falls for ever
        flat,                                      # the same bits for ever
        torch.zeros_like(t),                       # zero, as what the first check wraps to
        -flat,                                     # flat and negative
        1 + torch.where(t % 2 == 0, 0.3, -0.3),    # oscillates, best is the start
        -0.5 + torch.where(t % 2 == 0, -0.1, 0.1) * (1 + 0.01 * t),  # oscillates ever wider, negative
        1 - torch.exp(-t / 10),                    # saturates: ever smaller rises
        (1 - torch.exp(-t / 3)).float().double(),  # saturates until f32 rises no more
        stairs,                                    # rises every fourth step
        1 + period(4),                             # rises three times of four: on the threshold
        -1 + period(5),                            # four of five, negative
        3 * rand(),                                # noise
        -1 + 0.05 * walk,                          # a walk that drifts upwards, negative
        late,                                      # finds its way late
    ], 1).float()


def schedule():
    out = {"apgd_schedule.loss": sequences(max(LENGTHS))}
    table = out["apgd_schedule.loss"]
    samples = table.shape[1]
    for n in LENGTHS:
        attack = Prescribed(lambda x: x.flatten(1).repeat(1, 4), n_iter=n, norm="Linf", eps=0.5, loss="dlr", device="cpu")
        attack.table, attack.calls = table, 0
        x = torch.full((samples, 1, 1, 1), 0.5)
        attack.init_hyperparam(x)
        with watched(APGDAttack.attack_single_run, ("step_size", "loss_best")) as (steps, returns), patch("pyautoattack.autopgd_base.check_zero_gradients"):
            attack.attack_single_run(x, torch.zeros(samples, dtype=torch.int64))
        assert attack.calls == n + 1
        after = torch.stack([s["step_size"] for s in steps[2:]] + [returns[0]["step_size"]]).flatten(1)
        out[f"apgd_schedule.step_{n}"] = after
        halved = after[1:] < after[:-1]
        print(f"apgd_schedule {n}: some step halved after iteration {(halved.any(1).nonzero().flatten() + 2).tolist()}, "
              f"last step 1 / {(1 / after[-1]).int().tolist()}")
    return out


def losses():
    """Values and gradients of 32 rows of logits, in f64. DLR by AutoAttack's code; the margin has no library worth asking."""
    gen = torch.Generator().manual_seed(11)
    n = 32
    z = torch.randn(n, 10, generator=gen, dtype=torch.float64) * 3
    y = torch.randint(0, 10, (n,), generator=gen)
    order = z.argsort(1, descending=True)
    for row in range(0, n, 2):  # even rows: the label is on top
        y[row] = order[row, 0]
    for row, rank in ((1, 1), (3, 2), (5, 3), (7, 9)):
        y[row] = order[row, rank]
    # Near ties: first and second, second and third, third and fourth, all of the four.
    for row, gap in ((8, 1e-3), (9, 1e-5), (10, 1e-3), (11, 1e-5), (12, 1e-4), (13, 1e-4)):
        a, b = [order[row, {8: 0, 9: 0, 10: 1, 11: 1, 12: 2, 13: 2}[row] + i] for i in (0, 1)]
        z[row, b] = z[row, a] - gap
    for row in (14, 15):
        for i in range(1, 4):
            z[row, order[row, i]] = z[row, order[row, 0]] - 1e-3 * i
    z[16:18] -= 20   # all negative: a mask that multiplies by zero would win
    z[18:20] += 20
    z[20:22] *= 12   # softmax saturates, right and wrong
    z[22:24] *= 0.01
    z[24, y[24]] += 60
    z = z.float().double()
    other = torch.stack([order[i][order[i] != y[i]][i % 9] for i in range(n)])
    apgd = APGDAttack_targeted(None, eps=1.0)
    apgd.y_target = other

    def margin(z, y):
        return z.masked_fill(F.one_hot(y, 10).bool(), -torch.inf).amax(1) - z.gather(1, y[:, None])[:, 0]

    functions = {
        "ce": lambda z: F.cross_entropy(z, y, reduction="none"), "ce_target": lambda z: F.cross_entropy(z, other, reduction="none"),
        "margin": lambda z: margin(z, y), "dlr": lambda z: apgd.dlr_loss(z, y), "dlr_targeted": lambda z: apgd.dlr_loss_targeted(z, y),
    }
    out = {"losses.logits": z.float(), "losses.labels": y, "losses.targets": other}
    for name, f in functions.items():
        logits = z.clone().requires_grad_()
        value = f(logits)
        out[f"losses.{name}"] = value.detach()
        (out[f"losses.{name}_grad"],) = torch.autograd.grad(value.sum(), logits)
        assert torch.isfinite(out[f"losses.{name}_grad"]).all() and torch.isfinite(value).all()
    top = int((z.argmax(1) == y).sum())
    print(f"losses: label on top in {top} of {n} rows, dlr {out['losses.dlr'].min():.3g} to {out['losses.dlr'].max():.3g}, "
          f"largest gradient {out['losses.dlr_grad'].abs().max():.3g}")
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    sys.path.insert(0, str(a.weights))
    from make_digits_cnn import DigitsCnn

    with safe_open(a.weights / NETWORK, "pt") as f:
        meta = f.metadata()
    model = DigitsCnn(json.loads(meta["mean"])[0], json.loads(meta["std"])[0]).eval().requires_grad_(False)
    model.load_state_dict(load_file(a.weights / NETWORK))
    model64 = DigitsCnn(model.mean, model.std).eval().requires_grad_(False)
    model64.load_state_dict(load_file(a.weights / NETWORK))
    model64.double()

    digits = load_file(a.weights / "digits.safetensors")
    x, y = grid(digits["images"][:450]), digits["labels"][:450]
    with patch.object(F, "conv2d", plain_conv2d):
        right = (model(x).argmax(1) == y).nonzero().flatten()[:MANY]
        tensors, attacks = record(model, model64, x[right], y[right])
    attacks["apgd_schedule"] = {"library": AUTOATTACK, "rho": 0.75, "step_size": 1.0, "lengths": LENGTHS}
    attacks["losses"] = {"library": AUTOATTACK, "margin": f"torch {torch.__version__}", "ce": f"torch {torch.__version__}", "dtype": "float64"}
    tensors |= schedule() | losses()
    versions = {"python": platform.python_version()} | {m: version(m) for m in ("torch", "torchattacks", "foolbox", "pyautoattack", "safetensors")}
    meta = {name: json.dumps(m) for name, m in attacks.items()} | {"weights": NETWORK, "versions": json.dumps(versions)}
    path = a.out / "attacks.safetensors"
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path, metadata=meta)
    sort_header(path)
    print("written", path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
