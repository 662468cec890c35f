"""Questions about drawn images as `Rows` take them: several behind each image, short and lettered ones apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_stf.models.llava_stf.conversation import (
    END,
    IGNORE_INDEX,
    IMAGE_TOKEN,
    SYSTEM_PROMPT,
    encode_conversation,
    tokenize_chunks,
)
from llava_stf.world.choices import LETTERS
from llava_stf.world.dataset import CAPTION_REQUEST, turns_about_image
from llava_stf.world.families import ALL, FAMILIES, LETTERED, ask, caption
from llava_stf.world.pairs import Pair, ask_long_pairs, ask_pairs, weighted
from llava_stf.world.questions import Question, ask_poor
from llava_stf.world.scene import Scene

OPEN = tuple(family for family in ALL if family not in LETTERED)
PER_IMAGE = {OPEN: 6, LETTERED: 5}  # questions of these families, one group of rows each
PAIRS_PER_IMAGE, LONG_PAIRS_PER_IMAGE = 24, 12
TURNS = 4  # of the one conversation of an image, a third group
CAPTIONED = 0.3  # of the conversations are a caption
LENGTH_STEP = 8  # of a group's rows: few different lengths, see `llava_stf.training.rows.STEP`
REARRANGED = 0.2  # of the lettered questions have the options in another layout, as some benchmarks do
Turns = tuple[tuple[str, str], ...]  # questions and their answers


@dataclass(frozen=True)
class Row:
    """What is said behind an image: its kind, if its answer is counted, and what an answer by letter stands for."""

    kind: str | None
    said: Turns | Pair
    truth: str | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of token ids behind B images, flat as `Rows` has them, without the images' own tokens.

    Attributes:
        ids: int64 [T].
        answers: int64 [T], the number of the row whose answer a token belongs to, or -100.
        groups: (rows an image, tokens a row) of each group.
        kinds: of each row its family of questions, or its kind of pairs, or none.
        hints: int64 [2, H], of questions by letter the tokens before options and answer, and the ids of what is meant.
    """

    ids: Tensor
    answers: Tensor
    groups: list[tuple[int, int]]
    kinds: list[str | None]
    hints: Tensor


class Encoder:
    """Conversations about one image as token ids, by a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        beginning = f"{SYSTEM_PROMPT} USER: {IMAGE_TOKEN}"
        self.beginning = torch.tensor(tokenize_chunks(tokenizer, beginning, image_token_id=self.image_token_id)[:-1])
        self.pad = tokenizer.pad_token_id
        self.row = lru_cache(400_000)(self._row)
        self.letter, self.spaced_letter = self._last("(A"), self._last("A")
        self.behind_letter = (self._last("."), self._last(")"))

    def _last(self, text: str) -> int:
        """The last of the ids of a text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"][-1]

    def hints(self, row: Row) -> tuple[list[int], int]:
        """Which of the row's tokens stand before its first option and before its answer, and the last id of its truth.

        The row has options and a truth.
        """
        assert row.truth is not None
        ids, learned = self.row(row.said)
        if isinstance(row.said, Pair):
            first = ids.index(self.spaced_letter)
        else:
            first = next(
                at
                for at, (one, behind) in enumerate(pairwise(ids))
                if one == self.letter and behind in self.behind_letter
            )
        return [first - 1, learned.index(True) - 1], self._last(row.truth)

    def _row(self, said: Turns | Pair) -> tuple[list[int], list[bool]]:
        """The ids behind the image of a conversation or a short query, and which of them are of answers."""
        if isinstance(said, Pair):
            texts = [f"\n {said.query}:", f"\n {said.query}: {said.answer}{END}"]
            asked, whole = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            return whole, [at >= len(asked) for at in range(len(whole))]
        turns = turns_about_image(said)
        ids, labels = encode_conversation(self.tokenizer, turns, template="v1", image_token_id=self.image_token_id)
        start = ids.index(self.image_token_id) + 1
        return ids[start:], [label != IGNORE_INDEX for label in labels[start:]]

    def batch(self, groups: Sequence[Sequence[Sequence[Row]]]) -> Batch:
        """Groups of images of rows; every group has all images, an image may lack rows."""
        ids: list[np.ndarray] = []
        answers, shapes, hints, total = [], [], [], 0
        kinds: list[str | None] = []
        for group in groups:
            most = max(len(rows) for rows in group)
            if not most:
                continue
            encoded = [[self.row(row.said) for row in rows] for rows in group]
            longest = max(len(row) for rows in encoded for row, _ in rows)
            length = longest + -longest % LENGTH_STEP
            block = np.full((len(group), most, length), self.pad)
            number = np.full(block.shape, IGNORE_INDEX)
            for image, rows in enumerate(encoded):
                for at, (row, learned) in enumerate(rows):
                    block[image, at, : len(row)] = row
                    number[image, at, : len(row)][learned] = len(kinds) + image * most + at
                    if group[image][at].truth is not None:
                        places, wanted = self.hints(group[image][at])
                        begun = total + (image * most + at) * length
                        hints += [(begun + place, wanted) for place in places]
            kinds += [rows[at].kind if at < len(rows) else None for rows in group for at in range(most)]
            total += block.size
            ids.append(block.ravel())
            answers.append(number.ravel())
            shapes.append((most, length))
        return Batch(
            ids=torch.from_numpy(np.concatenate(ids)),
            answers=torch.from_numpy(np.concatenate(answers)),
            groups=shapes,
            kinds=kinds,
            hints=torch.tensor(hints, dtype=torch.int64).view(-1, 2).T,
        )


