import pytest

from llava_stf import load_model
from llava_stf.export.write import export_model


@pytest.fixture(scope="session")
def llava(stf_folder):
    """The model in PyTorch."""
    return load_model(stf_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def openvino_folder(llava, tmp_path_factory):
    """Its export for OpenVINO."""
    return export_model(llava, tmp_path_factory.mktemp("exports") / "openvino")


@pytest.fixture(scope="session")
def onnx_folder(llava, tmp_path_factory):
    """Its export for ONNX Runtime."""
    return export_model(llava, tmp_path_factory.mktemp("exports") / "onnx", format="onnx")
