"""Names of checkpoints: local paths first, then the hub, of which only the needed files are fetched."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from llava_stf.conversion.locate import is_hub_id, locate
from llava_stf.errors import ModelNotFoundError

FILES = [
    "README.md", "config.json", "pytorch_model.bin", "model.safetensors", "tf_model.h5", "tokenizer.model",
    "stage1/config.json", "stage1/mm_projector.bin", "old/pytorch_model-1.bin", "old/pytorch_model.bin.index.json",
]  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that lists `FILES` of any repository and notes which of them are asked for."""
    asked = []

    def download(repo, *, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        asked.extend(allow_patterns)
        for file in allow_patterns:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        return str(tmp_path)

    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in FILES])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repo, revision=None: listing)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("subfolder", "weights", "files"),
    [
        (None, True, {"config.json", "model.safetensors", "tokenizer.model"}),
        (None, False, {"config.json", "tokenizer.model"}),
        ("stage1", True, {"stage1/config.json", "stage1/mm_projector.bin"}),
        ("old", True, {"old/pytorch_model-1.bin", "old/pytorch_model.bin.index.json"}),
    ],
)
def test_only_what_is_needed_is_fetched(subfolder, weights, files, hub, tmp_path):
    path = locate("somebody/model", subfolder=subfolder, weights=weights)
    assert path == (tmp_path / subfolder if subfolder else tmp_path)
    assert set(hub) == files


def test_a_subfolder_that_the_hub_does_not_have(hub):
    with pytest.raises(ModelNotFoundError, match="no subfolder 'nowhere'"):
        locate("somebody/model", subfolder="nowhere")


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    def fail(self, repo, revision=None):
        raise HTTPError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(ModelNotFoundError, match="hub cannot be reached"):
        locate("somebody/model")


def test_a_local_path_wins(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "model").mkdir(parents=True)
    assert locate("somebody/model").resolve() == tmp_path / "somebody" / "model"
    assert not hub


@pytest.mark.parametrize("name", ["model", "a/b/c", "./a", "/a/b", "a/", "~/a", "..", "a/b c"])
def test_what_is_no_hub_id(name):
    assert not is_hub_id(name)