def pair_rows(
    scene: Scene, rng: np.random.Generator, right: Mapping[str, float], *, lettered: bool = True
) -> list[list[Row]]:
    """One image's rows of short queries, in a second group if `lettered` those with options or rules."""
    short = ask_pairs(scene, rng, PAIRS_PER_IMAGE, right)
    long = ask_long_pairs(scene, rng, LONG_PAIRS_PER_IMAGE, right) if lettered else []
    return [[Row(pair.kind, pair, pair.truth) for pair in pairs] for pairs in (short, long)]


def training_rows(
    scene: Scene, rng: np.random.Generator, right: Mapping[str, float], *, lettered: bool = True
) -> list[list[Row]]:
    """One image's rows of the three groups: open questions, lettered ones, and a conversation or the caption.

    Args:
        scene: of the image.
        rng: what decides.
        right: share of right answers of each kind of question so far; a kind is asked the more the lower it is.
        lettered: whether there are lettered ones; they cost most, and teach nothing to a model that knows no letters.
    """
    groups: list[list[Row]] = []
    for families, count in PER_IMAGE.items():
        if families == LETTERED and not lettered:
            groups.append([])
            continue
        if scene.degraded:
            drawn = [ask_poor(scene, rng) for _ in range(count)] if "poor" in families else []
        else:
            drawn = [FAMILIES[family](scene, rng) for family in rng.choice(families, 4 * count)]
        found = list({question.text: question for question in drawn if question is not None}.values())
        asked = weighted(found, [kind_of(question) for question in found], count, rng, right)
        groups.append([row_of(one, kind_of(one), _laid_out(one, rng)) for one in asked])
    families = ALL if lettered else OPEN
    turns: Turns = tuple(
        (question.text, question.answer) for question in ask(scene, rng, families=families, count=TURNS)
    )
    if not turns or rng.random() < CAPTIONED:
        turns = ((CAPTION_REQUEST, caption(scene)),)
    return [*groups, [Row(None, turns)]]


def row_of(question: Question, kind: str, text: str | None = None) -> Row:
    """The row that asks a question alone, in other words if `text` is given."""
    truth = question.options[LETTERS.index(question.answer)] if question.options else None
    return Row(kind, ((text or question.text, question.answer),), truth)


def kind_of(question: Question) -> str:
    """The question's family and kind."""
    return f"{question.family} {question.kind}"


def _laid_out(question: Question, rng: np.random.Generator) -> str:
    """The question's text; now and then with its options as another protocol lays them out."""
    if not question.options or rng.random() >= REARRANGED:
        return question.text
    lines = question.text.split("\n")
    *context, asked = lines[: -len(question.options)]
    listed = lines[-len(question.options) :]
    if question.family == "choice_cn" or rng.random() < 0.5:
        return "\n".join([*context, f"{asked} There are several options:", *listed])
    joined = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return "\n".join([*(context or ["Context: N/A"]), f"Question: {asked}", f"Options: {joined}"])
