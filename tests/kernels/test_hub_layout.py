"""The package as a kernel hub would load it: from any path, under any name, beside another version."""

import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch

import llava_stf_kernels


def load_from(folder, name):
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_versions_live_side_by_side(tmp_path, device):
    folder = tmp_path / "build" / "torch-cuda"
    shutil.copytree(Path(llava_stf_kernels.__file__).parent, folder)
    names = (folder / "_ops.py").read_text()
    (folder / "_ops.py").write_text(names.replace("llava_stf", "llava_stf_0a1b2c3"))
    other = load_from(folder, "another_name")
    states = torch.randn(2, 16, 8, device=device, requires_grad=True)
    for version in (llava_stf_kernels, other):
        version.pool_tokens(states, 2, backend="triton").sum().backward()
    assert {"pool_tokens", "fuse_blocks", "place_tokens"} <= set(dir(torch.ops.llava_stf_0a1b2c3))
