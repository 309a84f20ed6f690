"""torchvision's own ResNet-18 on 224×224 beside the engine's, `python tests/oracle/resnet18_224.py [--signstep PATH]`.

torchvision builds the network with random weights and statistics and runs it in f64; the engine is given its tensors under the names
that torchvision gave them, and `examples/networks/resnet18-224.toml`. Logits are held together by `signstep verify --logits`; the
gradient by what FGSM without rounding does with its sign, on pixels above 1e-3 of the image's largest gradient (f32 does not tell the
sign of much smaller ones here: a hundred million terms, and masks that may decide otherwise).
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torchvision.models import resnet18

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--signstep", default=ROOT / "target/release/signstep")
    parser.add_argument("--images", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(18)
    net = resnet18(weights=None)
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and ("bn" in name or "downsample.1" in name):
            value.normal_(0 if name.endswith("bias") else 1, 0.1)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, at / "net.safetensors")
        # Blobs, as photographs have: noise is grey to a network.
        images = torch.nn.functional.interpolate(torch.rand(args.images, 3, 14, 14), size=(224, 224), mode="bicubic").clamp(0, 1)
        images = (images * 255).round().to(torch.uint8)
        labels = torch.arange(args.images) * 301 % 1000
        save_file({"images": images, "labels": labels}, at / "data.safetensors")

        net = net.double().eval()
        x = (images.float() / 255).double().requires_grad_()
        mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        logits = net((x - mean) / std)
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        save_file({"logits": logits.detach()}, at / "logits.safetensors")

        common = ["--model", "net.safetensors", "--arch", ROOT / "examples/networks/resnet18-224.toml", "--data", "data.safetensors"]
        run = lambda *line: subprocess.run([args.signstep, *line], cwd=at, check=True, stdout=subprocess.PIPE, text=True).stdout
        told = json.loads(run("verify", *common, "--logits", "logits.safetensors", "--json"))["logits"]
        run("attack", *common, "--method", "fgsm", "--untargeted", "--attack-all", "--no-quantize", "--eps", "1/255",
            "--bounds=-1,2", "--out", "run")
        moved = load_file(at / "run/adversarial.safetensors")
        sign = np.sign(moved["adversarial"].astype(np.float64) - moved["clean"].astype(np.float64))
        gradient = x.grad.numpy()
        top = np.abs(gradient).reshape(args.images, -1).max(1).reshape(-1, 1, 1, 1)
        clear = np.abs(gradient) > 1e-3 * top
        agree = (sign == np.sign(gradient))[clear]
        print(json.dumps({"logits": told, "pixels": int(clear.sum()), "of": int(clear.size), "signs": float(agree.mean())}, indent=1))
        assert told["passed"] and told["argmax_agree"] == args.images and agree.mean() >= 0.999


if __name__ == "__main__":
    main()
