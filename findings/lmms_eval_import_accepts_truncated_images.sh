#!/usr/bin/env bash
# lmms-eval 0.7.3, pillow 12.3.0; run 2026-11-29.
#
# The first half of a JPEG file is opened before and after `lmms_eval.api.task`, which every evaluation imports.
# Expected: Pillow refuses to decode it both times; an import changes nothing for the rest of a process.
# Happens:  the import sets `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` for the whole process. From then on a half file is an
#           image, grey from where its data end, and is answered about and scored like any other.
#
# Seen:
#   before the import: OSError
#   after the import:  an image, 50 % of its rows grey
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 "transformers==5.24.0" accelerate==1.15.0 datasets==5.2.0 \
    evaluate sacrebleu pillow==12.3.0 pydantic loguru pytz tenacity pytablewriter openpyxl numpy==2.4.6
venv/bin/pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PY'
import io

import numpy as np
from PIL import Image

noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
file = io.BytesIO()
Image.fromarray(noise).resize((256, 256)).save(file, "JPEG", quality=90)
half = file.getvalue()[: len(file.getvalue()) // 2]


def opened():
    try:
        pixels = np.asarray(Image.open(io.BytesIO(half)).convert("RGB")).astype(int)
    except OSError:
        return None
    return (np.ptp(pixels.reshape(256, -1), axis=1) == 0).mean()


before = opened()
import lmms_eval.api.task  # noqa: E402, F401

after = opened()
print("before the import:", "OSError" if before is None else "an image")
print("after the import: ", "OSError" if after is None else f"an image, {after:.0%} of its rows grey".replace("%", " %"))
assert before is None
assert after is not None and after > 0.3
PY
