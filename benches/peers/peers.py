#!/usr/bin/env python3
"""PyTorch and ncnn as peers: answers what `signstep-peers` asks, a line of JSON each. It starts this by itself.

    python peers.py torch CASE.safetensors --device cpu|cuda [--threads N]
    python peers.py ncnn CASE.safetensors --device cpu|vulkan [--adapter NAME]
    python peers.py digits CASE.safetensors --out FILE

A case is a network with its folded weights, images and a class for each. `digits` is PyTorch doing what `signstep attack` does
by default, from the start of the process to its end. Needs safetensors and, for their own rows, torch and ncnn.
"""
import argparse, itertools, json, os, sys, tempfile, time

EPS, STEP_SIZE = 8 / 255, 1 / 255


class Case:
    def __init__(self, path):
        from safetensors import safe_open

        with safe_open(path, "numpy") as f:
            self.layers = json.loads(f.metadata()["layers"])
            tensors = {name: f.get_tensor(name) for name in f.keys()}
        self.images, self.classes = tensors.pop("images"), tensors.pop("classes")
        self.params = tensors


class Torch:
    """Frozen, channels-last, eager: PyTorch as people run attacks, batch norm folded."""

    def __init__(self, case, device, threads):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA device")
        if threads:
            torch.set_num_threads(threads)
        self.torch, self.device, self.threads = torch, device, torch.get_num_threads()
        self.layers = case.layers
        self.params = {name: self.put(value) for name, value in case.params.items()}
        self.x0 = self.put(case.images)
        self.classes = torch.from_numpy(case.classes).to(device)
        # What F.conv2d is given may not run in TF32: the other peers do not either.
        torch.backends.cudnn.allow_tf32 = False

    def put(self, array):
        tensor = self.torch.from_numpy(array).to(self.device)
        return tensor.contiguous(memory_format=self.torch.channels_last) if tensor.dim() == 4 else tensor

    def ready(self):
        cuda = self.device == "cuda"
        where = self.torch.cuda.get_device_name() if cuda else f"CPU, {self.threads} thread{'s' * (self.threads > 1)}"
        return {"name": f"PyTorch {self.torch.__version__}", "device": where, "how": "eager, frozen, channels-last"}

    def run(self, layers, x, norms=False):
        F = self.torch.nn.functional
        for kind, a in layers:
            w, b = (self.params.get(f"{a.get('name')}.{part}") for part in ("weight", "bias"))
            if kind == "normalise":
                x = (x - x.new_tensor(a["mean"]).view(1, -1, 1, 1)) / x.new_tensor(a["std"]).view(1, -1, 1, 1)
            elif kind == "conv2d":
                x = F.conv2d(x, w, b, a["stride"], a["padding"])
                if norms:
                    x = F.batch_norm(x, x.new_zeros(len(b)), x.new_ones(len(b)))
            elif kind == "relu":
                x = F.relu(x)
            elif kind == "max_pool":
                x = F.max_pool2d(x, a["size"], a["stride"], a["padding"])
            elif kind == "global_avg_pool":
                x = x.mean((2, 3), keepdim=True)
            elif kind == "flatten":
                x = x.flatten(1)
            elif kind == "linear":
                x = F.linear(x, w, b)
            elif kind == "residual":
                x = self.run(a["body"], x, norms) + self.shortcut(a["shortcut"], x, norms)
            else:
                raise ValueError(f"no layer {kind}")
        return x

    def shortcut(self, shortcut, x, norms):
        kind, a = shortcut
        if kind == "subsample":
            half = a["added"] // 2
            return self.torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return self.run(a["layers"], x, norms) if kind == "projection" else x

    def loss(self, x, classes, norms=False):
        return self.torch.nn.functional.cross_entropy(self.run(self.layers, x, norms), classes, reduction="sum")

    def gradient(self, x, classes):
        x = x.detach().requires_grad_()
        (g,) = self.torch.autograd.grad(self.loss(x, classes), x)
        return g

    def attack(self, x0, classes, eps, step_size, steps):
        lo, hi = (x0 - eps).clamp(0, 1), (x0 + eps).clamp(0, 1)
        x = x0
        for _ in range(steps):
            x = (x - step_size * self.gradient(x, classes).sign()).clamp(lo, hi)
        return x

    def saved_bytes(self, norms):
        """What autograd keeps between forward and backward, weights left out; with `norms`, had batch norm not been folded."""
        saved = {}
        weights = {w.untyped_storage().data_ptr() for w in self.params.values()}

        def keep(t):
            storage = t.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no address is used twice
            return t

        with self.torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            self.loss(self.x0.detach().requires_grad_(), self.classes, norms)
        return sum(size for size, _ in saved.values())

    def peak_bytes(self):
        """The most that one input gradient has allocated at a time."""
        cpu = self.torch.profiler.ProfilerActivity.CPU
        with self.torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            self.gradient(self.x0, self.classes)
        # profile.events() has only those that happen outside of any operator.
        events = profile.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        return max(itertools.accumulate(change for _, change in changes))

    def check(self):
        with self.torch.no_grad():
            logits = self.run(self.layers, self.x0)
        gradient = self.gradient(self.x0, self.classes)
        logits, gradient = (t.cpu().contiguous().flatten().tolist() for t in (logits, gradient))
        checked = {"logits": logits, "gradient": gradient}
        if self.device == "cpu":
            sizes = {"bytes": self.peak_bytes(), "saved": self.saved_bytes(False), "saved_unfolded": self.saved_bytes(True)}
            checked.update((name, size / len(self.x0)) for name, size in sizes.items())
        return checked

    def step(self, steps):
        return (self.attack(self.x0, self.classes, EPS, STEP_SIZE, steps) - self.x0).abs().max().item()

    def forward(self, times):
        with self.torch.no_grad():
            for _ in range(times):
                self.run(self.layers, self.x0)
        if self.device == "cuda":
            self.torch.cuda.synchronize()


