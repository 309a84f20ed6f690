#!/usr/bin/env python3
"""Trains digits-cnn on the training rows of digits.safetensors.

    python weights/make_digits_cnn.py --digits weights/digits.safetensors --out weights/digits-cnn.safetensors
    python weights/make_digits_cnn.py --robust --digits weights/digits.safetensors --out weights/digits-cnn-robust.safetensors

--robust trains on adversarial images: untargeted PGD inside the eps 0.3 ball, eps growing over the first part (Madry et al.
2017). The held-out rows are looked at once, after training; what is written is the last epoch. Recipes were chosen with
--validate, which trains on three quarters of the training rows, measures on the others and writes nothing.
One thread and fixed seeds: the same versions on the same kind of processor give the same weights. Needs torch, safetensors.
"""
import argparse, json, time
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from make_digits import sort_header

EPS, STEP = 0.3, 0.075


class DigitsCnn(nn.Module):
    """Takes images [N, 1, 8, 8] in [0, 1], gives logits [N, 10]; the normalisation is inside."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.mean, self.std = mean, std
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.linear1 = nn.Linear(128, 48)
        self.linear2 = nn.Linear(48, 10)

    def forward(self, x):
        x = F.relu(self.conv1((x - self.mean) / self.std))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


def gradient(model, x, y):
    """Gradient of the summed cross-entropy with respect to the images: nothing is shared between samples."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    return g


def attack(model, x0, y, eps, step, steps, direction, gen=None):
    """direction +1 ascends on the label, -1 descends on the target; a generator asks for a random start."""
    lo, hi = (x0 - eps).clamp(min=0), (x0 + eps).clamp(max=1)
    x = x0
    if gen is not None:
        x = torch.minimum(torch.maximum(x + (2 * torch.rand(x.shape, generator=gen) - 1) * eps, lo), hi)
    for _ in range(steps):
        x = x + direction * step * gradient(model, x, y).sign()
        x = torch.minimum(torch.maximum(x, lo), hi)
    return x


def shift(x, gen):
    """Moves each image by -1, 0 or 1 pixels up or down and left or right, zeros coming in."""
    n = len(x)
    x = F.pad(x, (1, 1, 1, 1))[:, 0]
    rows = torch.randint(0, 3, (n, 1), generator=gen) + torch.arange(8)
    cols = torch.randint(0, 3, (n, 1), generator=gen) + torch.arange(8)
    return x[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]][:, None]


def right(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


def measure(model, x, y):
    model.eval()
    n, clean = len(x), right(model, x, y)
    gen = torch.Generator().manual_seed(7)
    targets = (y + torch.randint(1, 10, (n,), generator=gen)) % 10
    figures = {"samples": n, "clean_accuracy": clean.sum().item() / n}
    hit = right(model, attack(model, x, targets, EPS, STEP, 10, -1), targets) & clean
    figures["targeted_success 10x0.075"] = hit.sum().item() / clean.sum().item()
    for steps, step, start in ((10, 0.075, False), (40, 0.01875, False), (40, 0.075, False), (40, 0.01875, True)):
        still = right(model, attack(model, x, y, EPS, step, steps, 1, gen if start else None), y) & clean
        figures[f"robust_accuracy {steps}x{step}{' random start' if start else ''}"] = still.sum().item() / n
    return figures


def train(x, y, model, a, gen):
    optimiser = torch.optim.AdamW(model.parameters(), lr=a.lr, weight_decay=a.weight_decay)
    per_epoch = -(-len(x) // a.batch)
    total, warm = a.epochs * per_epoch, a.epochs * per_epoch * 0.1
    step, start = 0, time.time()
    for epoch in range(a.epochs):
        order = torch.randperm(len(x), generator=gen)
        seen = 0.0
        for i in order.split(a.batch):
            images, labels = x[i], y[i]
            if torch.rand((), generator=gen) < a.shift:
                images = shift(images, gen)
            loss = 0.0
            if a.robust:
                # Straight at 0.3 the network collapses to one class; growing eps lets it learn digits first.
                eps = EPS * min(1.0, step / (total * a.ramp))
                if a.clean:
                    loss = a.clean * F.cross_entropy(model(images), labels)
                images = attack(model, images, labels, eps, 2.5 * eps / a.steps, a.steps, 1, gen)
            z = model(images)
            loss = loss + F.cross_entropy(z, labels, label_smoothing=0.0 if a.robust else 0.05)
            for g in optimiser.param_groups:
                g["lr"] = a.lr * min((step + 1) / warm, (total - step) / (total - warm))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1
            seen += loss.item() / per_epoch
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1} loss {seen:.4f} {time.time() - start:.0f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--digits", required=True)
    p.add_argument("--out")
    p.add_argument("--robust", action="store_true")
    p.add_argument("--validate", action="store_true")
    p.add_argument("--epochs", type=int)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float)
    p.add_argument("--weight-decay", type=float, default=0.01)
    p.add_argument("--shift", type=float, help="share of the batches that are shifted")
    p.add_argument("--steps", type=int, default=7, help="attack steps in training")
    p.add_argument("--ramp", type=float, default=0.5, help="part of the training over which eps grows")
    p.add_argument("--clean", type=float, default=0.0, help="weight of the clean loss in robust training")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    if not a.out and not a.validate:
        p.error("--out is needed")
    a.epochs = a.epochs or (120 if a.robust else 60)
    a.lr = a.lr or (4e-3 if a.robust else 3e-3)
    a.shift = (0.0 if a.robust else 0.5) if a.shift is None else a.shift
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(a.seed)
    gen = torch.Generator().manual_seed(a.seed)

    with safe_open(a.digits, "pt") as f:
        held, classes = int(f.metadata()["held_out"]), f.metadata()["classes"]
        x, y = f.get_tensor("images").float() / 255, f.get_tensor("labels")
    test, xtr, ytr = (x[:held], y[:held]), x[held:], y[held:]
    mean, std = round(xtr.double().mean().item(), 4), round(xtr.double().std().item(), 4)
    if a.validate:
        keep = len(xtr) * 3 // 4
        test, xtr, ytr = (xtr[keep:], ytr[keep:]), xtr[:keep], ytr[:keep]

    model = DigitsCnn(mean, std)
    train(xtr, ytr, model, a, gen)
    if not a.validate:
        meta = {"arch": "digits-cnn", "classes": classes, "mean": json.dumps([mean]), "std": json.dumps([std]), "input": "1,8,8", "eps": "0.3", "step_size": "0.075"}
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, a.out, metadata=meta)
        sort_header(a.out)
        print("written", a.out)
    for name, value in measure(model, *test).items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
