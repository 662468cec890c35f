"""Random checkpoints in the authors' format, of any size, and what they compute, told by their raw tensors alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F


@dataclass
class Original:
    """A checkpoint in the authors' format; `write` puts it into a folder, `logits` computes it step by step."""

    grid: int = 6
    window: int = 3
    layers: tuple[int, ...] = (-2, 18, 12, 6)
    depth: int = 20
    width: int = 16
    hidden: int = 48
    block_hidden: int = 40
    spatial_hidden: int = 56
    vocab: int = 90
    act: str = "gelu"
    plain: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float32
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(self.seed)
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=self.width, intermediate_size=24, num_hidden_layers=self.depth, num_attention_heads=2,
                image_size=8 * self.grid, patch_size=8, hidden_act=self.act, initializer_factor=3.0,
            )
        ).eval()  # fmt: skip
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocab, hidden_size=self.hidden, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rope_theta=5000.0,
                rms_norm_eps=1e-6, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
            )
        ).eval()  # fmt: skip
        c, joined = self.width, self.width * self.window**2
        sizes = {"mm_projector.0": (self.hidden, c), "mm_projector.2": (self.hidden, self.hidden)}
        if not self.plain:
            sizes = {
                "mm_projector_crosslayer.0": (self.block_hidden, c * len(self.layers)),
                "mm_projector_crosslayer.2": (c, self.block_hidden),
                "mm_projector.0": (self.spatial_hidden, joined),
                "mm_projector.2": (self.hidden, self.spatial_hidden),
            }
        self.projector = {}
        for name, (rows, columns) in sizes.items():
            self.projector[f"model.{name}.weight"] = torch.randn(rows, columns) / columns**0.5
            self.projector[f"model.{name}.bias"] = torch.randn(rows)

    @classmethod
    def small(cls, **sizes) -> "Original":
        """One with few tensors, for tests that are not about sizes."""
        return cls(**{"depth": 3, "layers": (-2,), **sizes})

    def tower_tensors(self) -> dict[str, torch.Tensor]:
        names = {name.removeprefix("vision_model."): tensor for name, tensor in self.tower.state_dict().items()}
        return {f"vision_model.{name}": tensor.to(self.dtype).contiguous() for name, tensor in names.items()}

    def tensors(self, *, tower: bool = True) -> dict[str, torch.Tensor]:
        """The full state dict in the authors' naming."""
        state = {name: tensor.clone() for name, tensor in self.llm.state_dict().items()} | self.projector
        if tower:
            state |= {f"model.vision_tower.vision_tower.{name}": t for name, t in self.tower_tensors().items()}
        return {name: tensor.to(self.dtype).contiguous() for name, tensor in state.items()}

    def config(self) -> dict:
        text = self.llm.config
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        return {
            **{name: getattr(text, name) for name in names},
            "model_type": "llava_llama", "vocab_size": self.vocab, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "rope_scaling": None, "hidden_act": "silu",
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
            "mm_vision_tower": "tower", "mm_hidden_size": self.width, "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
            "torch_dtype": str(self.dtype).removeprefix("torch."), **self.extra,
        }  # fmt: skip

    def write(self, folder: Path, *, tower: bool = True, shards: int = 1, pickle: bool = False) -> Path:
        """Write the checkpoint, its tower in the folder `tower` beside the weights."""
        folder.mkdir(parents=True)
        write_weights(folder, self.tensors(tower=tower), shards=shards, pickle=pickle)
        (folder / "config.json").write_text(json.dumps(self.config()))
        self.write_tower(folder / "tower")
        return folder

    def write_tower(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        save_file(self.tower_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
        config = self.tower.config.to_dict() | {"model_type": "clip_vision_model"}
        (folder / "config.json").write_text(json.dumps(config))
        size = {"shortest_edge": 8 * self.grid}
        crop = {"height": 8 * self.grid, "width": 8 * self.grid}
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": size, "crop_size": crop}))
        return folder

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor, before: list[int], after: list[int]) -> torch.Tensor:
        """Logits [L, vocab] of a prompt: ids, one image, ids."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states

        def mlp(name: str, x: torch.Tensor) -> torch.Tensor:
            weights = [self.projector[f"model.{name}.{i}.{kind}"] for i in (0, 2) for kind in ("weight", "bias")]
            return F.linear(F.gelu(F.linear(x, *weights[:2])), *weights[2:])

        if self.plain:
            image = mlp("mm_projector", states[-2][:, 1:])
        else:
            x = mlp("mm_projector_crosslayer", torch.cat([states[layer][:, 1:] for layer in self.layers], -1))
            x = x.transpose(1, 2).unflatten(-1, (self.grid, self.grid))
            image = mlp("mm_projector", F.unfold(x, self.window, stride=self.window).transpose(1, 2))
        embed = self.llm.get_input_embeddings()
        parts = [embed(torch.tensor([before])), image, embed(torch.tensor([after]))]
        return self.llm(inputs_embeds=torch.cat(parts, 1)).logits[0]

    def pixels(self) -> torch.Tensor:
        return torch.randn(1, 3, 8 * self.grid, 8 * self.grid, generator=torch.Generator().manual_seed(1))


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], *, shards: int = 1, pickle: bool = False) -> None:
    """Weights as one file or as shards with an index, safetensors or pickles."""
    stem, suffix = ("pytorch_model", "bin") if pickle else ("model", "safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: tensors[name] for name in names[number::shards]}
        if pickle:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@torch.no_grad()
def image_logits(model, pixel_values: torch.Tensor, before: list[int], after: list[int]) -> torch.Tensor:
    """Logits [L, rows] of a loaded model for the same prompt as `Original.logits`."""
    ids = [*before, *[model.config.image_token_id] * model.config.image_seq_length, *after]
    return model(input_ids=torch.tensor([ids]), pixel_values=pixel_values.to(model.dtype)).logits[0]


@pytest.fixture(scope="session")
def original_class():
    return Original


@pytest.fixture(scope="session")
def weights_writer():
    return write_weights


@pytest.fixture(scope="session")
def logits_of():
    return image_logits
