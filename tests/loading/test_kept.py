"""What a user added to tokenizer, config or generation settings is kept, wherever a model goes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig

from llava_stf import convert_checkpoint, load_model
from llava_stf.errors import LlavaStfError, PromptError
from llava_stf.inference import user_turn
from llava_stf.models.llava_stf.vocabulary import suppressed_ids

IMAGE = Image.new("RGB", (60, 80), (200, 40, 90))
ADDED = ("[SEG]", "<loc_1>")


@pytest.fixture(scope="module", params=["stf_folder", "plain_folder"])
def extended(request, tmp_path_factory):
    """A model with two tokens behind its placeholders, eight rows behind these, and two settings for generation."""
    folder = request.getfixturevalue(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    processor.tokenizer.add_tokens(list(ADDED))
    torch.manual_seed(0)
    model.resize_token_embeddings(len(processor.tokenizer) + 8, mean_resizing=False)
    model.generation_config.suppress_tokens = [70]
    model.generation_config.eos_token_id = [2, 71]
    folder = tmp_path_factory.mktemp("extended") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def favour(llava, *ids):
    """Make these the likeliest next ids of a question, in falling order."""
    inputs = llava.encode([[user_turn("Where?", 1)]], [[IMAGE]])
    with torch.no_grad():
        hidden = llava.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        for place, id_ in enumerate(ids):
            llava.model.lm_head.weight[id_] = hidden * (100 - place)
        assert llava.model(**inputs).logits[0, -1].topk(len(ids)).indices.tolist() == list(ids)
    return inputs


@pytest.mark.parametrize("vision_tokens", [None, "all"])
@pytest.mark.parametrize("compile", [False, True])
def test_tokens_of_the_user_are_generated_and_rows_without_one_are_not(extended, vision_tokens, compile):
    fused = json.loads((extended / "config.json").read_text())["model_type"] == "llava_stf"
    llava = load_model(extended, vision_tokens=None if fused else vision_tokens, compile=compile)
    tokenizer = llava.processor.tokenizer
    added = tokenizer.convert_tokens_to_ids(ADDED[0])
    silent = [llava.processor.image_token_id, tokenizer.pad_token_id, len(tokenizer), len(tokenizer) + 7]
    inputs = favour(llava, *silent, 70, added)
    assert llava.generate(inputs, max_new_tokens=1)[0, -1] == added
    assert llava.ask(IMAGE, "Where?", max_new_tokens=1) == ADDED[0]
    assert "".join(llava.stream(IMAGE, "Where?", max_new_tokens=1)) == ADDED[0]
    if vision_tokens is None:
        assert llava.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1] == added
    assert llava.ask(IMAGE, "Where?", max_new_tokens=1, suppress_tokens=[added, 70]) != ADDED[0]


def test_a_token_that_was_added_as_special_stands_in_the_answer(stf_folder):
    llava = load_model(stf_folder)
    tokenizer = llava.processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SEG]"]})
    tokenizer.add_tokens(["<loc>", "<|eot|>"], special_tokens=True)
    llava.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    added = tokenizer.convert_tokens_to_ids(["[SEG]", "<loc>", "<|eot|>"])
    llava.model.generation_config.eos_token_id = [tokenizer.eos_token_id, added[2]]
    for id_, text in zip(added, ("[SEG]", "<loc>", ""), strict=True):
        with torch.no_grad():
            llava.model.lm_head.weight[added] = 0.0
        favour(llava, id_)
        assert llava.ask(IMAGE, "Where?", max_new_tokens=1) == text
        assert "".join(llava.stream(IMAGE, "Where?", max_new_tokens=1)) == text


def test_a_token_added_after_loading_is_generated(stf_folder):
    llava = load_model(stf_folder)
    llava.processor.tokenizer.add_tokens(["[LATER]"])
    later = llava.processor.tokenizer.convert_tokens_to_ids("[LATER]")
    llava.model.resize_token_embeddings(later + 5, mean_resizing=False)
    inputs = favour(llava, later + 1, later)
    assert llava.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1] == later
    assert llava.ask(IMAGE, "Where?", max_new_tokens=1) == "[LATER]"


def test_an_end_token_that_pads_ends_answers(stf_folder):
    model, processor = load_model(stf_folder)
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    assert suppressed_ids(model.config, processor.tokenizer) == [processor.image_token_id]


def test_end_tokens_of_the_generation_settings_end_an_answer(extended):
    llava = load_model(extended)
    favour(llava, 71)
    inputs = llava.encode([[user_turn("Where?", 1)]], [[IMAGE]])
    assert llava.generate(inputs, max_new_tokens=5).shape[1] == inputs["input_ids"].shape[1] + 1


def test_a_generation_config_of_the_call_counts(stf_folder):
    llava = load_model(stf_folder)
    settings = GenerationConfig(do_sample=True, temperature=5.0, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    assert len({llava.ask(IMAGE, "What?", max_new_tokens=8, generation_config=settings) for _ in range(3)}) == 3


def test_the_original_format_keeps_tokens_rows_and_settings(extended, tmp_path):
    original = convert_checkpoint(extended, tmp_path / "original", to="original", progress=False)
    back = convert_checkpoint(original, tmp_path / "back", progress=False)
    before = AutoProcessor.from_pretrained(extended, backend="pil").tokenizer
    rows = {
        extended: "language_model.model.embed_tokens.weight",
        original: "model.embed_tokens.weight",
        back: "language_model.model.embed_tokens.weight",
    }
    tables = {folder: load_file(folder / "model.safetensors")[name] for folder, name in rows.items()}
    for folder in (original, back):
        tokenizer = AutoTokenizer.from_pretrained(folder) if folder == back else before
        for token in ADDED:
            id_ = tokenizer.convert_tokens_to_ids(token)
            assert id_ == before.convert_tokens_to_ids(token)
            assert torch.equal(tables[folder][id_], tables[extended][id_])
        settings = json.loads((folder / "generation_config.json").read_text())
        assert (settings["eos_token_id"], 70 in settings["suppress_tokens"]) == ([2, 71], True)
    assert len(tables[original]) == len(before) == json.loads((original / "config.json").read_text())["vocab_size"]
    assert ADDED[0] in (original / "tokenizer.json").read_text()
    question = "What is [SEG]?"
    answers = [load_model(folder).ask(IMAGE, question, max_new_tokens=6) for folder in (extended, back)]
    assert answers[0] == answers[1] or load_model(extended).model.config.model_type == "llava"


def test_settings_of_a_folder_are_copied_as_they_are(stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.2, "top_p": 0.7, "suppress_tokens": [7], "forced_eos_token_id": 9}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    written = convert_checkpoint(folder, tmp_path / "dst", progress=False) / "generation_config.json"
    assert json.loads(written.read_text()) == settings


@pytest.mark.parametrize("pad", ["<unk>", "</s>"])
def test_a_tokenizer_without_pad_token(pad, plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    removed = ("pad_token",) if pad == "<unk>" else ("pad_token", "unk_token")
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in removed}))
    llava, whole = load_model(folder), load_model(plain_folder)
    assert llava.processor.tokenizer.pad_token == pad
    pairs = [(IMAGE, "What?"), (IMAGE, "What is it, and where?")]
    assert llava.ask_batch(pairs, max_new_tokens=6) == whole.ask_batch(pairs, max_new_tokens=6)


def test_a_template_that_writes_the_first_token_does_not_double_it(plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder, tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text("{{- bos_token -}}" + file.read_text())
    found, expected = (load_model(path).encode([[user_turn("What?", 1)]], [[IMAGE]]) for path in (folder, plain_folder))
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()


def test_a_template_in_the_tokenizers_files_is_taken_if_it_knows_images(plain_folder, tmp_path):
    def questions(template):
        folder = shutil.copytree(plain_folder, tmp_path / str(len(template)))
        (folder / "chat_template.jinja").unlink()
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
        llava = load_model(folder)
        return llava.processor.tokenizer.decode(llava.encode([[user_turn("What?", 1)]], [[IMAGE]])["input_ids"][0])

    content = "{% for item in m['content'] %}{{ item['text'] if item['type'] == 'text' else IMAGE }}{% endfor %}"
    loop = f"{{% for m in messages %}}Q {content} A{{% endfor %}}"
    assert questions(loop.replace("IMAGE", "'<image>'")).endswith("What? A")
    assert questions(loop.replace("IMAGE", "''")).endswith("ASSISTANT:")


def test_control_tokens_in_a_question_are_text(stf_folder):
    llava = load_model(stf_folder)
    tokenizer = llava.processor.tokenizer
    ids = llava.encode([[user_turn("Is <s> or </s> the end?", 1)]], [[IMAGE]])["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert "Is <s> or </s> the end?" in tokenizer.decode(ids)
    chat = llava.chat(IMAGE)
    chat.messages += [user_turn("One</s>", 0), {"role": "assistant", "content": "Two"}]
    _, inputs, _ = chat._next("Three</s>", {})
    assert inputs["input_ids"][0].tolist().count(tokenizer.eos_token_id) == 1  # the template's, behind "Two"


def test_a_question_that_is_no_unicode_is_a_sentence(stf_folder):
    with pytest.raises(PromptError, match="Unicode"):
        load_model(stf_folder).ask(IMAGE, "a \ud83d b")


@pytest.mark.parametrize("conversation", [[], ["What?"], [None]])
def test_a_conversation_that_is_none_is_a_sentence(conversation, stf_folder):
    with pytest.raises(PromptError, match="one message or more"):
        load_model(stf_folder).reply_batch([conversation], [[]])


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\ud83d", "", " "])
def test_what_can_be_no_path_is_no_model(name):
    with pytest.raises(LlavaStfError):
        load_model(name)


def mark(text: str) -> bytes:
    return b"\xef\xbb\xbf" + text.encode()


@pytest.mark.parametrize("encode", [mark, lambda text: text.encode("utf-16")], ids=["UTF-8", "UTF-16"])
def test_files_with_byte_order_marks_are_read(encode, stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 71]}')
    for file in folder.glob("*.json"):
        file.write_bytes(encode(file.read_text()))
    llava = load_model(folder)
    assert llava.model.generation_config.eos_token_id == [2, 71]
    assert llava.ask(IMAGE, "What?", max_new_tokens=4) == load_model(stf_folder).ask(IMAGE, "What?", max_new_tokens=4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("quantization", [None, "8bit"])
def test_positions_that_older_libraries_stored_are_passed_over(dtype, quantization, plain_folder, tmp_path):
    from safetensors.torch import save_file

    folder: Path = shutil.copytree(plain_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17, dtype=dtype)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, quantization=quantization).vision_tokens == 4
    assert convert_checkpoint(folder, tmp_path / "original", to="original", progress=False).is_dir()


def test_a_field_of_the_users_config_is_kept(plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder, tmp_path / "model")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["its_text"] = config["its_own"] = {"a": [1, 2]}
    file.write_text(json.dumps(config))
    load_model(folder).model.save_pretrained(tmp_path / "fused")
    saved = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert (saved["its_own"], saved["text_config"]["its_text"]) == ({"a": [1, 2]}, {"a": [1, 2]})


def test_a_chat_template_of_its_own_goes_through_the_original_format(plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder, tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("USER:", "HUMAN:"))
    original = convert_checkpoint(folder, tmp_path / "original", to="original", progress=False)
    back = convert_checkpoint(original, tmp_path / "back", progress=False)
    assert (back / "chat_template.jinja").read_text() == file.read_text()
    assert load_model(back).processor.chat_template == file.read_text()
