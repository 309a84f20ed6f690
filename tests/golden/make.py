#!/usr/bin/env python3
"""Writes the goldens: logits, loss and input gradient of the engine's networks, from PyTorch in float64.

    python tests/golden/make.py --weights weights --digits weights/digits.safetensors --out tests/golden [--resnet20 FILE]
    python tests/golden/make.py --seeded [NAME ...] --out tests/golden
    python tests/golden/make.py --training [NAME ...] --out tests/golden

--weights is the folder with the making scripts (for the model classes) and the digits checkpoints. --resnet20 is a trained
ResNet-20; without it resnet20-cifar10.safetensors is left as it is. --seeded makes seeded/NAME.safetensors for the networks of
seeded.py (all of them where no name is given) and nothing else; --training makes training/NAME.safetensors, the same networks in
training mode (those of TRAINING where no name is given). What the files hold is in README.md beside this script.

A ReLU or max-pool whose input lies within rounding of a kink may go one way in f32 and the other in f64, and then the
gradients differ for no fault of anybody. So out of many candidate images those are taken that stay farthest from all kinks.
"""
import argparse, copy, json, math, sys, time
from pathlib import Path
from unittest.mock import patch
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
import seeded

sys.path.append(str(Path(__file__).resolve().parents[2] / "weights"))
from make_digits import sort_header

N = 16
SEEDED_N, CANDIDATES = {1: 16, 3: 4}, 400
TRAINING_N, TRAINING = 8, {"resnet20": 150, "resnet20-b": 150, "resnet18": 60}  # candidate batches
torch_conv2d = F.conv2d
DIGITS_STEP, CIFAR_STEP = 0.075, 2 / 255


