"""Prompts, token ids and labels against the authors' own (golden tokenization cases)."""

import copy
import json

import pytest

from llava_stf.errors import DataError, PromptError
from llava_stf.models.llava_stf.chunks import tokenize_chunks
from llava_stf.models.llava_stf.conversation import (
    CHAT_TEMPLATE,
    IGNORE_INDEX,
    SYSTEM_PROMPT,
    encode_conversation,
    render_v1,
)

MARKER = -200
LEGACY = [pytest.param(True, id="legacy"), pytest.param(False, id="vicuna")]


@pytest.fixture(scope="module")
def cases(golden_stf):
    return json.loads((golden_stf / "tokenization_cases.json").read_text())


@pytest.fixture(scope="module")
def tokenizers(golden_stf):
    from transformers import LlamaTokenizer

    return {legacy: LlamaTokenizer.from_pretrained(golden_stf / "tokenizer", legacy=legacy) for legacy in (True, False)}


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def encode(tokenizer, conversation, template="v1"):
    return encode_conversation(tokenizer, conversation, template=template, image_token_id=MARKER)


def test_ids_and_labels_of_every_training_sample_equal_the_authors(cases, tokenizers):
    assert len(cases["training_samples"]) >= 13
    for case in cases["training_samples"]:
        ids, labels = encode(tokenizers[case["tokenizer_legacy"]], case["conversation"], case["template"])
        assert ids == case["input_ids"], case["name"]
        assert labels == case["labels"], case["name"]
        assert (set(labels) == {IGNORE_INDEX}) == bool(case["warning"]), case["name"]


@pytest.mark.parametrize("legacy", LEGACY)
def test_inference_prompts_and_the_chat_template_equal_the_authors(cases, tokenizers, legacy):
    tokenizer = tokenizers[legacy]
    for case in cases["inference_prompts"]:
        content = [{"type": "text", "text": case["question"]}, {"type": "image"}]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert prompt == case["prompt"]
        expected = case[f"input_ids_legacy_{str(legacy).lower()}"]
        assert tokenize_chunks(tokenizer, prompt, image_token_id=MARKER) == expected


def test_chat_template_renders_several_images_and_the_history(tokenizers):
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "Which is red?"}, {"type": "image"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
        {"role": "user", "content": "Are you sure?"},
    ]
    prompt = tokenizers[False].apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert prompt == (
        f"{SYSTEM_PROMPT} USER: <image>\n<image>\nWhich is red? ASSISTANT: The first.</s>USER: Are you sure? ASSISTANT:"
    )


def test_chat_template_of_a_finished_conversation_is_the_training_text(tokenizers):
    pairs = [("human", "<image>\nWhere is the dog?"), ("gpt", "Here."), ("human", "Why?"), ("gpt", "It is tired.")]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[speaker], "content": text} for speaker, text in pairs]
    rendered = tokenizers[False].apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=False)
    assert rendered == render_v1(pairs)


def test_chat_template_takes_another_system_sentence_and_refuses_unknown_roles(tokenizers):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rendered = tokenizers[False].apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=False)
    assert rendered == "Be brief. USER: Hello "
    with pytest.raises(Exception, match="roles"):
        tokenizers[False].apply_chat_template(
            [{"role": "tool", "content": "4"}], chat_template=CHAT_TEMPLATE, tokenize=False
        )


@pytest.mark.parametrize("legacy", LEGACY)
def test_repeated_markers_give_ids_in_a_row_with_the_same_text_around(tokenizers, legacy):
    tokenizer = tokenizers[legacy]
    once = tokenize_chunks(tokenizer, "USER: <image>\nWhat is it?", image_token_id=MARKER)
    repeated = tokenize_chunks(tokenizer, "USER: <image><image><image>\nWhat is it?", image_token_id=MARKER)
    at = once.index(MARKER)
    assert repeated == once[:at] + [MARKER] * 3 + once[at + 1 :]
    assert once[0] == tokenizer.bos_token_id
    assert once.count(tokenizer.bos_token_id) == 1


