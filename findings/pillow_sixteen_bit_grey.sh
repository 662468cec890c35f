#!/usr/bin/env bash
# pillow 12.3.0, numpy 2.4.6; run 2026-11-28.
#
# A PNG of 16 bits a channel holds one flat shade at a quarter of full scale (0x4000), once as grey and once as RGB.
# Expected: convert("RGB") gives about 64 of 255 for both; the format and the shade are the same.
# Happens:  the RGB file gives 64, the grey file gives 255: grey is clipped at 255 instead of scaled by 256, so every
#           16-bit scan, X-ray or depth map turns white before an image processor sees it. Nothing warns.
#
# Seen:
#   grey: mode I;16, convert("RGB") -> [255, 255, 255]
#   rgb:  mode RGB, convert("RGB") -> [64, 64, 64]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check pillow==12.3.0 numpy==2.4.6
venv/bin/python - <<'PY'
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image


def png(color_type, channels):
    """Returns a valid 4x4 PNG of 16 bits a channel, every sample 0x4000."""
    row = b"\0" + struct.pack(">H", 0x4000) * (4 * channels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, color_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 4)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


warnings.simplefilter("error")
shade = {}
for name, color_type, channels in (("grey", 0, 1), ("rgb", 2, 3)):
    image = Image.open(io.BytesIO(png(color_type, channels)))
    shade[name] = np.asarray(image.convert("RGB"))[0, 0].tolist()
    print(f'{name + ":":5} mode {image.mode}, convert("RGB") -> {shade[name]}')
assert shade == {"grey": [255] * 3, "rgb": [64] * 3}
PY
