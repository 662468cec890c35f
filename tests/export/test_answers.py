"""An export answers as the model in PyTorch does: logits, ids, texts, streams and conversations."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from llava_stf import load_model
from llava_stf.cli import main
from llava_stf.export.model import ExportedLlava
from llava_stf.export.onnx_files import _write
from llava_stf.inference import user_turn
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.reduction import apply_reduction

IMAGES = [Image.radial_gradient("L").convert("RGB"), Image.linear_gradient("L").convert("RGB").resize((80, 50))]
PAIRS = [(IMAGES[0], "What is it?"), (IMAGES[1], "Why?"), (IMAGES, "Which of these two is brighter?")]
# The same products in another order, in float32: the random models here stay within 1e-5, the promise is 1e-3.
TOLERANCE = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="session", params=["openvino", "onnx"])
def exported(request):
    """The export, loaded."""
    return load_model(request.getfixturevalue(f"{request.param}_folder"))


def encoded(llava):
    """A batch of two prompts of different lengths, the shorter one padded."""
    return llava.encode([[user_turn("What is it?", 1)], [user_turn("?", 1)]], [[image] for image in IMAGES])


def test_the_processor_prepares_the_same(llava, exported):
    assert isinstance(exported.model, ExportedLlava)
    assert exported.vision_tokens == llava.vision_tokens
    ours, theirs = encoded(llava), encoded(exported)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_logits_of_a_prompt_of_single_tokens_and_of_a_second_chunk(llava, exported):
    # Beyond the prompt, because an engine may keep its cache in 8 bits, which the prompt's own logits do not show.
    inputs = encoded(llava)
    mask, caches = inputs["attention_mask"], {}
    chunks = [{"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}]
    generator = torch.Generator().manual_seed(0)
    for length in (*[1] * 20, 7):
        chunks.append({"input_ids": torch.randint(3, 250, (2, length), generator=generator)})
    for number, chunk in enumerate(chunks):
        if number:
            mask = torch.cat([mask, mask.new_ones(2, chunk["input_ids"].shape[1])], dim=-1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -chunk["input_ids"].shape[1] :]
        found = []
        for name, pipeline in (("torch", llava), ("engine", exported)):
            fixed = {"attention_mask": mask, "position_ids": positions, "use_cache": True}
            outputs = pipeline.model(**chunk, **fixed, **({CACHE: caches[name]} if number else {}))
            caches[name] = outputs[CACHE]
            found.append(outputs.logits[mask[:, -chunk["input_ids"].shape[1] :] == 1])
        torch.testing.assert_close(found[1], found[0], **TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 2.0},
        {"use_cache": False},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_generate_gives_the_same_ids(options, llava, exported):
    found = []
    for pipeline in (llava, exported):
        torch.manual_seed(0)
        found.append(pipeline.generate(encoded(pipeline), max_new_tokens=12, **options))
    assert torch.equal(*found)


def test_answers_streams_and_conversations(llava, exported):
    wanted = llava.ask_batch(PAIRS, batch_size=2, max_new_tokens=16)
    assert exported.ask_batch(PAIRS, batch_size=2, max_new_tokens=16) == wanted
    assert "".join(exported.stream(*PAIRS[0], max_new_tokens=16)).strip() == wanted[0]
    chats = llava.chat(IMAGES[0]), exported.chat(IMAGES[0])
    for question in ("What is it?", "Really?"):
        answers = [chat.ask(question, max_new_tokens=8) for chat in chats]
        assert answers[0] == answers[1]


@torch.no_grad()
def test_a_mask_of_another_length_is_refused_before_the_engine_sees_it(exported):
    inputs = encoded(exported)
    first = exported.model(**inputs)
    more = {"input_ids": torch.tensor([[40], [41]]), CACHE: first[CACHE]}
    with pytest.raises(ValueError, match=r"Expected a mask of 2 rows and \d+ tokens, found \(2, \d+\)"):
        exported.model(**more, attention_mask=inputs["attention_mask"])
    assert exported.model(**more).logits.shape[:2] == (2, 1)


def test_a_method_at_eight_bits_by_the_command(plain_folder, tmp_path, capsys):
    image = tmp_path / "image.png"
    IMAGES[0].save(image)
    reduced = ["--method", "pool", "--vision-tokens", "4"]
    assert (
        main(["export", str(plain_folder), str(tmp_path / "out"), *reduced, "--weights", "int8", "--kv-cache", "u8"])
        == 0
    )
    capsys.readouterr()
    assert main(["ask", str(image), "What?", "--model", str(tmp_path / "out"), "--json", "--max-new-tokens", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["vision_tokens_per_image"] == 4
    plain = load_model(plain_folder, vision_tokens="all", device="cpu", dtype="float32")
    apply_reduction(plain.model, plain.processor, "pool", vision_tokens=4)
    with torch.no_grad():
        exact, near = (one.model(**encoded(one)).logits[:, -1] for one in (plain, load_model(tmp_path / "out")))
    assert (
        1e-6 < (near - exact).std() / exact.std() < 0.2
    )  # a weight is half a 255th of its row's range off, five layers


def test_stock_openvino_genai_answers_by_the_folder(llava, openvino_folder):
    import openvino as ov
    import openvino_genai

    pipeline = openvino_genai.VLMPipeline(openvino_folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    options = openvino_genai.GenerationConfig()
    options.max_new_tokens, options.apply_chat_template, options.do_sample = 8, False, False
    # It puts a newline behind as many placeholders as the graph gives tokens, and tokenises the text at once.
    square, tokenizer = IMAGES[0], llava.processor.tokenizer
    answer = pipeline.generate(
        "USER: <image>What is it? ASSISTANT:", images=[ov.Tensor(np.asarray(square)[None])], generation_config=options
    )
    ids = tokenizer("USER: " + "<image>" * llava.vision_tokens + "\nWhat is it? ASSISTANT:", return_tensors="pt")
    assert answer.perf_metrics.get_num_input_tokens() == ids["input_ids"].shape[1]
    pixels = llava.processor(images=square, text="<image>", return_tensors="pt")["pixel_values"]
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], "pixel_values": pixels}
    new = llava.model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    assert answer.texts[0] == tokenizer.decode(new, skip_special_tokens=True)


def test_export_to_onnx_warns_of_nothing(tmp_path, caplog):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    logger = logging.getLogger("torch.onnx")
    logger.addHandler(caplog.handler)  # torch lets nothing through to the root
    try:
        _write(program, tmp_path / "linear.onnx", ["x"], ["y"], "fp32")
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.name.startswith("torch.onnx")]
