"""Folders of pictures through torchvision and through the program: every byte, `python tests/oracle/pictures.py [--signstep PATH]`.

Pictures of the sizes that photographs have, and of some that they have not, noise and smooth, grey and colour, in two classes; each is
read by torchvision's ImageFolder with Resize and CenterCrop, and by `signstep attack` with `--resize` and `--crop`, whose tensor
`clean` says what it read. PNG, for JPEG leaves decoders some freedom. The network is described in a file, for no known one takes these.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from torchvision import datasets, transforms

SIZES = [(500, 375), (333, 500), (640, 427), (427, 640), (37, 53), (1600, 90), (61, 1900), (256, 300), (4000, 257), (20, 1000),
         (300, 299), (50, 49), (1, 1), (2, 700), (3000, 2000), (224, 224), (256, 256), (255, 257), (8, 2000)]
SETTINGS = [(256, 224), (232, 224), (64, 64), (299, 288), (33, 32), (600, 257)]


def picture(rng, w, h, kind):
    if kind == "noise":
        return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([np.sin(x / 17 + c) * np.cos(y / 23) * 127 + 128 for c in range(3)], -1).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--signstep", default="target/release/signstep")
    program = Path(parser.parse_args().signstep).resolve()
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for i, (w, h) in enumerate(SIZES):
            for kind in ("noise", "smooth"):
                file = at / "pictures" / kind / f"{i:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(rng, w, h, kind)).save(file, compress_level=1)
        Image.fromarray(picture(rng, 400, 300, "smooth")[..., 0]).save(at / "pictures/smooth/grey.png")
        conv, weight = rng.standard_normal((2, 3, 4, 4), dtype=np.float32), rng.standard_normal((2, 2), dtype=np.float32)
        zero = np.zeros(2, np.float32)
        save_file({"conv.weight": conv, "conv.bias": zero, "fc.weight": weight, "fc.bias": zero}, at / "net.safetensors")
        worst = {}
        for resize, crop in SETTINGS:
            (at / "net.toml").write_text(
                f'input = [3, {crop}, {crop}]\nlayers = [{{ conv = "conv", outputs = 2, kernel = 4, stride = 4 }}, '
                '"global_avg_pool", "flatten", { linear = "fc", outputs = 2 }]\n')
            line = f"attack --model net.safetensors --arch net.toml --data pictures --resize {resize} --crop {crop} --method fgsm " \
                   f"--untargeted --eps 1/255 --fresh --out run"
            subprocess.run([program, *line.split()], cwd=at, check=True, stdout=subprocess.DEVNULL)
            ours = load_file(at / "run/adversarial.safetensors")["clean"]
            steps = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop), transforms.PILToTensor()])
            theirs = torch.stack([x for x, _ in datasets.ImageFolder(at / "pictures", steps)]).numpy()
            ours = ours if ours.dtype == np.uint8 else np.rint(ours * 255).astype(np.uint8)
            difference = np.abs(ours.astype(int) - theirs.astype(int))
            worst[f"{resize}, {crop}"] = {"pictures": len(ours), "values": int(difference.size), "largest": int(difference.max()),
                                          "differ": int((difference > 0).sum())}
        print(json.dumps(worst, indent=1))
        assert all(row["largest"] <= 1 for row in worst.values()), "more than 1/255"


if __name__ == "__main__":
    main()
