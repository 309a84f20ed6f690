#!/usr/bin/env python3
"""Checkpoints of the common families, in their own names, through `signstep convert` and the engine, beside PyTorch in f64.

    python tests/oracle/families.py [NAME ...] [--quick] [--program target/release/signstep] [--gradient target/release/examples/input_gradient]

Every family is built here as a module with the names that its layout has, gets random weights (batch norm with statistics and gains
far from the defaults), and is saved by PyTorch as people save it: alone, under a key, with prefixes, with a normalisation as
tensors, with what training leaves behind. `convert` must recognise it, keep every tensor to the bit, and the engine's logits and input
gradients must be those of PyTorch in f64:

    logits      1e-5 + 1e-4 |z|
    gradient    of each image, relative L2: 1e-5
    signs       99.9 % over pixels above 1e-6 of the image's largest

A ReLU whose input lies within rounding of zero may go one way in f32 and the other in f64, and no engine can help it. Among millions
of inputs there always is one. So each bias is moved a little, once, until none of its channel's values on the images in question
is near zero; the weights stay as random as they were. A channel in which a max-pool finds two values that are nearly equal gets other
weights.

What is damaged must be refused by the tensor's name. --quick leaves the large ones out. Needs torch, numpy, safetensors.
"""
import argparse, copy, json, math, subprocess, sys, tempfile, time
from pathlib import Path
from unittest.mock import patch
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ABSOLUTE, RELATIVE, GRADIENT, SIGNS = 1e-5, 1e-4, 1e-5, 0.999
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def c3(i, o, stride=1):
    return nn.Conv2d(i, o, 3, stride, 1, bias=False)


def c1(i, o, stride=1):
    return nn.Conv2d(i, o, 1, stride, bias=False)


class Post(nn.Module):
    """Batch norm behind each convolution; two of them, or three of which the middle one strides."""

    def __init__(self, i, inner, o, stride, bottleneck, shortcut):
        super().__init__()
        parts = [c1(i, inner), c3(inner, inner, stride), c1(inner, o)] if bottleneck else [c3(i, inner, stride), c3(inner, o)]
        for j, conv in enumerate(parts):
            setattr(self, f"conv{j + 1}", conv)
            setattr(self, f"bn{j + 1}", nn.BatchNorm2d(conv.out_channels))
        self.parts, self.way, self.added = len(parts), shortcut, o - i
        if shortcut and (stride != 1 or i != o):
            setattr(self, shortcut, nn.Sequential(c1(i, o, stride), nn.BatchNorm2d(o)))

    def forward(self, x):
        y = x
        for j in range(1, self.parts + 1):
            y = getattr(self, f"bn{j}")(getattr(self, f"conv{j}")(y))
            y = F.relu(y) if j < self.parts else y
        if self.way and hasattr(self, self.way):
            x = getattr(self, self.way)(x)
        elif self.added:  # every second pixel, new channels of zeros before and after the old ones
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(y + x)


