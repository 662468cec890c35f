"""A run's report: reading the folder, scores beside published ones, plots, and the page to browse wrong answers."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from llava_stf.errors import DataError, LlavaStfError
from llava_stf.reduction import METHODS
from llava_stf.reduction.options import with_options
from llava_stf_eval.protocols import BENCHMARKS
from llava_stf_eval.report import __main__ as command
from llava_stf_eval.report import load_run, load_runs, print_scores, write_report
from llava_stf_eval.report import write as report_write
from llava_stf_eval.report.images import embed_images
from llava_stf_eval.report.page import fair_share
from llava_stf_eval.report.plots import series_of
from llava_stf_eval.report.published import find_published, published_counts, published_rows
from llava_stf_eval.report.scores import footnotes, score_rows
from llava_stf_eval.scoring.mme import PERCEPTION

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
SCORED = {
    "status": "scored", "score": 80.0, "metric": "accuracy, %", "metrics": {}, "questions": 4, "seconds": 2.0,
    "samples_per_second": 2.0, "input_tokens": 200.5, "output_tokens": 2.0, "submission": None, "error": None,
}  # fmt: skip
NOTHING = dict.fromkeys(("score", "seconds", "samples_per_second", "input_tokens", "output_tokens"))


def write_run(folder, scores, *, wrong=3, answer=HOSTILE, **other):
    """A run with these scores, of each benchmark one right and `wrong` wrong answers with images."""
    (folder / "samples").mkdir(parents=True)
    (folder / "images").mkdir()
    for at, name in enumerate(scores):
        lines = []
        for number in range(wrong + 1):
            image = f"images/{name}-{number}.png"
            Image.new("RGB", (40, 30), (20 * at, 50 * number % 256, 99)).save(folder / image)
            lines.append({
                "id": str(number), "question": f"{name} {number} & <b>?</b>", "prompt": "USER: ?", "answer": answer,
                "reference": ["yes", "yes", "Yes"], "score": float(number == 0), "image_id": str(number),
                "image": image, "category": PERCEPTION[number] if name == "mme" else None,
            })  # fmt: skip
        (folder / "samples" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {
        "model": "my-llava-7b", "method": "stf", "vision_tokens": 144, "protocol": "llava", "seed": 0, "limit": None,
        "batch_size": 1, "checkpoint": {"path": "my", "hash": "0"}, "machine": {"cpu": "c", "gpu": None},
        "versions": {"torch": "2"}, "date": "2026-11-22", **other,
        "benchmarks": {**{name: SCORED | {"score": score} for name, score in scores.items()},
                       **other.get("benchmarks", {})},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record))
    return folder


class Reader(HTMLParser):
    """Everything of a page that matters here."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.in_script = [], [], "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] += data
        self.text += data

    def data(self):
        return json.loads(self.scripts[0])


# published figures


def test_published_rows_are_distinct_and_have_sources_and_sane_figures():
    rows = published_rows()
    assert len({(row.model, row.method, row.mean_tokens, str(row.options)) for row in rows}) == len(rows)
    for row in rows:
        assert (row.vision_tokens or 0) <= row.mean_tokens
        assert row.sources
        assert set(row.scores) <= {*BENCHMARKS, "mme_total"}
        for name, (low, high) in row.scores.items():
            most = {"mme": 2000, "mme_total": 2800}.get(name, 100)
            assert 0 < low <= high < most, (row.title, row.vision_tokens, name)


def test_published_rows_of_the_methods_here():
    assert find_published("stf", 144).text("mmbench") == "66.2"
    assert find_published("full", 576, model="llava-1.5-13b").text("mme") == "1531.3"
    assert published_counts("divprune") == [32, 64, 128, 192]
    assert find_published("divprune", 128).text("scienceqa") == "68.7-69.0"
    assert find_published("divprune", 64).text("scienceqa") == "68.1-68.2"
    assert [find_published("tome", tokens).text("gqa") for tokens in (192, 128, 64)] == ["54.3", "52.4", "48.6"]
    assert find_published("visionzip", 64).text("mme") == "1365.6"


