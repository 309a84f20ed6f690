"""Every network that the engine knows, as PyTorch sees it, with weights from a formula: nobody has to ship them.

`tests/common/seeded.rs` is the other half. Element i of the tensor NAME comes from four random words,

    r = philox4x32-10(key = FNV-1a-64 of NAME, counter = (i, 0, 0, 99)),    u_k = (r_k >> 8) / 2^24,

as n = (u_0 + u_1 + u_2 + u_3 - 2) * sqrt(3), which is nearly normal with variance 1:

    weight of a convolution     n * sqrt(2 / fan_in)         gain of a batch norm    1 + 0.1 n; 0.2 times that for `.bn2`
    weight of a linear layer    n * sqrt(1 / fan_in)         running_mean            0.1 n
    any bias                    0.1 n                        running_var             0.5 + u_0

All in f64, rounded to f32 once: sums, products and square roots are exact to the bit in IEEE arithmetic, so both halves have the
same bits, and `checksum` says so. The second norm of a block is weaker because 54 residual sums would otherwise blow up.
"""
import math
import sys
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parents[1] / "oracle"))
from families import WideResNet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of networks that take colours; others take pixels as they are
WORD = np.uint64(0xFFFFFFFF)


def fnv(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def philox(seed, n):
    """Four words for each of the counters (i, 0, 0, 99), i < n; uint64 that hold 32 bits."""
    c = [np.arange(n, dtype=np.uint64), *(np.full(n, v, np.uint64) for v in (0, 0, 99))]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        high = np.uint64(32)
        c = [(b >> high) ^ c[1] ^ np.uint64(key[0]), b & WORD, (a >> high) ^ c[3] ^ np.uint64(key[1]), a & WORD]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return c


def tensor(name, shape):
    count = math.prod(shape)
    u = [(r >> np.uint64(8)).astype(np.float64) / 2.0**24 for r in philox(fnv(name), count)]
    n = (u[0] + u[1] + u[2] + u[3] - 2.0) * math.sqrt(3.0)
    owner, part = name.rsplit(".", 1)
    if part == "running_var":
        v = 0.5 + u[0]
    elif part == "weight" and len(shape) == 1:
        v = (1.0 + 0.1 * n) * (0.2 if owner.endswith(".bn2") else 1.0)
    elif part == "weight":
        v = n * math.sqrt((2.0 if len(shape) == 4 else 1.0) / math.prod(shape[1:]))
    else:
        v = 0.1 * n
    return v.astype(np.float32).reshape(shape)


def checksum(tensors):
    """Over names and bits: sum of (sum of bits_i * (2i + 1)) * (FNV of the name, made odd), modulo 2^64, in hexadecimal."""
    total = 0
    for name, values in tensors.items():
        bits = values.reshape(-1).view(np.uint32).astype(np.uint64)
        place = 2 * np.arange(len(bits), dtype=np.uint64) + np.uint64(1)
        total += int((bits * place).sum(dtype=np.uint64)) * (fnv(name) | 1)
    return f"{total % 2**64:016x}"


class LeNet5(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = torch.nn.Linear(64 * 7 * 7, 200)
        self.linear2 = torch.nn.Linear(200, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class DigitsCnn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = torch.nn.Conv2d(32, 32, 3, padding=1)
        self.linear1 = torch.nn.Linear(128, 48)
        self.linear2 = torch.nn.Linear(48, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv3(F.max_pool2d(x, 2)))
        return self.linear2(F.relu(self.linear1(F.max_pool2d(x, 2).flatten(1))))


class Block(torch.nn.Module):
    def __init__(self, inputs, outputs, projection):
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outputs)
        self.added = outputs - inputs
        if self.added and projection:
            conv = torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "shortcut"):
            x = self.shortcut(x)
        elif self.added:  # every second pixel, new channels of zeros before and after the old ones
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(y + x)


class ResNet(torch.nn.Module):
    def __init__(self, widths, blocks, projection):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        inputs = widths[0]
        for i, width in enumerate(widths):
            stage = [Block(inputs if b == 0 else width, width, projection) for b in range(blocks)]
            setattr(self, f"layer{i + 1}", torch.nn.Sequential(*stage))
            inputs = width
        self.linear = torch.nn.Linear(inputs, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(x.mean((2, 3)))


class Pixels(torch.nn.Module):
    """Normalisation is part of the network: gradients are with respect to pixels."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        for name, v in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def networks():
    """name -> (shape of an image, what makes the network)"""
    found = {"digits-cnn": ((1, 8, 8), DigitsCnn), "lenet5": ((1, 28, 28), LeNet5)}
    for suffix, projection in (("", False), ("-b", True)):
        for n in (3, 5, 7, 9, 18):
            make = lambda n=n, projection=projection: ResNet((16, 32, 64), n, projection)
            found[f"resnet{6 * n + 2}{suffix}"] = ((3, 32, 32), make)
    found["wrn-16-1"] = ((3, 32, 32), lambda: WideResNet(16, 1))  # activations come first
    found["resnet18"] = ((3, 32, 32), lambda: ResNet((64, 128, 256, 512), 2, True))
    return found


def seeded(name):
    """The network in f64 with weights by the formula (f32 values cast up), its input shape, and the weights' checksum."""
    shape, make = networks()[name]
    net = make()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors = {k: tensor(k, tuple(v.shape)) for k, v in state.items()}
    net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    net = net.double().eval().requires_grad_(False)
    return (Pixels(net) if shape[0] == 3 else net), shape, checksum(tensors)
