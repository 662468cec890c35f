#!/usr/bin/env bash
# kornia 0.9.0, torch 2.13.0; run 2026-12-01.
#
# An image with an object of n x n pixels and a box around it is enlarged seven times by `AugmentationSequential`. The
# box is given as x, y, width, height ("bbox_xywh"), or with the last pixel in it, as the docstring wants it for
# "bbox_xyxy".
# Expected: a box around the pixels of the object, about 7 n wide.
# Happens:  a box is kept as the centres of its corner pixels. These are moved to where they belong, but they stay the
#           centres of one pixel each, which now is seven times smaller: a box of n pixels becomes about 7 (n - 1) + 1
#           wide. Of a small object, as in data for grounding, half of the box is lost, and at an IoU of 0.5 a right
#           answer counts as a miss. In an image that is made smaller boxes become too large in the same way.
#
# Seen (x, y, width, height):
#    32 to 224, Resize,            bbox_xywh: pixels  69  83  14  15   box  71.9  86.3   8.2   8.2   IoU 0.32
#    32 to 224, Resize,            bbox_xywh: pixels  69  83  21  22   box  71.9  86.3  15.4  15.4   IoU 0.51
#    32 to 224, Resize,            bbox_xyxy: pixels  69  83  21  22   box  71.9  86.3  15.4  15.4   IoU 0.51
#    32 to 224, RandomResizedCrop, bbox_xywh: pixels  69  83  21  22   box  71.9  86.3  15.4  15.4   IoU 0.51
#    32 to 224, Resize,            bbox_xywh: pixels  69  83  86  87   box  71.9  86.3  80.1  80.1   IoU 0.86
#   224 to  32, Resize,            bbox_xywh: pixels  10  12   3   3   box   9.7  11.7   3.8   3.8   IoU 0.63
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/pip install -q --disable-pip-version-check kornia==0.9.0
venv/bin/python -W ignore - <<'PY'
import kornia.augmentation as K
import torch


def overlap(a, b):
    sides = [max(0.0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    both = sides[0] * sides[1]
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def measure(old, new, n, name, key):
    x, y = (10, 12) if old < new else (70, 84)
    image = torch.zeros(1, 1, old, old)
    image[..., y : y + n, x : x + n] = 1
    step = K.Resize((new, new))
    if name == "RandomResizedCrop":
        step = K.RandomResizedCrop((new, new), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    box = [x, y, n, n] if key == "bbox_xywh" else [x, y, x + n - 1, y + n - 1]
    resized, moved = K.AugmentationSequential(step, data_keys=["input", key])(image, torch.tensor([[box]]).float())
    left, top, right, below = moved.flatten().tolist()
    found = [left, top, right, below] if key == "bbox_xywh" else [left, top, right - left + 1, below - top + 1]
    rows, columns = (resized[0, 0] > 0.5).nonzero().unbind(1)
    left, top = int(columns.min()), int(rows.min())
    pixels = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    iou = overlap(pixels, found)
    print(
        f"{old:3} to {new:3}, {name + ',':18} {key}: pixels", *(f"{v:3}" for v in pixels), "  box",
        *(f"{v:5.1f}" for v in found), f"  IoU {iou:.2f}",
    )
    centres = (n - 1) * (new - 1) / (old - 1) + 1
    assert abs(found[2] - centres) < 0.01 and abs(pixels[2] - n * new / old) < 3, (pixels, found)
    return iou


assert measure(32, 224, 2, "Resize", "bbox_xywh") < 0.4
assert measure(32, 224, 3, "Resize", "bbox_xywh") < 0.6
assert measure(32, 224, 3, "Resize", "bbox_xyxy") < 0.6
assert measure(32, 224, 3, "RandomResizedCrop", "bbox_xywh") < 0.6
assert 0.8 < measure(32, 224, 12, "Resize", "bbox_xywh") < 0.9
assert measure(224, 32, 21, "Resize", "bbox_xywh") < 0.7
PY
