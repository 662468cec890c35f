#!/usr/bin/env bash
# lmms-eval 0.7.3; run 2026-11-30.
#
# Which option MMBench's scoring takes an answer for that says the option's text and not its letter. Option B is "a cat".
# Expected: B, or nothing where the text is not exactly an option's.
# Happens:  a capital A that begins a sentence is the letter A, and wins over the text behind it, if the answer has three
#           words or fewer. "a cat" is option B, "A cat" option A. Longer answers are compared as text.
#
# Seen:
#   'B'            B
#   'a cat'        B
#   'A cat'        A
#   'A cat.'       A
#   'A white cat'  A
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
venv/bin/python - <<'PY'
import ast
import string
import sysconfig
from pathlib import Path

# The evaluator's own class, without the requirements of the package.
file = Path(f"{sysconfig.get_paths()['purelib']}/lmms_eval/tasks/mmbench/mmbench_evals.py")
tree = ast.parse(file.read_text())
tree.body = [node for node in tree.body if getattr(node, "name", None) == "MMBench_Evaluator"]
own = {"string": string, "os": __import__("os")}
exec(compile(tree, file.name, "exec"), own)
evaluator = own["MMBench_Evaluator"]()

seen = {}
for answer in ("B", "a cat", "A cat", "A cat.", "A white cat"):
    seen[answer] = evaluator.can_infer(answer, {"A": "a dog", "B": "a cat", "C": "a cup", "D": "a tree"})
    print(f"{answer!r:14} {seen[answer]}")
assert list(seen.values()) == ["B", "B", "A", "A", "A"], seen
PY