class Pre(nn.Module):
    """Batch norm and ReLU before each convolution; what is projected has been through the first of them."""

    def __init__(self, i, o, stride, wide):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), c3(i, o, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), c3(o, o)
        self.grows = stride != 1 or i != o
        if self.grows and wide:
            self.convShortcut = c1(i, o, stride)
        elif self.grows:
            self.shortcut = nn.Sequential(c1(i, o, stride))
        self.wide = wide

    def forward(self, x):
        y = F.relu(self.bn1(x))
        if self.grows:
            x = (self.convShortcut if self.wide else self.shortcut)(y)
        return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class ResNet(nn.Module):
    def __init__(self, blocks, widths, shortcut="shortcut", last="linear", bottleneck=False, large=False, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False) if large else c3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        i = widths[0]
        for s, (n, w) in enumerate(zip(blocks, widths)):
            o = 4 * w if bottleneck else w
            stage = [Post(i if b == 0 else o, w, o, 2 if s and not b else 1, bottleneck, shortcut) for b in range(n)]
            setattr(self, f"layer{s + 1}", nn.Sequential(*stage))
            i = o
        setattr(self, last, nn.Linear(i, classes))
        self.stages, self.large, self.last = len(blocks), large, last

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.large else x
        for s in range(self.stages):
            x = getattr(self, f"layer{s + 1}")(x)
        return getattr(self, self.last)(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActResNet(nn.Module):
    def __init__(self, blocks=(2, 2, 2, 2), bn=True, classes=10):
        super().__init__()
        self.conv1, i = c3(3, 64), 64
        for s, n in enumerate(blocks):
            o = 64 * 2**s
            stage = [Pre(i if b == 0 else o, o, 2 if s and not b else 1, False) for b in range(n)]
            setattr(self, f"layer{s + 1}", nn.Sequential(*stage))
            i = o
        if bn:
            self.bn = nn.BatchNorm2d(i)
        self.linear = nn.Linear(i, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = F.relu(self.bn(x)) if hasattr(self, "bn") else x
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class Stage(nn.Module):
    def __init__(self, n, i, o, stride):
        super().__init__()
        self.layer = nn.Sequential(*[Pre(i if b == 0 else o, o, stride if b == 0 else 1, True) for b in range(n)])

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, k, classes=10, sub_block1=False):
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * k, 32 * k, 64 * k]
        self.conv1 = c3(3, 16)
        self.block1 = Stage(n, w[0], w[1], 1)
        if sub_block1:
            self.sub_block1 = Stage(n, w[0], w[1], 1)
        self.block2, self.block3 = Stage(n, w[1], w[2], 2), Stage(n, w[2], w[3], 2)
        self.bn1, self.fc = nn.BatchNorm2d(w[3]), nn.Linear(w[3], classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class Rectifier(nn.Module):
    """nn.ReLU calls F.relu as it was when torch was imported; this one as it is."""

    def forward(self, x):
        return F.relu(x)


class Halve(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 2)


class VGG(nn.Module):
    """head: one layer; three with dropout before the first ("early") or behind it ("late")."""

    def __init__(self, plan, bn=True, head="one", hidden=512, inputs=512, classes=10):
        super().__init__()
        layers, i = [], 3
        for n, o in zip(plan, (64, 128, 256, 512, 512)):
            for _ in range(n):
                layers += [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] if bn else []), Rectifier()]
                i = o
            layers.append(Halve())
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, 1))
        first, second, third = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)
        self.classifier = {
            "one": nn.Linear(inputs, classes),
            "early": nn.Sequential(nn.Dropout(), first, Rectifier(), nn.Dropout(), second, Rectifier(), third),
            "late": nn.Sequential(first, Rectifier(), nn.Dropout(), second, Rectifier(), nn.Dropout(), third),
        }[head]

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def wong(colours=1):
    side = 7 if colours == 1 else 8
    return nn.Sequential(nn.Conv2d(colours, 16, 4, stride=2, padding=1), Rectifier(), nn.Conv2d(16, 32, 4, stride=2, padding=1), Rectifier(),
                         nn.Flatten(), nn.Linear(32 * side * side, 100), Rectifier(), nn.Linear(100, 10))


def madry():
    return nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), Rectifier(), Halve(), nn.Conv2d(32, 64, 5, padding=2), Rectifier(), Halve(),
                         nn.Flatten(), nn.Linear(3136, 1024), Rectifier(), nn.Linear(1024, 10))