def test_another_marker_text_can_be_used(tokenizers):
    ids = tokenize_chunks(tokenizers[False], "a[img]b", image_token="[img]", image_token_id=7777)
    assert ids == [
        *tokenizers[False]("a").input_ids,
        7777,
        *tokenizers[False]("b", add_special_tokens=False).input_ids,
    ]


@pytest.mark.parametrize("legacy", LEGACY)
def test_labels_decode_to_the_answers(tokenizers, legacy):
    conversation = turns("<image>\nWhat is it?", "A bus.", "And its colour?", "Red", "How many dogs?", "2")
    ids, labels = encode(tokenizers[legacy], conversation)
    kept = [i for i in labels if i != IGNORE_INDEX]
    assert tokenizers[legacy].decode(kept).replace(" ", "") == "Abus.</s>Red</s>2</s>"
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(ids, labels, strict=True))


def test_two_images_in_one_turn_keep_both_markers_in_front(tokenizers):
    ids, _ = encode(tokenizers[False], turns("<image> or <image>?", "The first."))
    assert ids == encode(tokenizers[False], turns("<image>\n<image>\nor ?", "The first."))[0]
    assert ids.count(MARKER) == 2


@pytest.mark.parametrize(
    "conversation",
    [
        pytest.param(turns("What is it?", ""), id="empty answer"),
        pytest.param(turns("What is it?"), id="no answer"),
        pytest.param(turns("What is it?", "A bus. ASSISTANT: And?"), id="assistant tag in the answer"),
    ],
)
def test_a_conversation_whose_rounds_do_not_add_up_is_masked(tokenizers, conversation):
    _, labels = encode(tokenizers[False], conversation)
    assert set(labels) == {IGNORE_INDEX}


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        [{"from": "gpt", "value": "Only me."}],
        [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}],
        [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}],
        [{"from": "human"}],
        [{"from": "human", "value": 3}],
        ["hello"],
    ],
)
def test_malformed_conversations_are_refused(tokenizers, conversation):
    with pytest.raises(DataError, match="turn"):
        encode(tokenizers[False], conversation)


@pytest.mark.parametrize(
    "conversation",
    [turns("no image", "a caption"), turns("<image>", "a caption", "more", "words"), turns("<image>\n<image>", "two")],
)
def test_plain_needs_one_image_and_one_caption(tokenizers, conversation):
    with pytest.raises(DataError, match="plain"):
        encode(tokenizers[False], conversation, "plain")


@pytest.mark.parametrize("legacy", LEGACY)
def test_control_tokens_in_a_turn_are_text(tokenizers, legacy):
    tokenizer = tokenizers[legacy]
    conversation = turns("What ends with </s> or <unk>?", "A turn</s>", "<s>Sure?", "Yes.")
    ids, labels = encode(tokenizer, conversation)
    assert (ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id)) == (1, 2)
    assert tokenizer.unk_token_id not in ids
    assert "ends with </s>" in tokenizer.decode(ids)
    learned = tokenizer.decode([i for i in labels if i != IGNORE_INDEX]).replace(" ", "")
    assert learned == "Aturn</s></s>Yes.</s>"


def test_padding_with_the_end_token_masks_nothing(tokenizers):
    tokenizer = copy.deepcopy(tokenizers[False])
    expected = encode(tokenizer, turns("What is it?", "A bus."))
    tokenizer.pad_token = tokenizer.eos_token
    assert encode(tokenizer, turns("What is it?", "A bus.")) == expected


def test_text_that_is_no_unicode_is_refused(tokenizers):
    with pytest.raises(DataError, match="Unicode"):
        encode(tokenizers[False], turns("a \ud83d b", "c"))
    with pytest.raises(PromptError, match="Unicode"):
        tokenize_chunks(tokenizers[False], "a \ud83d b", image_token_id=MARKER)
