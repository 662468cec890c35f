"""Labelled images for measuring an encoder, and the features of all of them.

Preprocessing of the papers' tests: the short side resized to int(size * 256 / 224), the middle cut out, normalised with
the encoder's own statistics (docs/encoders/methods.md, Measuring).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llava_stf.data.sources import is_saved_dataset
from llava_stf.encoders.pretrain.augment import normalize
from llava_stf.encoders.pretrain.data import (
    ArrayImages,
    FileImages,
    Images,
    RowImages,
    image_files,
    read_arrays,
    square,
)
from llava_stf.errors import (
    CheckpointError,
    DataError,
    LlavaStfError,
    MissingDependencyError,
    ModelNotFoundError,
    one_line,
)

Pooling = Literal["class", "mean"]
_TRAIN, _TEST = ("train",), ("test", "val", "validation")


@dataclass(frozen=True)
class Labelled:
    """Images and their classes, int64 [n]."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test part in percent: after the last epoch, and of the best epoch, which the papers report."""

    last: float
    best: float


@dataclass(frozen=True)
class Encoder:
    """An encoder to measure, in evaluation mode, and how its images are prepared."""

    model: Any  # of transformers; its last_hidden_state has the patches last, special tokens in front of them
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooling: Pooling = "class"

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.model.device


def load_encoder(folder: str | Path, device: str | torch.device = "cpu", *, pooling: Pooling = "class") -> Encoder:
    """The encoder of a transformers folder or id with its image processor's statistics.

    Of a whole model, such as a CLIP or SigLIP, it is the vision part. `pooling` is what is measured: the class token,
    as in the papers, or the mean of the patches, for encoders whose class token was not trained (MGC) or that have none
    (SigLIP).

    Raises:
        ModelNotFoundError: there is none.
        CheckpointError: it is no ViT, or lacks weights.
        LlavaStfError: a device that is not there.
    """
    from transformers import AutoConfig, AutoModel, CLIPImageProcessorPil

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without it
        raise LlavaStfError(f"cannot compute on device '{device}': {one_line(error)}") from error
    try:
        config = AutoConfig.from_pretrained(folder)
        config = getattr(config, "vision_config", config)
        options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        model, report = AutoModel.from_pretrained(folder, config=config, output_loading_info=True, **options)
        # Its fields alone: older transformers load no processor by name where torchvision is not installed.
        processor, _ = CLIPImageProcessorPil.get_image_processor_dict(folder)
        mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFoundError(f"no encoder with an image processor at {folder}: {error}") from error
    if not all(isinstance(getattr(config, name, None), int) for name in ("image_size", "patch_size")):
        raise CheckpointError(
            f"{folder} is no Vision Transformer for square images of one size (image_size, patch_size), but a "
            f"{config.model_type}"
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:  # transformers would draw them
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of a {type(model).__name__}, the first is {missing[0]}: a LLaVA is "
            "no encoder, its tower may be one."
        )
    return Encoder(model.to(device).eval(), config.image_size, mean, std, pooling)


def open_labelled(data: str, *, image_column: str = "image", label_column: str = "label") -> tuple[Labelled, Labelled]:
    """The training and the test part of `data`.

    `data` is an npz file with train_images, train_labels, test_images and test_labels; a folder with train/ and test/
    (or val/), in each a folder per class; or a Hugging Face data set with splits of these names.

    Raises:
        DataError: there is no such thing, or has images without a class of the training part.
    """
    path = Path(data)
    if path.suffix == ".npz":
        train, test = (_from_arrays(path, part) for part in ("train", "test"))
    elif (path / "train").is_dir() and not (path / "train" / "state.json").exists():
        classes = _class_folders(path / "train")
        train, test = (_from_folder(path, names, classes) for names in (_TRAIN, _TEST))
    else:
        train, test = (_from_dataset(data, names, image_column, label_column) for names in (_TRAIN, _TEST))
    for name, part in (("training", train), ("test", test)):
        if part.labels.min() < 0:
            raise DataError(f"the {name} part of {data} has the label {part.labels.min()}: classes count from 0")
    return train, test


