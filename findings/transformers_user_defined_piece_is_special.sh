#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3, sentencepiece 0.2.3, protobuf 7.36.2; run 2026-11-30.
#
# A sentencepiece model with a `user_defined_symbols` piece, loaded by AutoTokenizer as a LLaMA tokenizer.
# Expected: an ordinary piece of text that is never cut, as in sentencepiece.
# Happens:  `all_special_tokens` lists it beside <s> and </s>, and so does every tokenizer saved from it; the mask of special
#           tokens is 1 for it. Decoding without special tokens keeps it all the same. Code that keeps users from writing
#           control tokens by that list catches plain words, and losses that leave out special tokens leave it out.
#
# Seen:
#   loaded ['<s>', '</s>', '<unk>', 'top']; decoded 'at the top', mask of special tokens has 1
#   saved  ['<s>', '</s>', '<unk>', 'top']; decoded 'at the top', mask of special tokens has 1
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check \
    transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cat >special.py <<'PY'
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer

folder = Path("model")
folder.mkdir()
texts = ["the star is at the top left", "the cross is at the bottom right", "a star at the left"] * 50
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_prefix=str(folder / "tokenizer"),
    model_type="bpe",
    vocab_size=320,
    byte_fallback=True,
    hard_vocab_limit=False,
    user_defined_symbols=["top"],
    minloglevel=2,
)
(folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
loaded = AutoTokenizer.from_pretrained(folder)
loaded.save_pretrained("saved")
for name, tokenizer in (("loaded", loaded), ("saved ", AutoTokenizer.from_pretrained("saved"))):
    words = tokenizer("at the top", add_special_tokens=False)["input_ids"]
    shown = tokenizer.decode(words, skip_special_tokens=True)
    mask = tokenizer.get_special_tokens_mask(words, already_has_special_tokens=True)
    print(f"{name} {tokenizer.all_special_tokens}; decoded {shown!r}, mask of special tokens has {sum(mask)}")
PY
HF_HUB_OFFLINE=1 venv/bin/python special.py 2>log | tee seen || { cat log; exit 1; }
cat >expected <<'SEEN'
loaded ['<s>', '</s>', '<unk>', 'top']; decoded 'at the top', mask of special tokens has 1
saved  ['<s>', '</s>', '<unk>', 'top']; decoded 'at the top', mask of special tokens has 1
SEEN
diff expected seen
