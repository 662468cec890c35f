"""Config, generation, tokenizer and processor files: as other versions wrote them they load alike, and damaged in any
value they load, or one sentence says what is wrong.
"""

import copy
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_stf import load_model
from llava_stf.errors import LlavaStfError
from llava_stf.inference import user_turn

IMAGE = Image.radial_gradient("L").convert("RGB").resize((60, 80))
FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")
CONFIG, GENERATION, PROCESSOR, TOKENIZER = FILES
PREPROCESSOR = "preprocessor_config.json"


def read(folder):
    """The content of a folder's JSON files, and its chat template as a text."""
    files = {name: json.loads((folder / name).read_text()) for name in FILES}
    return files | {"chat_template.jinja": (folder / "chat_template.jinja").read_text()}


def write(folder, files):
    for name in (*FILES, PREPROCESSOR, "chat_template.jinja", "chat_template.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def behaviour(folder):
    """What is asked of the model, what it computes and what it answers."""
    llava = load_model(folder)
    inputs = llava.encode([[user_turn("What?", 1)]], [[IMAGE]])
    with torch.no_grad():
        logits = llava.model(**inputs).logits[0, -1]
    pairs = [(IMAGE, "What is it?"), (IMAGE, "And why is that so very long?")]
    assert (inputs["input_ids"] == llava.model.config.image_token_id).sum() == llava.vision_tokens
    return {
        "ids": inputs["input_ids"].tolist(),
        "logits": logits,
        "dtype": llava.model.dtype,
        "answers": llava.ask_batch(pairs, max_new_tokens=6),
        "ends": llava.model.generation_config.eos_token_id in (2, [2]),
    }


@pytest.fixture(scope="module", params=["plain_folder", "stf_folder"])
def original(request, tmp_path_factory):
    """Folder, content of its files, and behaviour of a model; the folder may be written to."""
    folder = shutil.copytree(request.getfixturevalue(request.param), tmp_path_factory.mktemp("hostile") / "model")
    return folder, read(folder), behaviour(folder)


def token(content):
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": content, **flags}


def image_token_id(files):
    files[CONFIG]["image_token_id"] = files[CONFIG].pop("image_token_index")


def torch_dtype(files):
    files[CONFIG]["torch_dtype"] = files[CONFIG].pop("dtype")
    files[CONFIG]["text_config"]["torch_dtype"] = "float16"  # of the language model that LLaVA began with


def list_of_layers(files):
    layers = files[CONFIG]["vision_feature_layer"]
    files[CONFIG]["vision_feature_layer"] = layers if isinstance(layers, list) else [layers]


def old_rope(files):
    text = files[CONFIG]["text_config"]
    text |= {"rope_theta": text.pop("rope_parameters")["rope_theta"], "rope_scaling": None, "rope_interleaved": None}


def old_extras(files):
    files[CONFIG] |= {
        "ignore_index": -100,
        "vocab_size": 357,
        "_name_or_path": "a/b",
        "transformers_version": "4.36.0.dev0",
        "is_encoder_decoder": False,
        "return_dict": False,
        "use_cache": False,
        "chunk_size_feed_forward": 0,
        "id2label": {"0": "LABEL_0"},
        "problem_type": None,
        "tokenizer_class": None,
        "auto_map": {},
    }
    files[CONFIG]["text_config"] |= {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"]}
    files[CONFIG]["vision_config"] |= {"vocab_size": 32000, "dropout": 0.0, "projection_dim": 768}


def as_defaults(files):
    for name in ("image_seq_length", "projector_hidden_act", "multimodal_projector_bias", "tie_word_embeddings"):
        del files[CONFIG][name]
    for name in ("head_dim", "num_key_value_heads", "pretraining_tp", "mlp_bias", "tie_word_embeddings"):
        del files[CONFIG]["text_config"][name]
    del files[CONFIG]["vision_config"]["num_channels"]


def ids_as(value):
    def change(files):
        for owner in (files[CONFIG], files[CONFIG]["text_config"], files[GENERATION]):
            owner |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), value)

    return change