@torch.inference_mode()
def features(encoder: Encoder, part: Labelled, *, batch_size: int = 256) -> Tensor:
    """The class token after the final LayerNorm (or what `encoder.pooling` says) of every image: float32 [n, D], CPU.

    The released kNN script leaves the random classifier in place and so measures a random projection of this
    (docs/encoders/methods.md, Nearest neighbours); here it is the feature itself.
    """
    rows = [
        pooled(encoder, evaluation_batch(encoder, part, numbers)).cpu()
        for numbers in torch.arange(len(part)).split(batch_size)
    ]
    return torch.cat(rows)


def pooled(encoder: Encoder, pixels: Tensor) -> Tensor:
    """The feature of prepared images [b, 3, size, size]: float32 [b, D] on the device.

    Raises:
        LlavaStfError: the class token is asked for and there is none.
    """
    states = encoder.model(pixel_values=pixels).last_hidden_state
    patches = (encoder.size // encoder.model.config.patch_size) ** 2
    if encoder.pooling == "mean":
        return states[:, -patches:].mean(dim=1).float()
    if states.shape[1] == patches:
        raise LlavaStfError("this encoder has no class token: measure the mean of its patches (pooling mean)")
    return states[:, 0].float()


def evaluation_batch(encoder: Encoder, part: Labelled, numbers: Tensor, *, border: bool = True) -> Tensor:
    """The images of these numbers as the papers' tests prepare them: float [b, 3, size, size] on the device.

    Without `border` the short side is resized to the encoder's size itself, so that none is cut off.
    """
    larger = int(encoder.size * 256 / 224) if border else encoder.size
    margin = (larger - encoder.size) // 2
    pixels = torch.stack([square(part.images[int(number)], larger) for number in numbers])
    pixels = pixels[..., margin : margin + encoder.size, margin : margin + encoder.size]
    return normalize(pixels.to(encoder.device).float() / 255, encoder.mean, encoder.std)


def _from_arrays(path: Path, part: str) -> Labelled:
    images = read_arrays(path, "images", (f"{part}_images",))
    labels = read_arrays(path, "labels", (f"{part}_labels",))
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{part}_labels of {path} must be one integer per image, [{len(images)}], found {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return Labelled(ArrayImages(images), torch.from_numpy(labels.astype(np.int64)))


def _from_folder(path: Path, names: tuple[str, ...], classes: list[str]) -> Labelled:
    folder = next((path / name for name in names if (path / name).is_dir()), None)
    if folder is None:
        raise DataError(f"{path} has no folder {' or '.join(names)} with a folder per class")
    if unknown := [name for name in _class_folders(folder) if name not in classes and image_files(folder / name)]:
        raise DataError(f"{folder} holds images of classes that {path / 'train'} does not have: {', '.join(unknown)}")
    files, labels = [], []
    for number, name in enumerate(classes):
        found = image_files(folder / name)
        files += found
        labels += [number] * len(found)
    if not files:
        raise DataError(f"{folder} holds no images in a folder per class ({', '.join(classes) or 'none'})")
    return Labelled(FileImages(files), torch.tensor(labels))


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _from_dataset(data: str, names: tuple[str, ...], image_column: str, label_column: str) -> Labelled:
    splits = _splits(data)
    name = next((name for name in names if name in splits), None)
    if name is None:
        raise DataError(f"the data set {data} has no split {' or '.join(names)}, but {', '.join(splits)}")
    rows = splits[name]
    if label_column not in rows.column_names:
        raise DataError(f"the data set {data} has no column {label_column}, but {', '.join(rows.column_names)}")
    labels = list(rows[label_column])
    if strange := [label for label in labels if not isinstance(label, int)]:
        raise DataError(
            f"column {label_column} of the data set {data} must hold whole numbers, found {strange[0]!r}; "
            "class_encode_column of datasets makes them of names"
        )
    return Labelled(RowImages(rows, image_column, data), torch.tensor(labels, dtype=torch.int64))


def _splits(data: str) -> Any:
    """The splits of a Hugging Face data set by name. Raises `DataError`, `MissingDependencyError`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"the data set {data} needs the package datasets: pip install 'llava-stf[encoders]'"
        ) from error
    if Path(data).is_dir() and not is_saved_dataset(Path(data)):
        raise DataError(
            f"{data} holds no labelled images: a folder has train/ and test/ with a folder per class in each, or is "
            "what save_to_disk of datasets wrote"
        )
    try:
        found = datasets.load_from_disk(data) if Path(data).is_dir() else datasets.load_dataset(data)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot read the data set {data}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{data} is one split; a data set with train and test is needed")
    return found
