"""Every question of a benchmark with its answer and score, one JSON line each, and images of the wrong ones."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava_stf.io.publish import write_file
from llava_stf_eval.benchmarks.folder import RunFolder
from llava_stf_eval.protocols import sample_score, tasks
from llava_stf_eval.report.runs import RIGHT
from llava_stf_eval.scoring.choices import ROTATION

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_stf_eval.benchmarks.lmms_model import LlavaStfLmms

MOST_IMAGES = 500  # wrong answers of a benchmark whose image is kept
SIDE = 512  # px of a kept image's longer side, at most
_IDS = ("question_id", "index", "id")
_IMAGE_IDS = ("image_id", "imageId", "image_source")


def write_samples(
    folder: RunFolder, benchmark: str, protocol: str, model: LlavaStfLmms, samples: Sequence[dict[str, Any]]
) -> None:
    """Writes the samples file of a benchmark, in the order of the data set, and images below `images/`.

    Args:
        folder: of the run.
        benchmark: a name of `BENCHMARKS`.
        protocol: "lmms-eval" or "llava".
        model: has just answered the benchmark's one task, and kept the answers in its journal.
        samples: lmms-eval's.
    """
    from llava_stf_eval.benchmarks.lmms_model import request_key

    assert model.journal is not None
    (task,) = tasks(benchmark, protocol)
    lines = []
    kept = 0
    for name, sample in zip(_ids(samples), samples, strict=True):
        key = request_key(task, sample["doc_id"], 0, sample["arguments"][0])
        score = sample_score(benchmark, protocol, sample)
        image = None
        if score is not None and score < RIGHT and kept < MOST_IMAGES:
            images = model.images(key)
            image = _keep(folder, images[0]) if images else None
            kept += 1
        doc = sample["doc"]
        record = {
            "id": name,
            "question": str(doc.get("question", sample["arguments"][0])),
            "prompt": model.journal[key].prompt,
            "answer": sample["filtered_resps"][0],
            "reference": _reference(sample),
            "score": score,
            "image_id": _image_id(benchmark, doc, name),
            "image": image,
            "category": doc.get("category"),
        }
        lines.append(json.dumps(record, ensure_ascii=False, default=str))
    write_file(folder.samples(benchmark), "".join(f"{line}\n" for line in lines))


def _ids(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data set's own ids; where these name several questions, such as an image's pair, with a number behind."""
    own = [str(next((s["doc"][name] for name in _IDS if name in s["doc"]), s["doc_id"])) for s in samples]
    if len(set(own)) == len(own):
        return own
    seen: Counter[str] = Counter()
    numbered = []
    for name in own:
        numbered.append(f"{name}#{seen[name]}")
        seen[name] += 1
    return numbered


def _image_id(benchmark: str, doc: Mapping[str, Any], name: str) -> str:
    """What samples about one image share."""
    own = next((str(doc[column]) for column in _IMAGE_IDS if column in doc), None)
    if own is not None:
        return own
    if benchmark.startswith("mmbench"):
        return str(doc["index"] % ROTATION)
    if benchmark == "mme":
        return f"{doc['category']}/{doc['question_id']}"
    return name


def _reference(sample: Mapping[str, Any]) -> Any:
    """The right answer, or the people's answers."""
    answers = sample["doc"].get("answers")
    if isinstance(answers, list):
        return [answer["answer"] if isinstance(answer, Mapping) else answer for answer in answers]
    return sample["target"]


def _keep(folder: RunFolder, image: Image) -> str:
    """Writes the image, reduced, under a name of its content; returns its path in the run's folder."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90, subsampling=0)
    path = folder.images / f"{hashlib.sha256(content.getvalue()).hexdigest()[:16]}.jpg"
    write_file(path, content.getvalue())
    return str(path.relative_to(folder.root))
