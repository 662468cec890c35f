"""A LLaVA-NeXT on the weights of the bundled LLaVA for all tokens: it sees an image whole, and in up to four tiles.

    python -m llava_stf_eval.measurement.make_tiled runs/next

Its tiles are of 112 px, so that an image of 224 px is shown at its own size, and at half of it as a whole. Newlines are
new and start at zero; what they and the order of tiles mean is left to training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava_stf import load_model
from llava_stf.io.command import run
from llava_stf.io.publish import publish, refuse_existing


def make_tiled(output: Path) -> None:
    """Write the model, in float32, and its processor to the new folder `output`.

    Raises:
        LlavaStfError: `output` exists.
    """
    refuse_existing(output)
    base, processor = load_model("tiny-full", vision_tokens="all", device="cpu", dtype="float32")
    plain, side = base.config, base.config.vision_config.image_size
    pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
    config = LlavaNextConfig(
        vision_config=plain.vision_config,
        text_config=plain.text_config,
        image_token_index=plain.image_token_id,
        image_seq_length=plain.image_seq_length,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=plain.vision_feature_layer,
        tie_word_embeddings=plain.tie_word_embeddings,
    )
    model = LlavaNextForConditionalGeneration(config)
    weights = {**base.state_dict(), "model.image_newline": torch.zeros(plain.text_config.hidden_size)}
    model.load_state_dict(weights)
    model.generation_config = base.generation_config
    own = processor.image_processor
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints,
        image_mean=own.image_mean,
        image_std=own.image_std,
    )
    with publish(output) as folder:
        model.save_pretrained(folder)
        LlavaNextProcessor(
            images,
            processor.tokenizer,
            patch_size=processor.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=processor.chat_template,
        ).save_pretrained(folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    make_tiled(parser.parse_args().output)


if __name__ == "__main__":
    run(main)