def ends_as_lists(files):
    for owner in (files[CONFIG]["text_config"], files[GENERATION]):
        owner["eos_token_id"] = [2, -1, 10**6]


def no_generation_config(files):
    del files[GENERATION]


def full_generation_config(files):
    nothing = ("temperature", "top_p", "top_k", "max_new_tokens", "bad_words_ids", "suppress_tokens", "penalty_alpha")
    files[GENERATION] |= {
        **dict.fromkeys(nothing),
        "repetition_penalty": 1,
        "num_beams": 1,
        "num_beam_groups": 1,
        "max_length": 4096,
        "do_sample": True,
        "guidance_scale": None,
        "constraints": None,
        "diversity_penalty": 0.0,
        "return_dict_in_generate": False,
    }


def preprocessor(files):
    """Files of transformers 4.45 to 4.57."""
    files[PREPROCESSOR] = files[PROCESSOR].pop("image_processor") | {"processor_class": "LlavaProcessor"}


def old_preprocessor(files):
    """Files before 4.45: no processor_config.json, and sizes as numbers."""
    processor = files.pop(PROCESSOR)
    files[PREPROCESSOR] = processor.pop("image_processor") | {"size": 56, "crop_size": 56}
    if "fusion_window" in processor:
        files[PREPROCESSOR]["processor_class"] = "LlavaStfProcessor"


def no_sizes(files):
    del files[PROCESSOR]["image_processor"]["size"], files[PROCESSOR]["image_processor"]["crop_size"]


def fast_names(files):
    files[PROCESSOR]["image_processor"]["image_processor_type"] = "LlavaImageProcessorFast"
    files[TOKENIZER]["tokenizer_class"] = "LlamaTokenizerFast"


def bare_processor(files):
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "processor_class"):
        del files[PROCESSOR][name]
    del files[TOKENIZER]["processor_class"]


def null_processor(files):
    files[PROCESSOR] |= dict.fromkeys(("patch_size", "vision_feature_select_strategy", "processor_class"))
    files[TOKENIZER]["processor_class"] = None


def template_in_json(files):
    files["chat_template.json"] = {"chat_template": files.pop("chat_template.jinja")}


def template_of_the_processor(files):
    files[PROCESSOR]["chat_template"] = files.pop("chat_template.jinja")


def template_of_the_tokenizer(files):
    files[TOKENIZER]["chat_template"] = files.pop("chat_template.jinja")