class Normalised(torch.nn.Module):
    """The normalisation is part of the model: gradients are with respect to pixels."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def plain_conv2d(x, weight, bias=None, stride=1, padding=0, *_):
    """Tap by tap, so that every pixel is summed in the same order. A matrix product may sum the last columns in another one,
    and a maximum over pixels that are equal by symmetry (the background of a digit) would then go anywhere."""
    stride, padding = (v if isinstance(v, int) else v[0] for v in (stride, padding))
    k, c, r, s = weight.shape
    x = F.pad(x, (padding,) * 4)
    h, w = ((n - m) // stride + 1 for n, m in ((x.shape[2], r), (x.shape[3], s)))
    y = torch.zeros(len(x), k, h, w, dtype=x.dtype)
    for j in range(c):
        for dy in range(r):
            for dx in range(s):
                tap = x[:, j : j + 1, dy : dy + stride * (h - 1) + 1 : stride, dx : dx + stride * (w - 1) + 1 : stride]
                y = y + tap * weight[:, j, dy, dx].view(1, -1, 1, 1)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


@torch.no_grad()
def clearance(model, x):
    """Per sample, the distance of the nearest ReLU input from zero, or of a window's maximum from its second. Exact zeros and
    exact ties are symmetry, not chance: f32 has them too."""
    near = torch.full((len(x),), math.inf, dtype=torch.float64)
    relu, pool = F.relu, F.max_pool2d

    def note(gap):
        nonlocal near
        gap = torch.where(gap == 0, torch.full_like(gap, math.inf), gap)
        near = torch.minimum(near, gap.flatten(1).amin(1))

    def spy_relu(v, *rest, **named):
        note(v.abs())
        return relu(v, *rest, **named)

    def spy_pool(v, size, *rest, **named):
        top = v.unfold(2, size, size).unfold(3, size, size).flatten(4).topk(2, dim=4).values
        note(top[..., 0] - top[..., 1])
        return pool(v, size, *rest, **named)

    with patch.object(F, "relu", spy_relu), patch.object(F, "max_pool2d", spy_pool):
        model(x)
    return near


def choose(model, x, n=N):
    """Rows of the n candidates that are farthest from kinks, in their old order."""
    near = torch.cat([clearance(model, part.double()) for part in x.split(64)])
    rows = near.topk(n).indices.sort().values
    return rows, near[rows].min().item()


def write(path, model, images, classes, step, clear):
    x = images.double().requires_grad_()
    logits = model(x)
    loss = F.cross_entropy(logits, classes, reduction="none")
    (g,) = torch.autograd.grad(loss.sum(), x)
    for conv in (torch_conv2d, plain_conv2d):
        with torch.no_grad(), patch.object(F, "conv2d", conv):
            assert (model(x) - logits).abs().max() < 1e-9, "two ways to compute a convolution disagree"
    tensors = {"images": images, "classes": classes, "logits": logits, "loss": loss, "input_gradient": g, "step": torch.tensor([step])}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
    top = g.abs().flatten(1).amax(1)
    print(f"{path.name}: |logit| <= {logits.abs().max():.2f}, loss {loss.min():.3g} to {loss.max():.3g}, "
          f"largest gradient per sample {top.min():.3g} to {top.max():.3g}, nearest kink {clear:.2g}, {path.stat().st_size} bytes")


def smooth_images(n, gen, size=32, channels=3):
    """Blobs of three sizes and a little noise, u8: no photographs, but spread over [0, 255] as they are."""
    x = torch.zeros(n, channels, size, size, dtype=torch.float64)
    for side, weight in ((3, 1.0), (6, 0.6), (12, 0.35), (size, 0.1)):
        blobs = torch.randn(n, channels, side, side, generator=gen, dtype=torch.float64)
        x += weight * F.interpolate(blobs, (size, size), mode="bilinear", align_corners=True)
    return (127.5 + 60 * x).round().clamp(0, 255).to(torch.uint8)


def grid(bytes_):
    return bytes_.float() / 255  # the f32 nearest to k/255


def random_linear(m, gen, gain=2.0):
    fan_in = m.weight[0].numel()
    m.weight.copy_(torch.randn(m.weight.shape, generator=gen) * math.sqrt(gain / fan_in))
    if m.bias is not None:
        m.bias.copy_(torch.randn(m.bias.shape, generator=gen) * 0.2)


@torch.no_grad()
def randomise(net, gen):
    """Kaiming weights; batch norm with statistics and affine parameters far from the defaults, some scales negative."""
    for name, m in net.named_modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            random_linear(m, gen)
        elif isinstance(m, torch.nn.BatchNorm2d):
            c = m.num_features
            rand = lambda lo, hi: lo + (hi - lo) * torch.rand(c, generator=gen)
            m.running_mean.copy_(torch.randn(c, generator=gen) * 0.3)
            m.running_var.copy_(rand(0.5, 2.0))
            # The second norm of a block is weaker: nine residual sums would otherwise blow up.
            m.weight.copy_(rand(0.5, 1.5) * torch.where(torch.rand(c, generator=gen) < 0.1, -1.0, 1.0) * (0.5 if name.endswith("bn2") else 1.0))
            m.bias.copy_(torch.randn(c, generator=gen) * 0.2)


@torch.no_grad()
def tame(model, last, x):
    """Scales the last layer by a power of two, so that logits spread by 2 to 4."""
    factor = 2.0 ** round(math.log2(3 / model(x.double()).std().item()))
    last.weight.mul_(factor)
    last.bias.mul_(factor)


def tensors_of(net):
    """As f32: what the f64 module holds is f32 values cast up."""
    return {k: v.float().contiguous() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}


def alternate(labels, k=10):
    """Even samples: the label; odd ones: another class, as a targeted attack asks for."""
    i = torch.arange(len(labels))
    return torch.where(i % 2 == 0, labels, (labels + 1 + i // 2 % (k - 1)) % k)


def load(net, path):
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    missing = net.load_state_dict(load_file(path), strict=False)
    assert not missing.unexpected_keys and all(k.endswith("num_batches_tracked") for k in missing.missing_keys), missing
    return Normalised(net.double().eval(), json.loads(meta["mean"]), json.loads(meta["std"])).double()


@torch.no_grad()
def kinks(model, x):
    """What enters every ReLU and every max-pool, in order, with how far it is from the kink."""
    seen = []
    relu, pool = F.relu, F.max_pool2d

    def spy_relu(v, *rest, **named):
        seen.append((v, v.abs()))
        return relu(v, *rest, **named)

    def spy_pool(v, size, *rest, **named):
        top = v.unfold(2, size, size).unfold(3, size, size).flatten(4).topk(2, dim=4).values
        seen.append((v, (top[..., 0] - top[..., 1]) / 2))  # both may be off
        return pool(v, size, *rest, **named)

    with patch.object(F, "relu", spy_relu), patch.object(F, "max_pool2d", spy_pool):
        model(x)
    return seen


def margin(model, single, x):
    """Per sample, how near it comes to a kink, in units of what rounding does there: the distance in f64 over the largest error
    of PyTorch's own f32 in that layer. Above 1, f32 takes the branches of f64. In a deep network errors grow with the layers and
    so do the values: no one distance suits all of them."""
    least = torch.full((len(x),), math.inf, dtype=torch.float64)
    for (v, gap), (w, _) in zip(kinks(model, x.double()), kinks(single, x.float())):
        error = (w - v).abs().flatten(1).amax(1)
        gap = torch.where(gap == 0, torch.full_like(gap, math.inf), gap).flatten(1).amin(1)
        least = torch.minimum(least, gap / error)
    return least


def seeded_case(name, out):
    start = time.time()
    model, (channels, size, _), checksum = seeded.seeded(name)
    single = copy.deepcopy(model).float()
    gen = torch.Generator().manual_seed(size + 1)
    n = SEEDED_N[channels]
    pictures = grid(smooth_images(CANDIDATES, gen, size, channels))
    # Where there is max-pool, windows in flat regions hold exact ties: see plain_conv2d.
    with patch.object(F, "conv2d", plain_conv2d if channels == 1 else torch_conv2d):
        near = torch.cat([margin(model, single, part) for part in pictures.split(8)])
    rows = near.topk(n).indices.sort().values
    images, classes = pictures[rows], torch.randint(0, 10, (n,), generator=gen)

    def evaluate(net, dtype):
        x = images.to(dtype).requires_grad_()
        logits = net(x)
        loss = F.cross_entropy(logits, classes, reduction="none")
        return logits.detach(), loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    with patch.object(F, "conv2d", plain_conv2d if channels == 1 else torch_conv2d):
        logits, loss, g = evaluate(model, torch.float64)
    z32, _, g32 = evaluate(single, torch.float32)
    off = (g32 - g).flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)
    meta = {
        "arch": name, "weights": checksum, "margin": f"{near[rows].min():.2f}",
        "f32_logits": f"{(z32 - logits).abs().max():.1e}", "f32_gradient": f"{off.max():.1e}",
    }
    tensors = {
        "images": (images * 255).round().to(torch.uint8), "classes": classes.to(torch.uint8),
        "logits": logits, "loss": loss, "input_gradient": g.float(),
    }
    path = out / "seeded" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=meta)
    sort_header(path)
    print(f"{path.name}: {meta}, |logit| <= {logits.abs().max():.2f}, loss {loss.min():.3g} to {loss.max():.3g}, "
          f"{path.stat().st_size} bytes, {time.time() - start:.0f} s", flush=True)


def training_case(name, out):
    """As seeded_case, in training mode: all images are one batch, so whole batches are candidates."""
    start = time.time()
    model, (channels, size, _), checksum = seeded.seeded(name)
    model.train()
    single = copy.deepcopy(model).float()
    gen = torch.Generator().manual_seed(size + 2)
    pictures = grid(smooth_images(TRAINING_N * TRAINING[name], gen, size, channels))
    near = torch.stack([margin(model, single, batch).min() for batch in pictures.split(TRAINING_N)])
    images = pictures.split(TRAINING_N)[near.argmax()]
    classes = torch.randint(0, 10, (TRAINING_N,), generator=gen)

    def evaluate(net, dtype):
        x = images.to(dtype).requires_grad_()
        logits = net(x)
        loss = F.cross_entropy(logits, classes, reduction="none")
        return logits.detach(), loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    logits, loss, g = evaluate(model, torch.float64)
    z32, _, g32 = evaluate(single, torch.float32)
    off = (g32 - g).flatten(1)
    relative = off.norm(dim=1) / g.flatten(1).norm(dim=1)
    meta = {"arch": name, "weights": checksum, "margin": f"{near.max():.2f}", "f32_logits": f"{(z32 - logits).abs().max():.1e}",
            "f32_gradient": f"{relative.max():.1e}"}
    tensors = {
        "images": (images * 255).round().to(torch.uint8), "classes": classes.to(torch.uint8), "logits": logits, "loss": loss,
        "input_gradient": g.float(), "f32_largest": off.abs().amax(1).float(),
    }
    path = out / "training" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=meta)
    sort_header(path)
    print(f"{path.name}: {meta}, f32 off by {relative.tolist()}, |logit| <= {logits.abs().max():.2f}, "
          f"loss {loss.min():.3g} to {loss.max():.3g}, {path.stat().st_size} bytes, {time.time() - start:.0f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=Path)
    p.add_argument("--digits", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--resnet20", type=Path)
    p.add_argument("--seeded", nargs="*", choices=list(seeded.networks()))
    p.add_argument("--training", nargs="*", choices=list(TRAINING))
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if a.seeded is not None:
        for name in a.seeded or seeded.networks():
            seeded_case(name, a.out)
        return
    if a.training is not None:
        for name in a.training or TRAINING:
            training_case(name, a.out)
        return
    if not a.weights or not a.digits:
        p.error("--weights and --digits, --seeded or --training")
    sys.path.insert(0, str(a.weights))
    from make_digits_cnn import DigitsCnn
    from make_resnet20_cifar10 import CLASSES, MEAN, STD, ResNet20

    with safe_open(a.digits, "pt") as f:
        held = int(f.metadata()["held_out"])
        digits, labels = f.get_tensor("images")[:held], f.get_tensor("labels")[:held]
    digits = grid(digits)

    def digits_case(name, model):
        with patch.object(F, "conv2d", plain_conv2d):
            rows, clear = choose(model, digits)
            write(a.out / f"{name}.safetensors", model, digits[rows], alternate(labels[rows]), DIGITS_STEP, clear)

    for name in ("digits-cnn", "digits-cnn-robust"):
        digits_case(name, load(DigitsCnn(), a.weights / f"{name}.safetensors"))

    gen = torch.Generator().manual_seed(20)
    net = DigitsCnn()
    randomise(net, gen)
    model = Normalised(net.double().eval(), [0.31], [0.37]).double()
    tame(model, net.linear2, digits)
    meta = {"arch": "digits-cnn", "input": "1,8,8", "classes": json.dumps([str(d) for d in range(10)]), "mean": "[0.31]", "std": "[0.37]"}
    path = a.out / "digits-cnn-random.weights.safetensors"
    save_file(tensors_of(net), path, metadata=meta)
    sort_header(path)
    digits_case("digits-cnn-random", model)

    gen = torch.Generator().manual_seed(32)
    pictures = grid(smooth_images(384, gen))
    classes = torch.randint(0, 10, (N,), generator=gen)
    net = ResNet20()
    randomise(net, gen)
    model = Normalised(net.double().eval(), MEAN, STD).double()
    tame(model, net.linear, pictures[:64])
    meta = {"arch": "resnet20", "input": "3,32,32", "classes": json.dumps(CLASSES), "mean": json.dumps(MEAN), "std": json.dumps(STD)}
    path = a.out / "resnet20-random.weights.safetensors"
    save_file(tensors_of(net), path, metadata=meta)
    sort_header(path)
    rows, clear = choose(model, pictures)
    write(a.out / "resnet20-random.safetensors", model, pictures[rows], classes, CIFAR_STEP, clear)

    if a.resnet20:
        model = load(ResNet20(), a.resnet20)
        rows, clear = choose(model, pictures)
        write(a.out / "resnet20-cifar10.safetensors", model, pictures[rows], classes, CIFAR_STEP, clear)


if __name__ == "__main__":
    main()
