#!/usr/bin/env bash
# transformers 5.24.0, av 18.1.0; run 2026-11-29.
#
# `load_video` reads a clip of 30 frames, frame i of grey 8 * i, and is asked for 8, for 2 and for 1 frame a second.
# Expected: uniform frames from the first to the last, as the video models' own code samples (both ends), or the middles
#           of equal parts.
# Happens:  indices are i * total // n, so the last n-th of the clip is never seen: of 2 frames the second is the middle.
#
# Seen (frames taken of 0 to 29):
#   num_frames=8: [0, 3, 7, 11, 15, 18, 22, 26]
#   num_frames=2: [0, 15]
#   fps=1:        [0, 10, 20]
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 av==18.1.0 pillow==12.3.0
venv/bin/python - <<'PY'
import av
import numpy as np
from transformers.video_utils import load_video

with av.open("clip.mp4", "w") as file:
    stream = file.add_stream("mpeg4", rate=10)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for index in range(30):
        grey = np.full((64, 64, 3), 8 * index, np.uint8)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
    file.mux(stream.encode())
seen = {}
for asked in ({"num_frames": 8}, {"num_frames": 2}, {"fps": 1}):
    frames, metadata = load_video("clip.mp4", backend="pyav", **asked)
    name = ", ".join(f"{key}={value}" for key, value in asked.items())
    seen[name] = [int(index) for index in metadata.frames_indices]
    print(f"{name + ':':13} {seen[name]}")
    assert [round(frame.mean() / 8) for frame in frames] == seen[name]  # the frames are what the indices say
assert seen == {"num_frames=8": [0, 3, 7, 11, 15, 18, 22, 26], "num_frames=2": [0, 15], "fps=1": [0, 10, 20]}
PY