def old_tokenizer(files):
    """tokenizer_config.json and special_tokens_map.json of transformers 4."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    decoder = {0: "<unk>", 1: "<s>", 2: "</s>", 355: "<image>", 356: "<pad>"}
    files[TOKENIZER] = {
        "added_tokens_decoder": {str(id_): {**token(text), "special": True} for id_, text in decoder.items()},
        **{name: token(text) for name, text in special.items()},
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "model_max_length": 10**30,
        "sp_model_kwargs": {},
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "additional_special_tokens": ["<image>"],
        "spaces_between_special_tokens": False,
        "add_prefix_space": None,
        "from_slow": True,
        "image_token": "<image>",
        "trust_remote_code": False,
    }
    files["special_tokens_map.json"] = special


def tokens_in_the_map_alone(files):
    if "added_tokens_decoder" in files[TOKENIZER]:  # no version wrote both, and none reads the map then
        raise KeyError("added_tokens_decoder")
    special = {"unk_token": "<unk>", "bos_token": token("<s>"), "eos_token": "</s>", "pad_token": "<pad>"}
    files[TOKENIZER] = {name: value for name, value in files[TOKENIZER].items() if name not in special}
    files["special_tokens_map.json"] = special


REWRITES = {
    change.__name__: change
    for change in (
        *(image_token_id, torch_dtype, list_of_layers, old_rope, old_extras, as_defaults, ends_as_lists),
        *(no_generation_config, full_generation_config, preprocessor, old_preprocessor, no_sizes),
        *(fast_names, bare_processor, null_processor, template_in_json, template_of_the_processor),
        *(template_of_the_tokenizer, old_tokenizer, tokens_in_the_map_alone),
    )
} | {f"ids_{value}": ids_as(value) for value in (None, -1, 10**6)}


def assert_same(folder, files, expected):
    write(folder, files)
    found = behaviour(folder)
    torch.testing.assert_close(found.pop("logits"), expected["logits"])
    assert found == {name: value for name, value in expected.items() if name != "logits"}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_files_of_other_versions_load_alike(original, rewrite):
    folder, files, expected = original
    files = copy.deepcopy(files)
    REWRITES[rewrite](files)
    assert_same(folder, files, expected)


@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_so_do_several_at_once(original, data):
    folder, files, expected = original
    files = copy.deepcopy(files)
    for rewrite in data.draw(st.lists(st.sampled_from(sorted(REWRITES)), min_size=2, max_size=5, unique=True)):
        try:
            REWRITES[rewrite](files)
        except KeyError:  # what it renames another one has renamed or left out
            continue
    assert_same(folder, files, expected)


def test_empty_unk_token_is_named(original):
    folder, files, _ = original
    write(folder, {**files, TOKENIZER: {**files[TOKENIZER], "unk_token": ""}})
    with pytest.raises(LlavaStfError, match="the tokenizer's unk_token '' is none of its tokens"):
        load_model(folder)


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "unk_token", "pad_token"])
@pytest.mark.parametrize(("token", "sentence"), [("<image>", "stands for images"), ("[NEW]", "of the 357 embeddings")])
def test_special_tokens_have_an_embedding_of_their_own(original, name, token, sentence):
    folder, files, _ = original
    files = copy.deepcopy(files)
    files[TOKENIZER][name] = token
    write(folder, files)
    with pytest.raises(LlavaStfError, match=sentence):
        load_model(folder)


OTHERS = st.sampled_from([
    *(None, True, False, 0, -1, 1, 7, 5000, 0.5, -0.0, float("nan"), float("inf"), "", "x", "-1", "<image>", "</s>"),
    *([], [2], [-1], [None], ["x"], [[2]], {}, {"a": 1}, {"default": 5}, {"height": 56}, token("<s>")),
])  # fmt: skip
ADDED = {
    CONFIG: ("pad_token_id", "eos_token_id", "torch_dtype", "quantization_config", "_attn_implementation", "auto_map"),
    GENERATION: (
        *("pad_token_id", "suppress_tokens", "bad_words_ids", "forced_eos_token_id", "stop_strings", "num_beams"),
        *("repetition_penalty", "guidance_scale", "penalty_alpha", "min_new_tokens", "top_k", "watermarking_config"),
        *("max_time", "no_repeat_ngram_size", "prompt_lookup_num_tokens", "num_return_sequences", "use_cache"),
    ),
    PROCESSOR: ("chat_template", "auto_map"),
    TOKENIZER: ("chat_template", "padding_side", "model_input_names", "added_tokens_decoder", "legacy"),
}


def places(value, path=()):
    """The paths of all values inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_values_load_or_are_one_sentence(original, data):
    folder, files, _ = original
    files = copy.deepcopy(files)
    name = data.draw(st.sampled_from(FILES))
    found = [*places(files[name]), *((added,) for added in ADDED[name])]
    *path, last = data.draw(st.sampled_from(found))
    owner = files[name]
    for key in path:
        owner = owner[key]
    if isinstance(owner, list) or last in owner:
        if data.draw(st.booleans()):
            owner[last] = data.draw(OTHERS)
        else:
            del owner[last]
    else:
        owner[last] = data.draw(OTHERS)
    write(folder, files)
    try:
        found = behaviour(folder)
    except LlavaStfError as error:
        sentence = str(error)
        assert sentence.isprintable()
    else:
        assert found["logits"].isfinite().all()
