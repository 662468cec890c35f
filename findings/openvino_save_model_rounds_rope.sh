#!/usr/bin/env bash
# openvino 2026.4.1, transformers 5.24.0, torch 2.13.0; run 2026-11-29.
#
# The rotary position embedding of a Llama is converted and saved by `ov.save_model`, whose default stores constants in
# 16 bits, and run in float32.
# Expected: weights are rounded (relative 5e-4), angles are computed as before.
# Happens:  the inverse frequencies are constants, too. Their rounding is multiplied by the position, so the error grows
#           with the length of the prompt: a LLaVA's 576 image tokens end where cosines are 0.1 off.
#
# Seen (largest error of the cosines at a position):
#   position            10     576     780    4095
#   default         0.0017  0.0986  0.1121  0.8949
#   not compressed  0.0000  0.0000  0.0000  0.0000
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 openvino==2026.4.1
venv/bin/python - <<'PY'
import numpy as np
import openvino as ov
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


class Cosines(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rope = LlamaRotaryEmbedding(LlamaConfig(hidden_size=512, num_attention_heads=4))

    def forward(self, position_ids):
        return self.rope(torch.zeros(1), position_ids)[0]


model, positions = Cosines().eval(), torch.arange(4096)[None]
right = model(positions).numpy()
converted = ov.convert_model(torch.export.export(model, (positions,)))
ov.save_model(converted, "default.xml")
ov.save_model(converted, "plain.xml", compress_to_fp16=False)
shown, core, errors = (10, 576, 780, 4095), ov.Core(), {}
print("position       " + "".join(f"{position:8}" for position in shown))
for name, file in {"default": "default.xml", "not compressed": "plain.xml"}.items():
    compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    error = np.abs(compiled(positions.numpy())[0] - right).max(-1)[0]
    errors[name] = [float(error[position]) for position in shown]
    print(f"{name:15}" + "".join(f"{value:8.4f}" for value in errors[name]))
assert errors["default"][0] < 0.01 and errors["default"][1] > 0.05 and errors["default"][3] > 0.5
assert max(errors["not compressed"]) < 1e-3
PY