@pytest.mark.parametrize(
    ("mean", "kept", "gqa"),
    [(192, 166, "52.6-57.1"), (128, 98, "49.6-55.3"), (64, 30, "46.1-48.0"), (171, 144, "56.6")],
)
def test_published_budgets_are_means_over_layers(mean, kept, gqa):
    row = find_published("fastv", mean_tokens=mean)
    assert (row.vision_tokens, row.text("gqa")) == (kept, gqa)
    assert find_published("fastv", kept) is row
    assert METHODS["fastv"].mean_tokens(32, 576, kept) == pytest.approx(mean, abs=0.5)
    assert f"{mean} tokens in the mean over layers, {kept} kept" in row.budget


def test_a_published_row_is_found_by_the_mean_that_its_method_gives():
    for row in published_rows():
        method = METHODS.get(row.method)
        if row.model == "llava-1.5-7b" and method is not None and row.vision_tokens is not None:
            mean = with_options(method, row.options).mean_tokens(32, 576, row.vision_tokens)
            assert find_published(row.method, mean_tokens=mean, options=row.options) is row


def test_published_rows_of_other_options_and_of_pruning_in_steps():
    assert find_published("fastv", 192) is None  # would be a mean of 216
    assert find_published("fastv", 288) is None
    assert find_published("fastv", 288, options={"full_layers": 3}).text("mme") == "1511.7"
    assert find_published("sparsevlm", 192) is None
    assert find_published("sparsevlm-1.0", mean_tokens=192).text("gqa") == "57.6"
    assert find_published("pyramiddrop", mean_tokens=64).text("mmbench") == "33.3-58.8"
    with pytest.raises(LlavaStfError, match="one of the two"):
        find_published("fastv")


@pytest.mark.parametrize(
    ("method", "table", "kept"),
    [("sparsevlm", 192, 113), ("sparsevlm", 128, 39), ("sparsevlm", 64, 18), ("dart", 192, 196), ("dart", 64, 68)],
)
def test_rows_that_their_tables_count_otherwise(method, table, kept):
    row = find_published(method, mean_tokens=table)
    assert row is find_published(method, kept)
    assert row is find_published(method, mean_tokens=row.mean_tokens)
    assert METHODS[method].mean_tokens(32, 576, kept) == pytest.approx(row.mean_tokens, abs=0.5)


@pytest.mark.parametrize(("score", "difference"), [(60.0, -8.7), (68.8, 0.0), (70.0, 1.0)])
def test_difference_to_a_range_is_to_its_nearer_end(score, difference):
    assert find_published("divprune", 128).difference("scienceqa", score) == pytest.approx(difference)


# reading


def test_benchmarks_stand_in_the_papers_order(tmp_path):
    run = load_run(write_run(tmp_path / "run", {"mme": 1400.0, "vqav2:test": 1.0, "gqa": 2.0, "vqav2": 3.0}))
    assert list(run.benchmarks) == ["vqav2", "vqav2:test", "gqa", "mme"]
    assert [sample.id for sample in run.samples("gqa")] == ["0", "1", "2", "3"]


