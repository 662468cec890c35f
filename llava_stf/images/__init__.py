"""Read one image from wherever the user has it, and fetch it from the public internet."""

from llava_stf.images.load import (
    FORMATS,
    MAX_ASPECT_RATIO,
    MAX_DOWNLOAD_BYTES,
    MAX_DOWNLOAD_SECONDS,
    MAX_SIDE,
    OFFLINE_VARIABLES,
    ImageHeader,
    ImageSource,
    load_image,
    read_header,
)
from llava_stf.images.rgb import to_rgb

__all__ = [
    "FORMATS",
    "MAX_ASPECT_RATIO",
    "MAX_DOWNLOAD_BYTES",
    "MAX_DOWNLOAD_SECONDS",
    "MAX_SIDE",
    "OFFLINE_VARIABLES",
    "ImageHeader",
    "ImageSource",
    "load_image",
    "read_header",
    "to_rgb",
]
