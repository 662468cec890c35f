#!/usr/bin/env bash
# transformers 5.24.0; run 2026-11-29.
#
# LLaVA-OneVision's image processor gets the same two images of 640x480 as `[a, b]` and as `[[a, b]]`.
# Expected: the same pixels: a list of images is a list of images.
# Happens:  a flat list is two prompts of one image, each cut into tiles; the nested one is one prompt of two images,
#           where each is resized to a single tile. For a prompt with two images a flat list costs about eight times the
#           tokens (6,059 against 730 an image at the largest tiling), without a warning: the processor counts
#           placeholders by the tiles that it made, so everything fits.
#
# Seen (images, tiles of each; images per prompt):
#   flat   [a, b]:   (2, 5) [1, 1]
#   nested [[a, b]]: (2, 1) [2]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 pillow==12.3.0
venv/bin/python - <<'PY'
import numpy as np
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

processor = LlavaOnevisionImageProcessorPil()
noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
image = Image.fromarray(noise)
seen = {}
for name, images in {"flat   [a, b]:": [image, image], "nested [[a, b]]:": [[image, image]]}.items():
    inputs = processor(images, return_tensors="pt")
    seen[name.split()[0]] = tuple(inputs.pixel_values.shape[:2]), inputs.batch_num_images.tolist()
    print(f"{name:16} {seen[name.split()[0]][0]} {seen[name.split()[0]][1]}")
assert seen == {"flat": ((2, 5), [1, 1]), "nested": ((2, 1), [2])}
PY