def test_runs_alike_are_told_apart_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / name, {"gqa": 1.0}) for name in ("one", "two")]
    assert [run.label.split(" · ")[-1] for run in load_runs(folders)] == ["one", "two"]
    assert load_run(folders[0]).label == "my-llava-7b · stf · 144 tokens"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "found none at"),
        (lambda folder: (folder / "results.json").unlink(), "results.json, found none"),
        (lambda folder: (folder / "results.json").rename(folder / "run.json"), "not finished.*--resume"),
        (lambda folder: (folder / "results.json").write_text("{"), "Expected JSON"),
        (
            lambda folder: (folder / "results.json").write_text('{"complete": false, "benchmarks": {}}'),
            "was broken off.*--resume",
        ),
        (lambda folder: (folder / "results.json").write_bytes(b"\xff\xfe"), "Expected JSON"),
        (lambda folder: (folder / "results.json").write_text("[]"), "'benchmarks'"),
        (lambda folder: (folder / "results.json").write_text('{"benchmarks": {}}'), "Expected 'model'"),
        (lambda folder: (folder / "results.json").write_text('{"benchmarks": {"gqa": 1}}'), "benchmark gqa, found int"),
        (
            lambda folder: (folder / "results.json").write_text(
                json.dumps({"benchmarks": {"gqa": SCORED | {"score": "9"}}})
            ),
            "for a score in .* benchmark gqa, found '9'",
        ),
    ],
    ids=[
        "no-folder",
        "no-results",
        "unfinished",
        "no-json",
        "broken-off",
        "no-text",
        "list",
        "missing-key",
        "no-object",
        "text",
    ],
)
def test_folders_without_a_run_are_refused(tmp_path, damage, message):
    folder = write_run(tmp_path / "run", {"gqa": 1.0})
    damage(folder)
    with pytest.raises(DataError, match=message):
        load_run(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 5, found"), ('{"id": "4"}', "Expected 'question'.*line 5"), ("NaN", "found float"),
     (json.dumps(dict.fromkeys(("id", "question", "prompt", "reference", "score", "image_id", "image"), "4")
                 | {"answer": 3}), "answer to be text in .*line 5, found 3"),
     (json.dumps(dict.fromkeys(("id", "question", "prompt", "answer", "reference", "image_id", "image"), "4")
                 | {"score": float("nan")}), "finite number.*line 5, found nan")],
)  # fmt: skip
def test_damaged_samples_are_named_by_line(tmp_path, line, message):
    folder = write_run(tmp_path / "run", {"gqa": 1.0})
    with (folder / "samples" / "gqa.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        list(load_run(folder).samples("gqa"))


# scores


def test_a_variant_of_a_method_has_a_name_of_its_own_and_no_published_figures(tmp_path):
    variant = {"method": "tome", "vision_tokens": 64, "method_options": {"order": "raster"}, "mean_tokens": 64.0}
    run = load_run(write_run(tmp_path / "run", {"gqa": 60.0}, **variant))
    assert run.label == "my-llava-7b · tome, order=raster · 64 tokens"
    assert score_rows(run)[0].cells[1] == "–"
    plain = load_run(write_run(tmp_path / "plain", {"gqa": 60.0}, **variant | {"method_options": {}}))
    assert score_rows(plain)[0].cells[1] == "48.6"


def test_a_bundled_model_stands_beside_a_published_one_of_the_same_mean(tmp_path):
    # FastV keeps 16 of 64 after 2 of 4 layers: a mean of 40, the share of 360 of 576.
    fastv = {"model": "tiny-full", "method": "fastv", "vision_tokens": 16, "mean_tokens": 40.0}
    run = load_run(write_run(tmp_path / "run", {"gqa": 60.0}, **fastv))
    assert score_rows(run)[0].cells[1] == "–"
    assert "40 tokens in the mean over layers, 16 kept" in footnotes(run)[0]


def test_scores_stand_beside_the_published_ones_of_the_method(tmp_path):
    run = load_run(write_run(tmp_path / "run", {"vqav2": 76.1, "textvqa": 58.0}))
    rows = score_rows(run)
    assert [row.cells[:3] for row in rows] == [("76.1", "78.1", "-2.0"), ("58.0", "57.4", "+0.6")]
    notes = "\n".join(footnotes(run))
    assert "LLaVA-STF 7B, 144 tokens; from README of visresearch/LLaVA-STF" in notes
    assert "VQAv2 is of test-dev, this score of val" in notes
    assert "TextVQA" not in notes


@pytest.mark.parametrize(
    ("method", "asked", "said", "unsaid"),
    [
        ("stf", ["pope"], [], ["GQA", "MME"]),
        ("stf", ["pope", "gqa"], ["GQA is 61.9 in the README's table"], ["MME"]),
        ("sparsevlm", ["pope", "mmbench_cn"], ["Release 1.5", "MMBench-CN of SIEVE's copy"], ["VQAv2"]),
        ("pool", ["pope"], ["before or after the projector"], []),
        (
            "pool",
            ["mme", "docvqa"],
            ["No figures of", "on these benchmarks are known."],
            ["projector", "README", "protocol"],
        ),
    ],
)
def test_footnotes_are_about_what_was_asked(tmp_path, method, asked, said, unsaid):
    tokens = {"sparsevlm": 113}.get(method, 144)
    scores = dict.fromkeys(asked, 60.0)
    notes = "\n".join(footnotes(load_run(write_run(tmp_path / "run", scores, method=method, vision_tokens=tokens))))
    assert all(sentence in notes for sentence in said)
    assert not any(word in notes for word in unsaid)


def test_bundled_models_get_published_figures_at_their_share_of_tokens_but_no_difference(tmp_path):
    run = load_run(write_run(tmp_path / "run", {"pope": 83.0}, model="tiny", vision_tokens=16))
    (row,) = score_rows(run)
    assert row.cells[:3] == ("83.0", "86.0", "–")  # 16 of 64 tokens as 144 of 576
    assert "drawn images" in "\n".join(footnotes(run))


@pytest.mark.parametrize(
    ("model", "method", "tokens", "published", "note"),
    [
        ("vicuna-13b-mine", "full", 576, "63.3", "LLaVA-1.5-13B"),
        ("llava-7b-lora", "full", 576, "63.0", "LoRA"),
        ("llava-7b", "fastv", 144, "56.6", "171 tokens in the mean over layers, 144 kept"),
        ("llava-7b", "fastv", 128, "–", "published of fastv are 32, 64, 128, 171, 192, 315 in the mean over layers"),
        ("llava-7b", "random", 144, "–", "none are published"),
    ],
)
def test_which_published_row_a_run_gets(tmp_path, model, method, tokens, published, note):
    run = load_run(write_run(tmp_path / "run", {"gqa": 60.0}, model=model, method=method, vision_tokens=tokens))
    assert score_rows(run)[0].cells[1] == published
    assert note in footnotes(run)[0]


def test_table_says_what_failed_and_fits_eighty_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    failed = SCORED | NOTHING | {"status": "failed", "error": "DataError: no [pair]", "questions": 0}
    sent = SCORED | NOTHING | {"status": "submission", "submission": "submissions/answers.json"}
    scores = dict.fromkeys(BENCHMARKS, 71.25)
    folder = write_run(tmp_path / "run", scores, benchmarks={"mme": failed, "vqav2:test": sent})
    print_scores([load_run(folder)])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert re.search(r"MMBench-CN +71.[23] +58.9", printed)
    assert "MME failed: DataError: no [pair]" in printed
    assert re.search(r"VQAv2, test +to submit", printed)
    print_scores(load_runs([folder, write_run(tmp_path / "other", {"gqa": 70.25})]))
    assert "(-1.0)" in capsys.readouterr().out


# report


def test_report_of_one_run(tmp_path):
    folder = write_run(tmp_path / "run", dict.fromkeys(BENCHMARKS, 66.0) | {"ocrbench": 1.0})
    (folder / "report.html").write_text("an earlier report")
    written = write_report(folder)
    assert {path.name for path in written} == {"report.html", "bars.png", "radar.png"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in written} | {
        "samples", "images", "results.json",
    }  # fmt: skip
    for path in written[:2]:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 400
        assert pixels.std() > 10  # something is drawn
    page = Reader((folder / "report.html").read_text())
    assert all(benchmark.title in page.text for benchmark in BENCHMARKS.values())
    assert len(page.data()["items"]) == 3 * len(BENCHMARKS)
    assert len(page.data()["images"]) == 3 * len(BENCHMARKS)


def test_page_stands_alone_and_is_escaped(tmp_path):
    folder = write_run(tmp_path / "run", {"gqa": 60.0, "pope": 80.0}, model=f"llava-7b{HOSTILE}", protocol="<i>x</i>")
    write_report(folder)
    text = (folder / "report.html").read_text()
    page = Reader(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2
    assert "i" not in names
    fetched = [a[name] for _, a in page.tags for name in ("src", "srcset", "href", "action") if name in a]
    assert all(address.startswith(("data:image/", "#")) for address in fetched)
    assert len(fetched) >= 3  # the bars for light and dark pages, the link to the answers
    assert "://" not in text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {"items", "state", "previous", "next", "benchmark", "group", "search", "browser", "controls"} <= set(ids)
    item = page.data()["items"][0]
    assert item["facts"][0] == ["answer", HOSTILE]
    assert item["facts"][1] == ["reference", "yes, Yes"]
    assert item["question"] == "gqa 1 & <b>?</b>"
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_report_puts_runs_side_by_side(tmp_path):
    full = write_run(
        tmp_path / "full",
        dict.fromkeys(BENCHMARKS, 70.0) | {"ocrbench": 1.0},
        method="full",
        vision_tokens=576,
        protocol="lmms-eval",
    )
    fused = write_run(tmp_path / "fused", dict.fromkeys(BENCHMARKS, 69.5) | {"ocrbench": 1.0})
    write_report(full, others=[fused])
    assert not (fused / "report.html").exists()
    page = Reader((full / "report.html").read_text())
    assert "69.5 (-0.5)" in page.text
    assert "different protocols, lmms-eval and llava" in page.text
    assert {item["group"] for item in page.data()["items"]} == {
        "my-llava-7b · full · 576 tokens",
        "my-llava-7b · stf · 144 tokens",
    }


def test_bars_stand_below_what_the_questions_asked_can_score(tmp_path):
    """Four of MME's categories give 800, four questions of OCRBench 4; a published row is of all of them."""
    folder = write_run(tmp_path / "run", {"gqa": 60.0, "mme": 790.0, "ocrbench": 3.0}, method="stf", vision_tokens=144)
    own, published = series_of([load_run(folder)])
    assert own.highest == {"gqa": 100, "mme": 800, "ocrbench": 4}
    assert published.highest == {name: BENCHMARKS[name].scale for name in published.scores}
    assert published.highest["mme"] == 2000


def test_no_radar_of_two_benchmarks_and_none_left_from_before(tmp_path):
    folder = write_run(tmp_path / "run", {"gqa": 60.0, "pope": 80.0})
    (folder / "radar.png").write_bytes(b"of an earlier report")
    assert {path.name for path in write_report(folder)} == {"report.html", "bars.png"}
    assert not (folder / "radar.png").exists()


def test_report_of_a_run_without_a_score(tmp_path):
    failed = SCORED | NOTHING | {"status": "failed", "error": "no memory", "questions": 0}
    folder = write_run(tmp_path / "run", {}, benchmarks={"gqa": failed})
    write_report(folder)
    assert "GQA failed: no memory" in (folder / "report.html").read_text()


def test_items_and_images_keep_to_their_budgets(tmp_path, monkeypatch):
    monkeypatch.setattr(report_write, "MAX_ITEMS", 6)
    folder = write_run(tmp_path / "run", {"gqa": 60.0, "pope": 80.0, "mme": 1000.0}, wrong=4)
    write_report(folder)
    page = Reader((folder / "report.html").read_text())
    assert [item["benchmark"] for item in page.data()["items"]] == ["GQA", "GQA", "POPE", "POPE", "MME", "MME"]
    assert "the first 6 of 12" in page.text
    paths = sorted((folder / "images").iterdir())
    every = embed_images(paths)
    room = sum(len(address) for address in list(every.values())[:4])
    assert list(embed_images([paths[0], *paths], budget=room)) == paths[:4]


def test_images_that_cannot_be_read_or_lie_elsewhere_are_not_embedded(tmp_path):
    folder = write_run(tmp_path / "run", {"gqa": 60.0})
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (folder / "images" / "gqa-1.png").write_bytes(b"no image")
    lines = (folder / "samples" / "gqa.jsonl").read_text().replace("images/gqa-2.png", "../private.png")
    (folder / "samples" / "gqa.jsonl").write_text(lines)
    write_report(folder)
    data = Reader((folder / "report.html").read_text()).data()
    shown = [(item["image"], item["missing"]) for item in data["items"]]
    assert shown[:2] == [(None, "not embedded: gqa-1.png"), (None, "no image")]
    image = Image.open(io.BytesIO(base64.b64decode(data["images"][shown[2][0]].partition(",")[2])))
    assert image.size == (40, 30)


@pytest.mark.parametrize(
    ("counts", "total", "shares"),
    [([5, 1, 9], 9, [4, 1, 4]), ([2, 2], 10, [2, 2]), ([], 5, []), ([7, 7], 5, [2, 3])],
)
def test_fair_share(counts, total, shares):
    assert fair_share(counts, total) == shares


def test_command_writes_the_report_and_names_a_folder_that_is_none(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "run", {"gqa": 60.0})
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    command.main()
    assert str(folder / "report.html") in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "none")])
    with pytest.raises(LlavaStfError, match="none"):
        command.main()


