#!/usr/bin/env bash
# lmms-eval 0.7.3; run 2026-11-29.
#
# POPE's scores of three models on 10 questions, half of them with "yes" as their answer: one that is always right, one
# that says "Yes." to everything but one object, and one that says "yes" to everything.
# Expected: an answer that is not understood is wrong in every score (or "Yes." is a yes); the yes ratio is the model's,
#           which is what POPE reports it for: models that say yes too often.
# Happens:  an answer other than "yes" and "no" is wrong in accuracy alone. Precision, recall and F1 leave it out, so one
#           bare "yes" beside nine of "Yes." is a perfect F1. The yes ratio is the share of "yes" among the labels:
#           it is the same for every model.
#
# Seen:
#   always right        accuracy 1.0, precision 1.0, recall 1.0, F1 1.00, yes ratio 0.5
#   "Yes." but for one  accuracy 0.1, precision 1.0, recall 1.0, F1 1.00, yes ratio 0.5
#   always yes          accuracy 0.5, precision 0.5, recall 1.0, F1 0.67, yes ratio 0.5
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
venv/bin/python - <<'PY'
import importlib.util
import sysconfig

# The task's own functions need none of the package's requirements.
file = f"{sysconfig.get_paths()['purelib']}/lmms_eval/tasks/pope/utils.py"
spec = importlib.util.spec_from_file_location("pope", file)
pope = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pope)

labels = ["yes", "no"] * 5
models = {
    "always right": labels,
    '"Yes." but for one': ["yes", *["Yes."] * 9],
    "always yes": ["yes"] * 10,
}
aggregations = {
    "accuracy": pope.pope_aggregate_accuracy,
    "precision": pope.pope_aggregate_precision,
    "recall": pope.pope_aggregate_recall,
    "f1_score": pope.pope_aggregate_f1_score,
    "yes_ratio": pope.pope_aggregate_yes_ratio,
}
seen = {}
for name, answers in models.items():
    rows = [
        pope.pope_process_results({"question_id": number, "answer": label}, [answer])
        for number, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]
    scores = {key: aggregate([row[f"pope_{key}"] for row in rows]) for key, aggregate in aggregations.items()}
    seen[name] = [round(score, 2) for score in scores.values()]
    print(
        f"{name:19} accuracy {scores['accuracy']:.1f}, precision {scores['precision']:.1f}, "
        f"recall {scores['recall']:.1f}, F1 {scores['f1_score']:.2f}, yes ratio {scores['yes_ratio']:.1f}"
    )
assert seen == {
    "always right": [1, 1, 1, 1, 0.5],
    '"Yes." but for one': [0.1, 1, 1, 1, 0.5],
    "always yes": [0.5, 0.5, 1, 0.67, 0.5],
}
PY