class Ncnn:
    """Forward only. f32 throughout, ReLU fused into convolutions, Winograd as ncnn likes; one image at a time, for it has no batches."""

    def __init__(self, case, device, adapter):
        import ncnn

        self.ncnn, self.device = ncnn, device
        self.net = ncnn.Net()
        option = self.net.opt
        option.num_threads = 1
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
            setattr(option, f"use_{name}", False)
        option.use_vulkan_compute = device == "vulkan"
        self.where = "CPU, 1 thread"
        if device == "vulkan":
            names = [ncnn.get_gpu_info(i).device_name() for i in range(ncnn.get_gpu_count())]
            if adapter not in names:
                raise RuntimeError(f"ncnn does not find {adapter}; it finds {', '.join(names) or 'no device'}")
            self.net.set_vulkan_device(names.index(adapter))
            self.where = adapter
        self.images = [ncnn.Mat(image).clone() for image in case.images]
        self.params, self.lines, self.blobs, self.weights = case.params, [], itertools.count(), []
        self.out = self.build(case.layers, self.layer("Input", []))
        self.load()

    def ready(self):
        return {"name": f"ncnn {self.ncnn.__version__}", "device": self.where, "how": "f32, ReLU fused, Winograd, one image at a time"}

    def layer(self, kind, inputs, outputs=1, **options):
        """Writes a line of the param file; gives the name of what comes out."""
        made = [f"b{next(self.blobs)}" for _ in range(outputs)]
        settings = [f"{key[1:]}={value}" for key, value in options.items()]
        words = [kind, f"l{len(self.lines)}", str(len(inputs)), str(outputs), *inputs, *made, *settings]
        self.lines.append((" ".join(words), outputs))
        return made[0] if outputs == 1 else made

    def build(self, layers, x):
        layers = list(layers)
        while layers:
            kind, a = layers.pop(0)
            w, b = (self.params.get(f"{a.get('name')}.{part}") for part in ("weight", "bias"))
            if kind == "normalise":
                x = self.layer("Scale", [x], _0=len(a["std"]), _1=1)
                self.weights += [[1 / s for s in a["std"]], [-m / s for m, s in zip(a["mean"], a["std"])]]
            elif kind == "conv2d":
                relu = bool(layers) and layers[0][0] == "relu"
                layers = layers[relu:]
                x = self.layer("Convolution", [x], _0=len(b), _1=w.shape[-1], _3=a["stride"], _4=a["padding"], _5=1, _6=w.size, _9=int(relu))
                self.weights += [None, w, b]
            elif kind == "relu":
                x = self.layer("ReLU", [x])
            elif kind == "global_avg_pool":
                x = self.layer("Pooling", [x], _0=1, _4=1)
            elif kind == "flatten":
                x = self.layer("Flatten", [x])
            elif kind == "linear":
                x = self.layer("InnerProduct", [x], _0=len(b), _1=1, _2=w.size)
                self.weights += [None, w, b]
            elif kind == "residual":
                x, other = self.layer("Split", [x], outputs=2)
                x = self.layer("BinaryOp", [self.build(a["body"], x), self.shortcut(a["shortcut"], other)], _0=0)
            else:
                raise ValueError(f"no layer {kind}")
        return x

    def shortcut(self, shortcut, x):
        kind, a = shortcut
        if kind == "subsample":
            x = self.layer("Pooling", [x], _0=0, _1=1, _2=2, _5=1)
            return self.layer("Padding", [x], _7=a["added"] // 2, _8=a["added"] // 2)
        return self.build(a["layers"], x) if kind == "projection" else x

    def load(self):
        import numpy

        with tempfile.TemporaryDirectory() as folder:
            param, model = os.path.join(folder, "net.param"), os.path.join(folder, "net.bin")
            with open(param, "w") as f:
                blobs = sum(outputs for _, outputs in self.lines)
                print("7767517", f"{len(self.lines)} {blobs}", *(line for line, _ in self.lines), sep="\n", file=f)
            with open(model, "wb") as f:
                for values in self.weights:  # None: the tag before weights that are plain f32
                    f.write(bytes(4) if values is None else numpy.asarray(values, "<f4").tobytes())
            if self.net.load_param(param) or self.net.load_model(model):
                raise RuntimeError("ncnn does not load the network")

    def logits(self, image):
        extractor = self.net.create_extractor()
        extractor.input("b0", image)
        failed, out = extractor.extract(self.out)
        if failed:
            raise RuntimeError(f"ncnn cannot run the network ({failed})")
        return out

    def check(self):
        import numpy

        logits = [float(v) for image in self.images for v in numpy.array(self.logits(image)).ravel()]
        return {"logits": logits}

    def forward(self, times):
        for _ in range(times):
            for image in self.images:
                self.logits(image)


def digits(case, out):
    """Iterative targeted FGSM on the held-out digits: random targets, eps 0.3, ten steps, 8-bit images, classified again."""
    from safetensors.torch import save_file

    peer = Torch(case, "cpu", 0)
    torch = peer.torch
    torch.manual_seed(0)
    labels, n = peer.classes, len(peer.x0)
    targets = (labels + torch.randint(1, 10, (n,))) % 10
    with torch.no_grad():
        clean = peer.run(peer.layers, peer.x0).argmax(1)
    x = (peer.attack(peer.x0, targets, 0.3, 0.075, 10) * 255).round() / 255
    with torch.no_grad():
        logits = peer.run(peer.layers, x)
    right = clean == labels
    success = (logits.argmax(1) == targets) & right
    save_file({"clean": peer.x0.contiguous(), "adversarial": x.contiguous(), "targets": targets, "logits": logits}, out)
    return {"samples": n, "success_rate": success.sum().item() / right.sum().item()}


def answer(kind, value):
    print(json.dumps({kind: value}), flush=True)


def serve(peer):
    answer("ready", peer.ready())
    for line in sys.stdin:
        question = json.loads(line)
        if question == "check":
            answer("checked", peer.check())
        else:
            ((work, times),) = question.items()
            cpu, wall = time.process_time(), time.perf_counter()
            moved = getattr(peer, work)(times)
            answer("timed", {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "moved": moved})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("peer", choices=["torch", "ncnn", "digits"])
    p.add_argument("case")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda", "vulkan"])
    p.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch likes")
    p.add_argument("--adapter", help="name of the Vulkan device")
    p.add_argument("--out")
    a = p.parse_args()
    try:
        case = Case(a.case)
        if a.peer == "digits":
            print(json.dumps(digits(case, a.out)))
        else:
            serve(Torch(case, a.device, a.threads) if a.peer == "torch" else Ncnn(case, a.device, a.adapter))
    except ModuleNotFoundError as e:
        answer("failed", f"{e.name} is not installed")
    except (RuntimeError, ValueError) as e:
        answer("failed", str(e))


if __name__ == "__main__":
    main()
