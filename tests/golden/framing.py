"""What torchvision makes of small pictures of every awkward size: `python tests/golden/framing.py --out tests/golden`.

For case i: `i.picture` u8 [H, W, C], noise, which is the worst for rounding; `i.framed` u8 [H', W', C]; `i.flags` i64 [2], the sizes of
Resize and CenterCrop, 0 where there is none. Bilinear with antialiasing, on pictures of Pillow, as its ImageFolder gives them.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from torchvision import transforms

CASES = [  # width, height, channels, resize, crop
    (37, 53, 3, 16, 14), (53, 37, 3, 16, 14), (53, 38, 3, 17, 14), (150, 7, 3, 8, 8), (7, 150, 3, 8, 7), (5, 7, 3, 24, 17),
    (1, 1, 3, 6, 5), (2, 90, 1, 11, 10), (64, 48, 1, 32, 28), (40, 41, 3, 0, 31), (41, 40, 3, 0, 30), (33, 47, 3, 16, 0),
    (16, 20, 3, 16, 11), (20, 16, 3, 15, 15), (101, 99, 1, 9, 8), (12, 9, 3, 12, 12),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rng, tensors = np.random.default_rng(2026), {}
    for i, (w, h, c, resize, crop) in enumerate(CASES):
        # Noise of few colours: edges everywhere, and the largest steps there are.
        x = rng.choice(np.array([0, 1, 77, 128, 254, 255], np.uint8), (h, w, c))
        picture = Image.fromarray(x if c == 3 else x[..., 0])
        steps = [transforms.Resize(resize)] * bool(resize) + [transforms.CenterCrop(crop)] * bool(crop)
        framed = np.asarray(transforms.Compose(steps)(picture))
        tensors |= {f"{i}.picture": x, f"{i}.framed": np.ascontiguousarray(framed.reshape(*framed.shape[:2], c)),
                    f"{i}.flags": np.array([resize, crop], np.int64)}
    save_file(tensors, out / "framing.safetensors")
    print(len(CASES), "cases,", (out / "framing.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
