#!/usr/bin/env python3
"""Writes digits.safetensors: the 1,797 UCI handwritten digits that scikit-learn bundles.

    python weights/make_digits.py --out weights/digits.safetensors

`images` u8 [1797, 1, 8, 8], `labels` i64 [1797]. The first 450 rows are the held-out quarter, the others are for training.
Needs numpy, safetensors, scikit-learn.
"""
import argparse, json
import numpy as np
from safetensors.numpy import save_file

SEED, HELD_OUT = 2015, 450


def sort_header(path):
    """safetensors writes metadata in hash order, other bytes each time; sorted, the same tensors give the same file."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header, data = json.loads(f.read(size)), f.read()
    header = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the data aligned
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header + data)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    from sklearn.datasets import load_digits  # here, so that the other scripts can import this one without it

    raw = load_digits()
    # Pixels count the set points of a 4×4 block: 0 to 16. v = 8 falls on .5, which goes to the even neighbour.
    images = np.rint(255 * raw.images / 16).astype(np.uint8)[:, None]
    labels = raw.target.astype(np.int64)

    rng = np.random.RandomState(SEED)  # the old generator: NumPy has frozen its stream
    counts = np.bincount(labels)
    share = counts * HELD_OUT / len(labels)
    take = np.floor(share).astype(int)
    take[np.argsort(take - share, kind="stable")[: HELD_OUT - take.sum()]] += 1  # largest remainders
    held, rest = [], []
    for digit, n in enumerate(take):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        held.append(rows[:n])
        rest.append(rows[n:])
    # Mixed, so that any first N rows hold all classes.
    order = np.concatenate([rng.permutation(np.concatenate(held)), rng.permutation(np.concatenate(rest))])
    assert len(np.unique(order)) == len(labels) and sum(map(len, held)) == HELD_OUT

    meta = {
        "held_out": str(HELD_OUT),
        "classes": json.dumps([str(d) for d in range(10)]),
        "source": "UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (test part), as bundled with scikit-learn",
        "licence": "CC BY 4.0",
        "attribution": "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
        "https://doi.org/10.24432/C50P49. Changed: pixel values 0..16 scaled to 0..255, rows reordered.",
    }
    tensors = {"images": np.ascontiguousarray(images[order]), "labels": labels[order]}
    save_file(tensors, a.out, metadata=meta)
    sort_header(a.out)
    print("written", a.out, tensors["images"].shape, "held out per class", take.tolist())


if __name__ == "__main__":
    main()
