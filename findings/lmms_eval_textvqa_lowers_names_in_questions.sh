#!/usr/bin/env bash
# lmms-eval 0.7.3; run 2026-11-30.
#
# The prompts of TextVQA and VizWiz for questions that name what is written in the image.
# Expected: the question as it is in the data set, or with its first letter as a capital.
# Happens:  `str.capitalize` also makes every other letter a small one: names and abbreviations that the model is to find
#           in the image are no longer spelled as there. VQAv2, OCRBench and DocVQA keep the question.
#
# Seen:
#   textvqa     What year is on the nasa patch by john?
#   vizwiz_vqa  What year is on the nasa patch by john?
#   docvqa      what year is on the NASA patch by John?
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
venv/bin/python - <<'PY'
import ast
import sysconfig
from pathlib import Path

question = "what year is on the NASA patch by John?"
seen = {}
for task in ("textvqa", "vizwiz_vqa", "docvqa"):
    # The task's own function, without the requirements of the package.
    tree = ast.parse(Path(f"{sysconfig.get_paths()['purelib']}/lmms_eval/tasks/{task}/utils.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) == f"{task}_doc_to_text"]
    own = {}
    exec(compile(tree, task, "exec"), own)
    seen[task] = own[f"{task}_doc_to_text"]({"question": question}, {"pre_prompt": "", "post_prompt": ""})
    print(f"{task:11} {seen[task]}")
lowered = "What year is on the nasa patch by john?"
assert seen == {"textvqa": lowered, "vizwiz_vqa": lowered, "docvqa": question}, seen
PY