# A page's elements, as far as its script uses them; then a reader who turns pages, filters and searches.
BROWSER = """
const fs = require("fs");
const [, data, script] = fs.readFileSync(0, "utf8").match(/id="data">(.*?)<\\/script>\\s*<script>(.*?)<\\/script>/s);
class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), children: [], on: {}, value: "", parentElement: {} });
  }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  addEventListener(name, act) { this.on[name] = act; }
  scrollIntoView() {}
}
const ids = { data: { textContent: data } };
const document = {
  getElementById: (id) => (ids[id] ??= new Element("div")),
  createElement: (tag) => new Element(tag),
  addEventListener: (name, act) => (document.act = act),
};
new Function("document", script)(document);
const seen = [];
const { state, items, previous, next } = ids;
const look = () => seen.push([state.textContent, items.children.length, previous.disabled, next.disabled]);
look();
next.on.click(); look();
document.act({ key: "ArrowLeft", target: { tagName: "BODY" } }); look();
document.act({ key: "ArrowRight", target: { tagName: "INPUT" } }); look();
ids.benchmark.value = "POPE"; ids.benchmark.on.change(); look();
ids.search.value = "POPE 3 "; ids.search.on.input(); look();
const [image, words] = items.children[0].children;
console.log(JSON.stringify({ seen, image: image.src.slice(0, 22), question: words.children[0].textContent,
  answer: words.children[1].children[1].textContent, options: ids.benchmark.children.map((o) => o.textContent) }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js to run the page's script")
def test_script_pages_filters_and_searches(tmp_path):
    folder = write_run(tmp_path / "run", {"gqa": 60.0, "pope": 80.0}, wrong=15)
    write_report(folder)
    with (folder / "report.html").open("rb") as page:
        ran = subprocess.run(["node", "-e", BROWSER], stdin=page, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["seen"] == [
        ["1 to 20 of 30", 20, True, False],
        ["21 to 30 of 30", 10, False, True],
        ["1 to 20 of 30", 20, True, False],
        ["1 to 20 of 30", 20, True, False],  # an arrow key in a field moves its cursor and nothing else
        ["1 to 15 of 15", 15, True, True],
        ["1 to 1 of 1", 1, True, True],
    ]
    assert found["options"] == ["GQA (15)", "POPE (15)"]
    assert (found["image"], found["question"]) == ("data:image/jpeg;base64", "pope 3 & <b>?</b>")
    assert found["answer"] == HOSTILE
