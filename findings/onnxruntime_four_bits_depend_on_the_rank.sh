#!/usr/bin/env bash
# onnxruntime 1.32.0, torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2; run 2026-12-01.
#
# The two layers of a LLaVA's projector are exported by `torch.onnx.export`, once with patches as [1, 576, 256] and once
# as [576, 256], and quantized to 4 bits by `MatMulNBitsQuantizer`.
# Expected: the same weights in 4 bits, since the layers are the same.
# Happens:  a linear layer with a bias becomes MatMul and Add where its input has three dimensions, and Gemm where it
#           has two. The quantizer takes MatMul only: of the second model nothing is quantized, which no warning says.
#           "Gemm" in `op_types_to_quantize` is taken and changes nothing. `quantize_dynamic` takes both.
#           What works on packed patches (fused windows, Qwen2.5-VL's tower) has two dimensions.
#
# Seen (operators with weights, and the model's size of what it was):
#   [1, 576, 256]   MatMul, MatMul     4 bits: MatMulNBits, MatMulNBits   16 %
#   [1, 576, 256]   MatMul, MatMul     4 bits, with Gemm named: MatMulNBits, MatMulNBits   16 %
#   [1, 576, 256]   MatMul, MatMul     8 bits: MatMulInteger, MatMulInteger   25 %
#   [576, 256]      Gemm, Gemm         4 bits: Gemm, Gemm   100 %
#   [576, 256]      Gemm, Gemm         4 bits, with Gemm named: Gemm, Gemm   100 %
#   [576, 256]      Gemm, Gemm         8 bits: MatMulInteger, MatMulInteger   25 %
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/pip install -q --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 ml_dtypes==0.7.0
venv/bin/python - 2>warnings.txt <<'PY' || { cat warnings.txt >&2; exit 1; }
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

torch.manual_seed(0)
projector = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 512)).eval()


def products(model):
    return ", ".join(node.op_type for node in model.graph.node if "MatMul" in node.op_type or node.op_type == "Gemm")


def four_bits(types):
    quantizer = MatMulNBitsQuantizer(
        onnx.load("exact.onnx"), bits=4, block_size=32, is_symmetric=True, op_types_to_quantize=types
    )
    quantizer.process()
    return quantizer.model.model


def eight_bits():
    quantize_dynamic("exact.onnx", "eight.onnx", weight_type=QuantType.QInt8)
    return onnx.load("eight.onnx")


seen = []
for shape in ([1, 576, 256], [576, 256]):
    torch.onnx.export(
        projector, (torch.randn(shape),), "exact.onnx", dynamo=True, external_data=False, verbose=False
    )
    exact = onnx.load("exact.onnx")
    for way, model in (
        ("4 bits", four_bits(None)),
        ("4 bits, with Gemm named", four_bits(("MatMul", "Gemm"))),
        ("8 bits", eight_bits()),
    ):
        share = model.ByteSize() / exact.ByteSize()
        print(f"{shape!s:15} {products(exact):18} {way}: {products(model)}   {share:.0%}".replace("%", " %"))
        seen.append((products(model), round(share, 1)))
three, two = seen[:3], seen[3:]
assert three[0] == three[1] == ("MatMulNBits, MatMulNBits", 0.2), seen
assert two[0] == two[1] == ("Gemm, Gemm", 1.0), seen
assert three[2][1] == two[2][1] == 0.3, seen
PY
