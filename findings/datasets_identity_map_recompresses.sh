#!/usr/bin/env bash
# datasets 5.2.0, pillow 12.3.0; run 2026-11-28.
#
# A data set holds one JPEG as bytes (quality 98). A map that returns its image as it came runs three times.
# Expected: nothing changes: the bytes stay, or at worst the decoded pixels are stored without loss.
# Happens:  a decoded image remembers the format "JPEG", so each map encodes it again at Pillow's default quality 75:
#           a third of the size, and pixels that drift further with each map. An image that was converted (and so has
#           no format) is stored as PNG and keeps its pixels. Nothing warns.
#
# Seen (difference of pixels from the original, 0 to 255):
#   before any map:            largest  0, mean  0.00, 59067 bytes
#   map 1 returning the image: largest 65, mean  8.61, 20454 bytes
#   map 2 returning the image: largest 77, mean 11.07, 20268 bytes
#   map 3 returning the image: largest 87, mean 12.71, 20180 bytes
#   map returning image.copy(): largest  0
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check datasets==5.2.0 pillow==12.3.0 numpy==2.4.6
venv/bin/python - <<'PY'
import io
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = os.path.join(os.getcwd(), "cache")
import numpy as np
from datasets import Dataset, Features, Image, disable_progress_bars
from PIL import Image as pil

disable_progress_bars()
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
file = io.BytesIO()
pil.fromarray(noise).resize((256, 256)).save(file, "JPEG", quality=98)
original = np.asarray(pil.open(file)).astype(int)


def difference(data):
    return np.abs(np.asarray(data[0]["image"]).astype(int) - original)


def size(data):
    return len(data.with_format("arrow")[0]["image"][0].as_py()["bytes"])


data = Dataset.from_dict(
    {"image": [{"bytes": file.getvalue(), "path": None}]}, features=Features({"image": Image()})
)
start, means = data, []
for step in range(4):
    name = f"map {step} returning the image:" if step else "before any map:"
    off = difference(data)
    means.append(off.mean())
    print(f"{name:26} largest {off.max():2}, mean {off.mean():5.2f}, {size(data)} bytes")
    data = data.map(lambda row: {"image": row["image"]}, load_from_cache_file=False)
copied = start.map(lambda row: {"image": row["image"].copy()}, load_from_cache_file=False)
print(f"map returning image.copy(): largest {difference(copied).max():2}")
assert means[0] == 0 and means[1] > 5 and means[1] < means[2] < means[3]
assert difference(copied).max() == 0
PY
