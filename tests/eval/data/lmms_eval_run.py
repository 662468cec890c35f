"""Runs lmms-eval on local data in a process of its own, as its import patches ssl, loggers and warnings.

    python lmms_eval_run.py DATA OUT ANSWERS/PROTOCOL/BENCHMARK ...

ANSWERS is "right" (the reference), "wrong", or the name of a bundled model. Writes OUT/results.json: by argument the
headline, the scores of the samples, and the first prompt with its generation settings.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager

from llava_stf_eval import protocols
from llava_stf_eval.benchmarks.lmms_model import LlavaStfLmms
from llava_stf_eval.requirements import lmms_eval_folder

FOLDERS = (
    *("vqav2", "gqa", "vizwiz_vqa", "scienceqa", "textvqa", "pope", "mmbench", "mme"),
    *("ocrbench", "docvqa", "chartqa", "refcoco"),
)


def reference(doc: dict) -> str:
    """The right answer to a row of any of the data sets; rows of a test split have none."""
    if "bbox" in doc:
        return str([round(number, 4) for number in doc["bbox"]])
    answer = doc.get("answer", doc.get("answers"))
    if isinstance(answer, list):
        answer = answer[0]["answer"] if isinstance(answer[0], dict) else answer[0]
    return "ABCDE"[answer] if "choices" in doc else str(answer)


def other(answer: str) -> str:
    """An answer that is wrong where this one is right."""
    return {"yes": "no", "no": "yes", "Yes": "no", "No": "yes", "A": "B"}.get(answer, "A")


class Answers(lmms):
    """Gives the reference of every row, or an answer that is wrong; keeps the prompts."""

    is_simple = False

    def __init__(self, *, right: bool) -> None:
        super().__init__()
        self.right = right
        self.prompts: list[tuple[str, dict]] = []

    def generate_until(self, requests):
        answers = []
        for request in requests:
            _, doc_to_messages, options, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            (message,) = ChatMessages(messages=doc_to_messages(doc)).messages
            text = "".join(part.text for part in message.content if part.type == "text")
            self.prompts.append((text, options))
            answers.append(reference(doc) if self.right else other(reference(doc)))
        return answers

    def clean(self):
        """Nothing to free; lmms-eval's own collects garbage, for more than a second each time."""

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


def main() -> None:
    data, out, *runs = sys.argv[1:]
    os.chdir(data)
    models, results = {"right": Answers(right=True), "wrong": Answers(right=False)}, {}
    # The folders of these alone: reading all of lmms-eval's task files takes seconds.
    theirs = [str(lmms_eval_folder() / "tasks" / name) for name in FOLDERS]
    ours = str(protocols.include_path("llava"))
    manager = TaskManager(include_path=[ours, *theirs], include_defaults=False)
    for run in runs:
        answers, protocol, benchmark = run.split("/")
        if answers not in models:
            models[answers] = LlavaStfLmms(pretrained=answers, batch_size=32)
        (task,) = protocols.tasks(benchmark, protocol)
        found = simple_evaluate(
            model=models[answers], tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True,
            cli_args=Namespace(output_path=out, process_with_media=False),
        )  # fmt: skip
        results[run] = {
            "headline": protocols.headline(benchmark, protocol, found["results"]),
            "scores": [protocols.sample_score(benchmark, protocol, sample) for sample in found["samples"][task]],
        }
        if answers in ("right", "wrong"):
            results[run]["prompt"], results[run]["options"] = models[answers].prompts[-1]
    Path(out, "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
