"""Training on images in tiles: batches of several sizes, every stage, resumption, and results that load."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from llava_stf import load_model
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.data.templates import template_of
from llava_stf.errors import LlavaStfError
from llava_stf.io.runs import newest_checkpoint
from llava_stf.loading.merge import merge_lora
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_next_video, tiny_llava_onevision, tiny_video_llava
from llava_stf.training.data import collate
from llava_stf.training.optim import part_of
from llava_stf_eval.measurement.make_tiled import make_tiled

from .conftest import divergence_from_all_tokens

SIZES = {"wide": (150, 40), "high": (20, 190), "square": (56, 56), "large": (180, 170), "thin": (400, 6)}
MAKE = {"next": tiny_llava_next, "onevision": tiny_llava_onevision}
TILE = {"next": 4, "onevision": 9}  # tokens of a tile at a quarter


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module", params=MAKE)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind, tmp_path_factory):
    model, processor = MAKE[kind]()
    folder = tmp_path_factory.mktemp(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sized_images(tmp_path_factory):
    """data.json, captions.json and images of very different shapes."""
    folder, rng = tmp_path_factory.mktemp("sizes"), np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [
        {"id": name, "image": f"{name}.png", "conversations": turns("<image>\nWhat?", name, "And?", "No.")}
        for name in SIZES
    ]
    pair = {"id": "pair", "image": ["wide.png", "high.png"], "conversations": turns("<image><image>\nSame?", "No.")}
    text = {"id": "text", "conversations": turns("Who?", "A square.")}
    (folder / "data.json").write_text(json.dumps([*rows, pair, text]))
    captions = [{**row, "conversations": turns("<image>", row["id"])} for row in rows]
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture
def train(run, base, sized_images):
    def start(name="out", data="data.json", **options):
        return run(name=name, data=sized_images / data, **{"base": str(base), "group_by_length": False, **options})

    return start


def weights(folder):
    return load_file(folder / "model.safetensors")


def losses(output):
    state = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def prepare(llava, folder):
    template = template_of(llava.processor)
    return Preparation(llava.processor, name="", images=folder, template=template, max_length=4096)


def test_a_batch_of_sizes_gives_the_loss_of_its_samples(base, sized_images):
    llava = load_model(base, dtype="float32")
    rows = open_records(str(sized_images / "data.json"))
    samples = [prepare(llava, sized_images)(rows[number], number) for number in range(len(rows))]

    def summed(batch):
        names = batch.pop("sample_ids")
        logits = llava.model(**batch).logits[:, :-1].flatten(0, 1)
        return len(names), functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")

    with torch.no_grad():
        _, together = summed(collate(samples, pad_token_id=0))
        alone = [summed(collate([sample], pad_token_id=0))[1] for sample in samples]
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-3)


def test_placeholders_are_those_of_the_processor(base, sized_images, kind):
    llava = load_model(base)
    rows = open_records(str(sized_images / "data.json"))
    sample = prepare(llava, sized_images)(rows[3], 3)
    with Image.open(sized_images / "large.png") as image:
        ids = llava.processor(images=image, text="<image>")["input_ids"][0]
    found = int((sample["input_ids"] == llava.processor.image_token_id).sum())
    assert found == ids.count(llava.processor.image_token_id) > TILE[kind]


@pytest.mark.parametrize("chosen", [{}, {"vision_tokens": "all"}, {"reduction": "pool"}], ids=["stf", "all", "pool"])
def test_instruction_tuning_loads_again_and_answers_in_its_own_template(train, base, sized_images, chosen):
    output = train(max_steps=2, save_steps=2, **chosen)
    tokens = chosen.get("vision_tokens")
    llava, before = load_model(output, vision_tokens=tokens), load_model(base, vision_tokens="all")
    assert llava.processor.chat_template == before.processor.chat_template
    assert isinstance(llava.ask(sized_images / "wide.png", "What?", max_new_tokens=2), str)
    newline = "image_newline" if "image_newline" in weights(output) else "model.image_newline"
    assert not torch.equal(weights(output)[newline], weights(base)[newline])


def test_alignment_trains_projector_and_newline_alone(train, base, tmp_path):
    load_model(base).model.save_pretrained(tmp_path / "start")
    before, after = weights(tmp_path / "start"), weights(train(data="captions.json", stage="align"))
    assert {part_of(name) for name in before if not torch.equal(before[name], after[name])} == {"projector"}


def test_a_resumed_run_ends_where_the_whole_one_does(train, tmp_path):
    options = {"max_steps": 4, "save_steps": 2}
    whole = train("whole", **options)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = train("resumed", resume=True, **options)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=1e-6, msg=name)


def test_adapters_load_and_merge_to_the_same_model(train, tmp_path, sized_images):
    output = train(lora_rank=2, max_steps=2)
    merge_lora(output, tmp_path / "merged")
    answers = []
    for folder in (output, tmp_path / "merged"):
        llava = load_model(folder, dtype="float32")
        with Image.open(sized_images / "wide.png") as image:
            inputs = llava.processor(images=image, text="<image>What?", return_tensors="pt")
        with torch.inference_mode():
            answers.append(llava.model(**inputs).logits)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)


def test_adapters_on_4_bit_weights_load_and_merge_to_the_same_model(run, tmp_path, sized_images):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    def logits(folder, **options):
        llava = load_model(folder, dtype="float32", **options)
        llava.model.get_input_embeddings().weight.requires_grad_(True)  # see test_lora.py
        with Image.open(sized_images / "wide.png") as image:
            inputs = llava.processor(images=image, text="<image>What?", return_tensors="pt")
        return llava, llava.model(**inputs).logits.detach()

    make_tiled(tmp_path / "base")
    options = {"base": str(tmp_path / "base"), "data": sized_images / "data.json", "max_length": 1024}
    output = run(quantization="4bit", lora_rank=2, max_steps=2, **options)
    trained, expected = logits(output)
    assert sum(isinstance(module, Linear4bit) for module in trained.model.model.language_model.modules()) == 6 * 7
    assert isinstance(trained.ask(sized_images / "high.png", "What?", max_new_tokens=2), str)
    merged, found = logits(merge_lora(output, tmp_path / "merged", dtype="float32"))
    assert not any(isinstance(module, Linear4bit) for module in merged.model.modules())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # in logits of about 10
    assert (logits(tmp_path / "base", quantization="4bit")[1] - expected).abs().max() > 0.1


def test_distillation_is_towards_the_untouched_model(train, base, sized_images):
    output = train(stage="distill", per_device_batch_size=7, max_steps=2, save_steps=2)
    rows = open_records(str(sized_images / "data.json"))
    expected = divergence_from_all_tokens(base, rows, lambda llava: prepare(llava, sized_images))
    assert expected > 1e-4
    assert losses(output)[0] == pytest.approx(expected, rel=1e-3)
    newline = "image_newline" if "image_newline" in weights(output) else "model.image_newline"
    assert torch.equal(weights(output)[newline], weights(base)[newline])


def test_several_budgets_match_image_tokens(train, kind):
    budgets = (TILE[kind], 1)
    output = train(stage="distill", vision_tokens=budgets, max_steps=4, save_steps=4, feature_weight=1.0)
    assert all(np.isfinite(losses(output)))
    assert load_model(output).model.config.vision_token_counts == list(budgets)


def test_streamed_rows_train(train, sized_images, tmp_path):
    roles = {"human": "user", "gpt": "assistant"}
    rows = []
    for row in json.loads((sized_images / "captions.json").read_text()):
        turns = [(roles[turn["from"]], turn["value"].replace("<image>", "")) for turn in row["conversations"]]
        messages = [
            {"role": role, "content": [*[{"type": "image"}] * (role == "user"), {"type": "text", "text": text}]}
            for role, text in turns
        ]
        rows.append({"images": [str(sized_images / row["image"])], "messages": messages})
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    assert len(losses(train(data=tmp_path / "rows", streaming=True, max_steps=2, save_steps=2))) == 2


def test_images_train_a_model_of_videos(tmp_path, run, sized_images):
    model, processor = tiny_llava_next_video()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    output = run(data=sized_images / "data.json", base=str(tmp_path / "base"), max_steps=1)
    assert isinstance(load_model(output).ask(sized_images / "wide.png", "What?", max_new_tokens=2), str)


def test_two_towers_are_refused(tmp_path, run, sized_images):
    model, processor = tiny_video_llava()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    with pytest.raises(LlavaStfError, match="video_llava is none"):
        run(data=sized_images / "data.json", base=str(tmp_path / "base"))
