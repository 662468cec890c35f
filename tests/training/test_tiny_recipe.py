"""The recipe of the bundled models, in small: a tower from dense targets, a plain LLaVA around it."""

import pytest
import torch
from transformers import CLIPVisionModel

from llava_stf import load_model
from llava_stf.errors import CheckpointError, LlavaStfError, ModelNotFoundError
from llava_stf.loading import bundled_folder
from llava_stf.models.llava_stf.conversation import SYSTEM_PROMPT
from llava_stf.training.assemble_tiny import assemble_tiny, train_tokenizer, unseen_tokens
from llava_stf.training.pretrain_tower import CLASSES, DenseReader, DrawnImages, pretrain_tower, tower_config
from llava_stf.world import caption, draw, patch_labels, questions_of


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    pretrain_tower(folder, images=48, batch_size=16)
    return folder


@pytest.fixture(scope="module")
def start(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "llava"
    assemble_tiny(tower, folder)
    return folder


def test_pretraining_learns(capsys, tmp_path):
    torch.manual_seed(0)
    batch = next(iter(torch.utils.data.DataLoader(DrawnImages(16, 0), batch_size=16)))
    reader = DenseReader(CLIPVisionModel(tower_config()))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-3)

    def loss():
        logits = reader(batch["pixels"])
        return sum(torch.nn.functional.cross_entropy(logits[n].flatten(0, 1), batch[n].flatten()) for n in CLASSES)

    first = loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.5 * first


def test_a_resumed_tower_is_the_one_that_never_stopped(tower, tmp_path):
    options = {"images": 48, "batch_size": 16}
    assert not pretrain_tower(tmp_path, **options, stop_after=1)
    assert not (tmp_path / "config.json").exists()  # by which a recipe knows that it is done
    with pytest.raises(LlavaStfError, match="images 48 is now 64"):
        pretrain_tower(tmp_path, **options | {"images": 64}, resume=True)
    assert pretrain_tower(tmp_path, **options, resume=True)
    whole = CLIPVisionModel.from_pretrained(tower).state_dict()
    assert all(torch.equal(whole[n], w) for n, w in CLIPVisionModel.from_pretrained(tmp_path).state_dict().items())


def test_images_carry_their_labels():
    sample = next(iter(DrawnImages(1, seed=3)))
    scene, pixels = draw(0, seed=3)
    assert torch.equal(sample["pixels"], torch.from_numpy(pixels).permute(2, 0, 1))
    for name in CLASSES:
        assert sample[name].tolist() == patch_labels(scene)[name].reshape(-1).tolist()


def test_assembled_model_has_the_tower_and_answers(tower, start):
    llava = load_model(start, vision_tokens="all")
    trained = CLIPVisionModel.from_pretrained(tower)
    state = llava.model.model.vision_tower.state_dict()
    for name, value in trained.state_dict().items():
        assert torch.equal(state[name], value) or ".layers.5." in name
    pixels = torch.rand(1, 3, 112, 112)
    *_, read, last = llava.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(read, last)  # the block that nothing reads does nothing
    assert llava.vision_tokens == 64
    assert isinstance(llava.ask(draw(0)[1], "How many shapes are there?", max_new_tokens=3), str)


def test_the_language_model_of_a_llava_is_taken(tower, start, tmp_path):
    assemble_tiny(None, tmp_path / "told", seed=1)
    assemble_tiny(tower, tmp_path / "start", language=tmp_path / "told")
    told, new, built = (
        load_model(folder, vision_tokens="all") for folder in (tmp_path / "told", start, tmp_path / "start")
    )
    state = built.model.state_dict()
    for name, value in told.model.state_dict().items():
        if "language_model" in name or "lm_head" in name:
            assert torch.equal(state[name], value)
    assert not torch.equal(state["lm_head.weight"], new.model.lm_head.weight)
    tower_of_start = new.model.model.vision_tower.state_dict()
    assert all(
        torch.equal(value, tower_of_start[name]) for name, value in built.model.model.vision_tower.state_dict().items()
    )
    assert built.processor.tokenizer.get_vocab() == told.processor.tokenizer.get_vocab()


def test_a_language_model_comes_from_a_plain_llava(tower, tmp_path):
    with pytest.raises(CheckpointError, match="model type 'clip_vision_model' is none of those"):
        assemble_tiny(tower, tmp_path / "start", language=tower)
    with pytest.raises(CheckpointError, match=r"Expected a plain LLaVA in .*, found a model of type llava_stf"):
        assemble_tiny(tower, tmp_path / "start", language=bundled_folder("tiny"))
    for missing in ({"tower": tmp_path / "tower"}, {"tower": tower, "language": tmp_path / "told"}):
        with pytest.raises(ModelNotFoundError, match="there is no such file or folder"):
            assemble_tiny(output=tmp_path / "start", **missing)
    assert not list(tmp_path.iterdir())


def test_what_no_text_has_says_nothing(start):
    llava = load_model(start, vision_tokens="all")
    embedding = llava.model.get_input_embeddings().weight
    unseen = unseen_tokens(llava.processor.tokenizer)
    assert not embedding[unseen].any()
    assert embedding.any(-1).sum() == len(embedding) - len(unseen)
    seen = llava.processor.tokenizer("Where is the star? top left 427", add_special_tokens=False)["input_ids"]
    assert not set(seen) & set(unseen)


def test_tokenizer_spends_one_piece_on_a_word_of_the_images():
    tokenizer = train_tokenizer()
    scene = draw(5)[0]
    texts = [SYSTEM_PROMPT, caption(scene), *(question.text for question in questions_of(scene, 5))]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    words = SYSTEM_PROMPT.replace(".", " .").replace(",", " ,").replace("'", " ' ").split()
    assert len(tokenizer(SYSTEM_PROMPT, add_special_tokens=False)["input_ids"]) == len(words)
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<image>") + 1 == tokenizer.pad_token_id
