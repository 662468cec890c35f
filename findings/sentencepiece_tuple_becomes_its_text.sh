#!/usr/bin/env bash
# sentencepiece 0.2.3; run 2026-11-30.
#
# `SentencePieceTrainer.train(user_defined_symbols=...)` with a list of pieces, and with a tuple of the same pieces.
# Expected: the same model from both, or an error that a tuple is not taken.
# Happens:  a tuple is turned into Python's text of it, and that text is split at its commas: the brackets and quotes
#           become parts of pieces, and the pieces that were asked for do not exist. No error, no warning.
#
# Seen:
#   list  ['▁top▁left', '▁bottom▁right'] -> ['▁at', '▁the', '▁top▁left']
#   tuple ["('▁top▁left'", " '▁bottom▁right')"] -> ['▁at', '▁the', '▁t', 'op', '▁left']
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check sentencepiece==0.2.3
cat >pieces.py <<'PY'
import io

import sentencepiece

texts = ["the star is at the top left", "the cross is at the bottom right", "a star at the left"] * 50
for kind in (list, tuple):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=45,
        user_defined_symbols=kind(["▁top▁left", "▁bottom▁right"]),
        minloglevel=2,
    )
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [tokenizer.id_to_piece(index) for index in (3, 4)]
    print(f"{kind.__name__:5} {pieces} -> {tokenizer.encode('at the top left', out_type=str)}")
PY
venv/bin/python pieces.py | tee seen
cat >expected <<'SEEN'
list  ['▁top▁left', '▁bottom▁right'] -> ['▁at', '▁the', '▁top▁left']
tuple ["('▁top▁left'", " '▁bottom▁right')"] -> ['▁at', '▁the', '▁t', 'op', '▁left']
SEEN
diff expected seen