class Madry(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.fc1, self.fc2 = nn.Linear(3136, 1024), nn.Linear(1024, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Trades(nn.Module):
    def __init__(self):
        super().__init__()
        named = lambda **parts: nn.Sequential(__import__("collections").OrderedDict(parts))
        self.feature_extractor = named(
            conv1=nn.Conv2d(1, 32, 3), relu1=Rectifier(), conv2=nn.Conv2d(32, 32, 3), relu2=Rectifier(), maxpool1=Halve(),
            conv3=nn.Conv2d(32, 64, 3), relu3=Rectifier(), conv4=nn.Conv2d(64, 64, 3), relu4=Rectifier(), maxpool2=Halve())
        self.classifier = named(fc1=nn.Linear(1024, 200), relu1=Rectifier(), drop=nn.Dropout(), fc2=nn.Linear(200, 200),
                                relu2=Rectifier(), fc3=nn.Linear(200, 10))

    def forward(self, x):
        return self.classifier(self.feature_extractor(x).flatten(1))


# How people save: what is saved of a state dict, and the mean and deviation that are part of it.
def alone(state):
    return state


def parallel(key):
    return lambda state: {key: {"module." + k: v for k, v in state.items()}, "epoch": 76}


def tensors(numbers, *shape):
    return [torch.tensor(v).view(*shape) for v in numbers]


def sequential(numbers, first, second, names=("mean", "std")):
    """A module that normalises, then the network: normalize.mean, normalize.std, model.*"""
    def saved(state):
        own = {f"{first}{name}": v for name, v in zip(names, tensors(numbers, 1, 3, 1, 1))}
        return own | {second + k: v for k, v in state.items()}
    saved.numbers = numbers
    return saved


def attacked(numbers):
    """A network, what normalises before it, and both a second time within an attacker."""
    def saved(state):
        own = dict(zip(("new_mean", "new_std"), tensors(numbers, 3, 1, 1)))
        both = {"normalizer." + k: v for k, v in own.items()} | {"attacker.normalize." + k: v for k, v in own.items()}
        both |= {"model." + k: v for k, v in state.items()} | {"attacker.model." + k: v for k, v in state.items()}
        return {"model": {"module." + k: v for k, v in both.items()}, "epoch": 1}
    saved.numbers = numbers
    return saved


V11, V13, V16, V19 = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
SMALL, FOUR = (16, 32, 64), (64, 128, 256, 512)
# name -> (arch, shape of an image, images, quick?, network, how it is saved, flags of convert)
CASES = {
    "resnet18": ("resnet18", 32, 2, True, lambda: ResNet((2, 2, 2, 2), FOUR), parallel("net"), ["--mean", "0.4914,0.4822,0.4465", "--std", "0.2471,0.2435,0.2616"]),
    "resnet18, 100 classes": ("resnet18", 32, 1, True, lambda: ResNet((2, 2, 2, 2), FOUR, classes=100), alone, []),
    "resnet34": ("resnet34", 32, 2, False, lambda: ResNet((3, 4, 6, 3), FOUR), parallel("state_dict"), []),
    "resnet50": ("resnet50", 32, 1, False, lambda: ResNet((3, 4, 6, 3), FOUR, bottleneck=True), alone, []),
    "resnet20": ("resnet20", 32, 2, True, lambda: ResNet((3, 3, 3), SMALL, shortcut=None), parallel("state_dict"), []),
    "resnet20, fc": ("resnet20-b", 32, 2, True, lambda: ResNet((3, 3, 3), SMALL, "downsample", "fc", classes=100), alone, []),
    "torchvision-resnet18": ("torchvision-resnet18", 224, 1, False, lambda: ResNet((2, 2, 2, 2), FOUR, "downsample", "fc", large=True, classes=1000), alone, ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]),
    "torchvision-resnet18, 64x64": ("torchvision-resnet18", 64, 2, True, lambda: ResNet((2, 2, 2, 2), FOUR, "downsample", "fc", large=True, classes=200), sequential(IMAGENET, "normalize.", "model."), ["--input-shape", "3,64,64"]),
    "torchvision-resnet34": ("torchvision-resnet34", 224, 1, False, lambda: ResNet((3, 4, 6, 3), FOUR, "downsample", "fc", large=True, classes=37), sequential(IMAGENET, "normalize.", "model."), []),
    "torchvision-resnet50": ("torchvision-resnet50", 224, 1, False, lambda: ResNet((3, 4, 6, 3), FOUR, "downsample", "fc", bottleneck=True, large=True, classes=1000), attacked(IMAGENET), []),
    "preact-resnet18": ("preact-resnet18", 32, 2, True, lambda: PreActResNet(bn=True), alone, ["--mean", "0.4914,0.4822,0.4465", "--std", "0.2471,0.2435,0.2616"]),
    "preact-resnet18, no bn": ("preact-resnet18", 32, 1, True, lambda: PreActResNet(bn=False, classes=100), parallel("net"), []),
    "preact-resnet34": ("preact-resnet34", 32, 1, False, lambda: PreActResNet((3, 4, 6, 3)), sequential(CIFAR, "0.", "1."), []),
    "wrn-10-1": ("wrn-10-1", 32, 2, True, lambda: WideResNet(10, 1), parallel("state_dict"), []),
    "wrn-16-4": ("wrn-16-4", 32, 2, True, lambda: WideResNet(16, 4, 100), sequential(CIFAR, "", "", ("mu", "sigma")), []),
    "wrn-28-10": ("wrn-28-10", 32, 2, False, lambda: WideResNet(28, 10), parallel("state_dict"), []),
    "wrn-34-10": ("wrn-34-10", 32, 1, False, lambda: WideResNet(34, 10, sub_block1=True), alone, []),
    "wrn-40-2": ("wrn-40-2", 32, 2, False, lambda: WideResNet(40, 2), sequential(((0.5,) * 3,) * 2, "", "module.", ("mu", "sigma")), []),
    "vgg11-bn": ("vgg11-bn", 32, 2, True, lambda: VGG(V11), parallel("net"), []),
    "vgg13-bn": ("vgg13-bn", 32, 1, False, lambda: VGG(V13, head="late", classes=100), alone, []),
    "vgg16-bn": ("vgg16-bn", 32, 2, False, lambda: VGG(V16), alone, []),
    "vgg16-bn, three": ("vgg16-bn", 32, 1, False, lambda: VGG(V16, head="early"), parallel("state_dict"), []),
    "vgg16": ("vgg16", 32, 1, False, lambda: VGG(V16, bn=False, head="late"), alone, []),
    "vgg19-bn": ("vgg19-bn", 32, 1, False, lambda: VGG(V19, head="late", hidden=4096), alone, []),
    "wong-cnn": ("wong-cnn", (1, 28), 4, True, wong, alone, []),
    "wong-cnn, colours": ("wong-cnn", 32, 4, True, lambda: wong(3), parallel("state_dict"), []),
    "madry-cnn": ("madry-cnn", (1, 28), 2, True, madry, alone, []),
    "madry-cnn, names": ("madry-cnn", (1, 28), 2, True, Madry, alone, []),
    "trades-cnn": ("trades-cnn", (1, 28), 2, True, Trades, alone, []),
}


@torch.no_grad()
def randomise(net, gen):
    for name, m in net.named_modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.weight.copy_(torch.randn(m.weight.shape, generator=gen) * math.sqrt(2 / m.weight[0].numel()))
            if m.bias is not None:
                m.bias.copy_(torch.randn(m.bias.shape, generator=gen) * 0.2)
        elif isinstance(m, nn.BatchNorm2d):
            c = m.num_features
            rand = lambda lo, hi: lo + (hi - lo) * torch.rand(c, generator=gen)
            m.running_mean.copy_(torch.randn(c, generator=gen) * 0.3)
            m.running_var.copy_(rand(0.5, 2.0))
            # The last norm of a block is weaker, for residual sums would otherwise blow up.
            weak = 0.4 if name.endswith(("bn2", "bn3")) else 1.0
            m.weight.copy_(weak * rand(0.5, 1.5) * torch.where(torch.rand(c, generator=gen) < 0.1, -1.0, 1.0))
            m.bias.copy_(torch.randn(c, generator=gen) * 0.2)
            m.num_batches_tracked.fill_(17)


def pictures(n, channels, size, gen):
    """Blobs of three sizes and a little noise on the grid k/255."""
    x = torch.zeros(n, channels, size, size)
    for side, weight in ((3, 1.0), (6, 0.6), (12, 0.35), (size, 0.1)):
        x += weight * F.interpolate(torch.randn(n, channels, side, side, generator=gen), (size, size), mode="bilinear", align_corners=True)
    return (127.5 + 60 * x).round().clamp(0, 255) / 255


relu, max_pool2d = F.relu, F.max_pool2d
TIE = 2e-6  # of the largest value


class Tied(Exception):
    pass


@torch.no_grad()
def move_kinks(net, x, numbers):
    """Moves biases until no ReLU's input is near zero; answers the nearest, and the nearest tie of a max-pool, over the size of
    the values there."""
    last, conv, nearest, ties = [None], [None], [math.inf], [math.inf]

    def note(module, inputs, output):
        if module.bias is not None:
            last[0] = module
        if isinstance(module, nn.Conv2d):
            conv[0] = module

    def away(v):
        values = v.transpose(0, 1).flatten(1).sort(1).values  # each channel's, all images
        scale = values.abs().amax().item()
        module, shift = last[0], torch.zeros(v.shape[1], dtype=v.dtype)
        for c, row in enumerate(values):
            inside = row[row.abs() < 0.1 * scale]
            edges = torch.cat([row.new_tensor([-0.1 * scale]), inside, row.new_tensor([0.1 * scale])])
            gap, at = (edges[1:] - edges[:-1]).max(0)
            shift[c] = -(edges[at] + gap / 2)
        before = module.bias.double().clone()
        module.bias.copy_((before + shift).float().double())
        v = v + (module.bias.double() - before).view(1, -1, *[1] * (v.dim() - 2))
        nearest[0] = min(nearest[0], (v.abs().amin() / scale).item())
        return relu(v)

    def tie(v, size, stride=None, padding=0):
        padded = F.pad(v, (padding,) * 4, value=-math.inf)
        top = padded.unfold(2, size, stride or size).unfold(3, size, stride or size).flatten(4).topk(2, 4).values
        gap = top[..., 0] - top[..., 1]
        gap = torch.where(gap > 0, gap, math.inf)  # zeros that are equal are behind a ReLU that stops the gradient anyway
        near = gap.transpose(0, 1).flatten(1).amin(1) / v.abs().max()
        if (near < TIE).any():
            raise Tied(conv[0], (near < TIE).nonzero().flatten())
        ties[0] = min(ties[0], near.min().item())
        return max_pool2d(v, size, stride, padding)

    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    try:
        with patch.object(F, "relu", away), patch.object(F, "max_pool2d", tie):
            z = net(normalised(x, numbers))
    finally:
        for hook in hooks:
            hook.remove()
    return nearest[0], ties[0], z


def normalised(x, numbers):
    if not numbers:
        return x
    mean, std = (torch.tensor(v, dtype=torch.float32).double().view(1, -1, 1, 1).to(x.dtype) for v in numbers)
    return (x - mean) / std


def gradient(net, x, labels, numbers):
    x = x.clone().requires_grad_()
    z = net(normalised(x, numbers))
    F.cross_entropy(z, labels, reduction="sum").backward()
    return z.detach(), x.grad


def bits(t):
    return t.detach().contiguous().view(-1).view(torch.uint8)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", choices=[*CASES, []])
    p.add_argument("--quick", action="store_true")
    p.add_argument("--program", type=Path, default="target/release/signstep")
    p.add_argument("--gradient", type=Path, default="target/release/examples/input_gradient")
    a = p.parse_args()
    torch.set_num_threads(1)
    failures, count = [], 0

    def expect(what, holds, why=""):
        nonlocal count
        count += 1
        if not holds:
            print("FAIL", what, why.strip(), flush=True)
            failures.append(what)

    def run(program, *args):
        return subprocess.run([str(v) for v in (program, *args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def one(name, work):
        arch, shape, n, _, make, saved, flags = CASES[name]
        channels, size = shape if isinstance(shape, tuple) else (3, shape)
        numbers = getattr(saved, "numbers", None)
        if "--mean" in flags:
            numbers = tuple(tuple(float(v) for v in flags[i].split(",")) for i in (1, 3))
        gen = torch.Generator().manual_seed(sum(map(ord, name)))
        start = time.time()
        net = make()
        randomise(net, gen)
        net = net.double().eval().requires_grad_(False)
        x = pictures(n, channels, size, gen).double()
        while True:
            try:
                near, ties, z = move_kinks(net, x, numbers)
                break
            except Tied as tied:
                conv, which = tied.args
                shape = conv.weight[which].shape
                conv.weight[which] = (torch.randn(shape, generator=gen) * math.sqrt(2 / conv.weight[0].numel())).double()
        with torch.no_grad():  # logits that spread by 1 to 4, by a power of two
            last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
            factor = 2.0 ** round(math.log2(2 / z.std().item()))
            last.weight.mul_(factor), last.bias.mul_(factor)
        labels = torch.randint(0, z.shape[1], (n,), generator=gen)
        state = {k: v if k.endswith("tracked") else v.float() for k, v in net.state_dict().items()}
        assert all(torch.equal(v.double(), net.state_dict()[k].double()) for k, v in state.items()), "weights are f32"
        torch.save(saved(state), work / "x.pt")
        torch_start = time.time()
        z, g = gradient(net, x, labels, numbers)
        torch_seconds = time.time() - torch_start

        done = run(a.program, "convert", work / "x.pt", work / "x.safetensors", "--fresh", "--json", *flags)
        if done.returncode:
            return expect(f"{name} is recognised", False, done.stderr)
        said = json.loads(done.stdout)
        expect(f"{name} is recognised as {said['arch']}", said["arch"] == arch and said["logits"] == z.shape[1])
        flat = saved(state)
        flat = next((v for v in flat.values() if isinstance(v, dict)), flat)
        ours, want = load_file(work / "x.safetensors"), {k: v for k, v in flat.items() if not k.endswith("num_batches_tracked")}
        expect(f"{name}: tensors and names are kept", ours.keys() == want.keys() and all(torch.equal(bits(ours[k]), bits(v)) for k, v in want.items()))

        save_file({"images": x.float().contiguous(), "labels": labels}, work / "images.safetensors")
        engine_start = time.time()
        done = run(a.gradient, work / "x.safetensors", work / "images.safetensors", work / "out.safetensors")
        if done.returncode:
            return expect(f"{name} runs", False, done.stderr)
        got = load_file(work / "out.safetensors")
        ez, eg = got["logits"].double(), got["input_gradient"].double()
        expect(f"{name}: logits", bool(((ez - z).abs() <= ABSOLUTE + RELATIVE * z.abs()).all()), f"off by {(ez - z).abs().max():.1e}")
        off = ((eg - g).flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)).max().item()
        expect(f"{name}: gradient", off <= GRADIENT, f"relative L2 {off:.1e}")
        large = g.abs() > 1e-6 * g.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        signs = (eg.sign() == g.sign())[large].double().mean().item()
        expect(f"{name}: signs", signs >= SIGNS, f"{100 * signs:.3f} %")
        print(f"{name}: {said['arch']}, {said['parameters']} parameters, {n} of {channels}x{size}x{size}; logits off by {(ez - z).abs().max():.1e} "
              f"of {z.abs().max():.1f}, gradient {off:.1e}, signs {100 * signs:.3f} %; nearest kink {near:.0e}, tie {ties:.0e}; "
              f"engine {time.time() - engine_start:.0f} s, PyTorch {torch_seconds:.0f} s, all {time.time() - start:.0f} s", flush=True)

    def damaged(work):
        """What must be refused, and the tensor that the message must name."""
        wrn = {k: v for k, v in WideResNet(10, 1).state_dict().items()}
        without = lambda state, *names: {k: v for k, v in state.items() if k not in names}
        one3 = torch.full((1, 3, 1, 1), 0.5)
        vgg, pre = VGG(V11).state_dict(), PreActResNet((1, 1, 1, 1)).state_dict()
        cases = {
            "a batch norm is missing": (without(wrn, "block2.layer.0.bn1.running_var"), [], "block2.layer.0.bn1.running_var"),
            "a projection is missing": (without(wrn, "block3.layer.0.convShortcut.weight"), [], "block3.layer.0.convShortcut.weight"),
            "a tensor too many": (wrn | {"fc2.weight": torch.zeros(10, 10)}, [], "fc2.weight"),
            "a prefix that not all have": ({"module." + k: v for k, v in wrn.items()} | {"fc.bias": wrn["fc.bias"]}, [], ""),
            "a prefix in the middle": ({k.replace("block2", "block2.module"): v for k, v in wrn.items()}, [], "block2."),
            "another width": (wrn | {"block2.layer.0.conv2.weight": torch.zeros(32, 31, 3, 3)}, [], "block2.layer.0.conv2.weight"),
            "a normalisation of another name": (wrn | {"input_average": one3, "input_scale": one3}, [], "--mean"),
            "a normalisation that flags contradict": (wrn | {"mu": one3, "sigma": one3}, ["--mean", "0,0,0", "--std", "1,1,1"], "mean"),
            "a deviation of zero": (wrn | {"mu": one3, "sigma": 0 * one3}, [], "sigma"),
            "a dead stage of another shape": (wrn | {"sub_block1.layer.0.conv1.weight": torch.zeros(9, 16, 3, 3)}, [], "sub_block1"),
            "features between two layouts": (without(vgg, "features.0.bias"), [], "features.0.bias"),
            "a final norm cut in half": (without(pre, "bn.bias"), [], "bn.bias"),
            "a stem that does not tell its stride": (ResNet((2, 2, 2, 2), FOUR, "downsample", "fc").state_dict(), [], "conv1.weight"),
            "a name of another family": (wrn, ["--arch", "vgg11-bn"], "vgg11-bn"),
        }
        for what, (state, flags, named) in cases.items():
            torch.save(state, work / "x.pt")
            (work / "x.safetensors").unlink(missing_ok=True)
            done = run(a.program, "convert", work / "x.pt", work / "x.safetensors", *flags)
            refused = done.returncode == 3 and len(done.stderr.splitlines()) == 1 and not (work / "x.safetensors").exists()
            expect(f"{what} is refused, by name", refused and named in done.stderr, f"{done.returncode} {done.stdout} {done.stderr}")
        other = wrn | {"input_average": one3, "input_scale": one3}
        torch.save(other, work / "x.pt")
        done = run(a.program, "convert", work / "x.pt", work / "x.safetensors", "--fresh", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
        expect("a normalisation of another name goes where flags say it", done.returncode == 0, done.stderr)

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if not a.names:
            damaged(work)
        for name in a.names or [name for name, case in CASES.items() if case[3] or not a.quick]:
            one(name, work)
    print(f"{count - len(failures)} of {count} hold")
    sys.exit(f"{len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main()
