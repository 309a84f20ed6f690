#!/usr/bin/env python3
"""Trains ResNet-20 (He et al. 2015, section 4.2, shortcut option A) on CIFAR-10 and writes resnet20-cifar10.safetensors.

    python weights/make_resnet20_cifar10.py --data DIR [--epochs 40] [--out weights/resnet20-cifar10.safetensors]

DIR holds CIFAR-10's binary files (data_batch_1..5.bin, test_batch.bin). Needs torch, numpy, safetensors.
Stochastic gradient descent with Nesterov momentum, one triangular learning-rate cycle, crops and flips, plain cross-entropy,
an exponential moving average of the weights in the last part. bfloat16 autocast only speeds training up: weights are f32.
A checkpoint is written after each epoch; --resume goes on from it. The test set is looked at, never selected on: what is
written is the last epoch.
"""
import argparse, copy, json, os, time
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.pad = (cout - cin) // 2
        self.stride = stride

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.pad:  # option A: every second pixel, the new channels zero, half before and half after
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """Takes normalised images [N, 3, 32, 32], gives logits [N, 10]."""

    def __init__(self, blocks=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, cin = [], 16
        for i, c in enumerate((16, 32, 64)):
            stage = [Block(cin if b == 0 else c, c, 2 if b == 0 and i > 0 else 1) for b in range(blocks)]
            stages.append(nn.Sequential(*stage))
            cin = c
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load(files):
    raw = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in files])
    return torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(raw[:, 0].astype(np.int64))


def normalise(x):
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (x.float() / 255 - mean) / std


def augment(x, gen):
    """Random crops out of a reflected border of 4 and random mirror images, x being [N, 3, 40, 40] already padded."""
    n = len(x)
    dy, dx = (torch.randint(0, 9, (n,), generator=gen) for _ in range(2))
    rows = dy[:, None] + torch.arange(32)
    cols = dx[:, None] + torch.arange(32)
    flip = torch.rand(n, generator=gen) < 0.5
    cols[flip] = cols[flip].flip(1)
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model, x, y):
    model.eval()
    hits = sum((model(x[i : i + 500].contiguous(memory_format=torch.channels_last)).argmax(1) == y[i : i + 500]).sum().item() for i in range(0, len(x), 500))
    model.train()
    return hits / len(x)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True)
    p.add_argument("--out", default="weights/resnet20-cifar10.safetensors")
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=0.2)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--checkpoint", default="resnet20-cifar10.pt", help="written after each epoch")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--compile", action="store_true", help="torch.compile the training step")
    p.add_argument("--bench", type=int, default=0, help="time this many steps and stop")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    gen = torch.Generator().manual_seed(a.seed)
    xtr, ytr = load([f"{a.data}/data_batch_{i}.bin" for i in range(1, 6)])
    xte, yte = load([f"{a.data}/test_batch.bin"])
    xtr = F.pad(normalise(xtr), (4, 4, 4, 4), mode="reflect")
    xte = normalise(xte)

    model = ResNet20().to(memory_format=torch.channels_last)
    ema = copy.deepcopy(model)
    decay, no_decay = [], []
    for name, w in model.named_parameters():
        (decay if w.ndim > 1 else no_decay).append(w)
    opt = torch.optim.SGD([{"params": decay, "weight_decay": 5e-4}, {"params": no_decay, "weight_decay": 0.0}], lr=a.lr, momentum=0.9, nesterov=True)
    per_epoch = len(xtr) // a.batch
    total, warm = a.epochs * per_epoch, a.epochs * per_epoch * 0.15
    step, first = 0, 0
    if a.resume and os.path.exists(a.checkpoint):
        s = torch.load(a.checkpoint)
        model.load_state_dict(s["model"]); ema.load_state_dict(s["ema"]); opt.load_state_dict(s["opt"])
        gen.set_state(s["gen"]); step, first = s["step"], s["epoch"]

    def forward_loss(x, y):
        with torch.autocast("cpu", torch.bfloat16):
            z = model(x)
        return F.cross_entropy(z.float(), y)

    run = torch.compile(forward_loss) if a.compile else forward_loss
    start = time.time()
    for epoch in range(first, a.epochs):
        order = torch.randperm(len(xtr), generator=gen)
        seen = 0.0
        for b in range(per_epoch):
            if a.bench and b == 20: start = time.time()
            if a.bench and b == 20 + a.bench: return print("ms a step", (time.time() - start) / a.bench * 1e3)
            i = order[b * a.batch : (b + 1) * a.batch]
            x = augment(xtr[i], gen).contiguous(memory_format=torch.channels_last)
            rate = a.lr * min(step / warm, (total - step) / (total - warm))
            for g in opt.param_groups: g["lr"] = rate
            loss = run(x, ytr[i])
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            step += 1
            seen += loss.item()
            if step % 5 == 0:
                keep = min(0.995, step / (step + 50))
                with torch.no_grad():
                    for e, w in zip(ema.state_dict().values(), model.state_dict().values()):
                        e.lerp_(w, 1 - keep) if e.is_floating_point() else e.copy_(w)
        print(f"epoch {epoch + 1} loss {seen / per_epoch:.4f} test {accuracy(model, xte, yte):.4f} ema {accuracy(ema, xte, yte):.4f} {time.time() - start:.0f} s", flush=True)
        torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "opt": opt.state_dict(), "gen": gen.get_state(), "step": step, "epoch": epoch + 1}, a.checkpoint + ".new")
        os.replace(a.checkpoint + ".new", a.checkpoint)

    from make_digits import sort_header
    from safetensors.torch import save_file
    tensors = {k: v.contiguous() for k, v in ema.state_dict().items() if not k.endswith("num_batches_tracked")}
    meta = {"arch": "resnet20", "classes": json.dumps(CLASSES), "mean": json.dumps(MEAN), "std": json.dumps(STD), "input": "3,32,32", "eps": "8/255", "step_size": "2/255"}
    save_file(tensors, a.out, metadata=meta)
    sort_header(a.out)
    print("written", a.out, "test accuracy", accuracy(ema, xte, yte))


if __name__ == "__main__":
    main()
