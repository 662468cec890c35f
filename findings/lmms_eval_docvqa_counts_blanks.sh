#!/usr/bin/env bash
# lmms-eval 0.7.3; run 2026-11-30.
#
# DocVQA's ANLS of answers to a question whose right answer is "42", some with blanks behind them.
# Expected: blanks around an answer change nothing, since both texts are normalized before they are compared; an answer
#           that has no character in common is worth 0.
# Happens:  the edit distance is that of the normalized texts, the length that it is divided by that of the raw ones.
#           Each blank makes a wrong answer better; with four of them "17" is above the threshold of 0.5. A model class
#           that does not strip what it generates has a higher score than one that does.
#
# Seen:
#   '42'         1.00
#   '42    '     1.00
#   '17'         0.00
#   '17  '       0.50
#   '17    '     0.67
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

# The metric's own two functions, without the requirements and the registry of the package.
tree = ast.parse(Path(f"{sysconfig.get_paths()['purelib']}/lmms_eval/api/metrics.py").read_text())
tree.body = [node for node in tree.body if getattr(node, "name", None) in ("levenshtein_distance", "anls")]
for node in tree.body:
    node.decorator_list = []
own = {}
exec(compile(tree, "metrics.py", "exec"), own)

seen = {}
for answer in ("42", "42    ", "17", "17  ", "17    "):
    seen[answer] = round(own["anls"](references=["42"], predictions=[answer])["anls"], 2)
    print(f"{answer!r:12} {seen[answer]:.2f}")
assert list(seen.values()) == [1, 1, 0, 0.5, 0.67], seen
PY
