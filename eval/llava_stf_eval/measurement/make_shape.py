"""A checkpoint of random weights in a shape of `bench speed`, in bfloat16, with the bundled model's tokenizer.

    python -m llava_stf_eval.measurement.make_shape 1b runs/1b
    llava-stf export runs/1b runs/1b-int8 --weights int8 --vision-tokens 144

What it answers is noise; what an answer costs is what the shape costs. `--layers` and `--blocks` make it shorter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from llava_stf import load_model
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.publish import publish, refuse_existing
from llava_stf_eval.speed.shapes import SHAPES, build_model, shape_config


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="to write; it must not exist yet")
    parser.add_argument("--layers", type=count, help="of the language model; default: all of the shape")
    parser.add_argument("--blocks", type=count, help="of the tower; default: all of the shape")
    options = parser.parse_args()
    refuse_existing(options.folder)
    bundled, processor = load_model("tiny-full", device="cpu")
    config = shape_config(options.shape)
    config.image_token_index = config.image_token_id = bundled.config.image_token_id
    config.text_config.num_hidden_layers = options.layers or config.text_config.num_hidden_layers
    config.vision_config.num_hidden_layers = options.blocks or config.vision_config.num_hidden_layers
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, getattr(bundled.config.text_config, name))
    model = build_model(options.shape, device=torch.device("cpu"), dtype=torch.bfloat16, config=config)
    model.generation_config = bundled.generation_config
    side = config.vision_config.image_size
    processor.image_processor.crop_size = {"height": side, "width": side}
    processor.image_processor.size = {"shortest_edge": side}
    with publish(options.folder) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


if __name__ == "__main__":
    run(main)
