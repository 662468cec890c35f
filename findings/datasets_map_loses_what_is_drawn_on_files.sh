#!/usr/bin/env bash
# datasets 5.2.0, pillow 12.3.0; run 2026-12-01.
#
# A `map` draws a filled box onto each image and returns it, or makes it a thumbnail, both in place. The data set is of
# files once, as of an image folder, and of the same files' bytes once, as of parquet and most of the hub.
# Expected: what the function returned.
# Happens:  an image that PIL opened from a file knows the file's name, whatever was done to it since, and `datasets`
#           stores the name. So the images of files come back as they were, full size and without the box, and those of
#           bytes as returned. An image that a generator opened and drew on is stored as its file, too. `copy()`, like
#           all that makes a new image, loses the name and helps.
#
# Seen (size, and the colour inside the box, drawn in red on white):
#                          of files                of bytes
#   drawn on               400x300 white           400x300 red
#   copied, drawn on       400x300 red             400x300 red
#   thumbnail              400x300 white           100x75
#   drawn by a generator   400x300 white
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check datasets==5.2.0 pillow==12.3.0
export HF_HOME="$dir/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
from pathlib import Path

import datasets
import PIL.Image
from PIL import ImageDraw

datasets.disable_progress_bars()
BOX, COLOURS = (100, 100, 200, 200), {(255, 255, 255): "white", (255, 0, 0): "red"}
PIL.Image.new("RGB", (400, 300), "white").save("page.png")


def drawn(row):
    ImageDraw.Draw(row["image"]).rectangle(BOX, fill="red")
    return row


def copied(row):
    image = row["image"].copy()
    ImageDraw.Draw(image).rectangle(BOX, fill="red")
    return {"image": image}


def thumbnail(row):
    row["image"].thumbnail((100, 100))
    return row


def generated():
    image = PIL.Image.open("page.png")
    ImageDraw.Draw(image).rectangle(BOX, fill="red")
    yield {"image": image}


def told(image):
    size = "{}x{}".format(*image.size)
    return f"{size} {COLOURS[image.getpixel((150, 150))]}" if image.width == 400 else size


features = datasets.Features({"image": datasets.Image()})
of_file, of_bytes = {"path": "page.png", "bytes": None}, {"path": None, "bytes": Path("page.png").read_bytes()}
seen = {}
print(f"{'':22} {'of files':23} of bytes")
for title, change in {"drawn on": drawn, "copied, drawn on": copied, "thumbnail": thumbnail}.items():
    row = []
    for cell in (of_file, of_bytes):
        images = datasets.Dataset.from_dict({"image": [cell]}, features=features)
        row.append(told(images.map(change)[0]["image"]))
    seen[title] = row
    print(f"{title:22} {row[0]:23} {row[1]}")
row = told(datasets.Dataset.from_generator(generated)[0]["image"])
print(f"{'drawn by a generator':22} {row}")
assert seen["drawn on"] == ["400x300 white", "400x300 red"], seen
assert seen["copied, drawn on"] == ["400x300 red"] * 2, seen
assert seen["thumbnail"] == ["400x300 white", "100x75"], seen
assert row == "400x300 white", row
PY
