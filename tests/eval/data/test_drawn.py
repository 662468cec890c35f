"""The synthetic world in the benchmarks' schemas: real task code scores it, and faults in a local copy are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_stf.errors import DataError, LlavaStfError
from llava_stf_eval.protocols import BENCHMARKS, LLAVA, PROTOCOLS

pytest.importorskip("datasets", reason='the data sets are written with it: pip install "llava-stf[eval]"')

from llava_stf_eval.data.drawn import write_benchmarks
from llava_stf_eval.data.schemas import check_data, datasets_cache
from llava_stf_eval.data.tables import TABLES

IMAGES = 20
SERVED = [f"{name}:test" for name, benchmark in BENCHMARKS.items() if benchmark.server]
RIGHT = [f"right/{protocol}/{name}" for protocol in PROTOCOLS for name in BENCHMARKS]
SUBMITTED = [f"right/llava/{name}" for name in SERVED]
WRONG = [
    f"wrong/llava/{name}"
    for name in ("scienceqa", "pope", "mmbench", "mme", "ocrbench", "docvqa", "chartqa", "refcoco")
]
# Chance on the drawn questions is about 8, 30, 50 and 300; below are lower ends of the model's 95 % intervals.
BUNDLED = {"tiny/llava/vqav2": 35, "tiny/llava/textvqa": 55, "tiny/llava/pope": 65, "tiny/llava/mme": 330}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    counts = write_benchmarks(folder, images=IMAGES)
    assert set(counts) == set(BENCHMARKS)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Results of one lmms-eval process, and the folder of its submission files."""
    pytest.importorskip("lmms_eval", reason="runs through it: pip install --no-deps lmms-eval==0.7.3")
    out = tmp_path_factory.mktemp("out")
    environment = {
        **os.environ, "HF_DATASETS_CACHE": str(out / "cache"), "XDG_CACHE_HOME": str(out), "HF_DATASETS_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    script = Path(__file__).with_name("lmms_eval_run.py")
    command = [sys.executable, str(script), str(data), str(out), *RIGHT, *SUBMITTED, *WRONG, *BUNDLED]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((out / "results.json").read_text()), out / "submissions"


@pytest.mark.parametrize("name", RIGHT)
def test_reference_answers_get_the_full_score(run, name):
    result = run[0][name]
    # three of MME's ten categories of perception are drawn, 200 points each
    # and each row of OCRBench is one right answer of its thousand
    full = {"mme": 600, "ocrbench": len(result["scores"])}
    assert result["headline"] == pytest.approx(full.get(name.rpartition("/")[2], 100))
    assert set(result["scores"]) == {1.0}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_get_nothing(run, name):
    assert run[0][name]["headline"] == 0
    assert set(run[0][name]["scores"]) == {0.0}


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_model_knows_what_is_drawn(run, name):
    assert run[0][name]["headline"] > BUNDLED[name]


SHORT = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("benchmark", "ending"),
    [
        ("vqav2", f"?\n{SHORT}"),
        ("gqa", f"?\n{SHORT}"),
        ("vizwiz", f"?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"),
        ("pope", f"?\n{SHORT}"),
        ("mme", f"?\n{SHORT}"),
        ("mmbench", "\nAnswer with the option's letter from the given choices directly."),
        ("mmbench_cn", "\n请直接回答选项字母。"),
    ],
)
def test_llava_prompts_end_as_the_official(run, benchmark, ending):
    assert run[0][f"right/llava/{benchmark}"]["prompt"].endswith(ending)


def test_only_llava_shows_ocr_tokens(run):
    assert "\nReference OCR token: " in run[0]["right/llava/textvqa"]["prompt"]
    assert "OCR" not in run[0]["right/lmms-eval/textvqa"]["prompt"]


def test_test_splits_give_submission_files_and_no_score(run, data):
    from openpyxl import load_workbook
    from pyarrow import parquet

    results, folder = run
    assert all(results[name]["headline"] is None for name in SUBMITTED)
    (table,) = (data / BENCHMARKS["vqav2"].dataset).glob("default/test-*.parquet")
    asked = parquet.read_table(table, columns=["question_id"]).to_pylist()
    rows = json.loads((folder / "vqav2_test.json").read_text())
    assert [row["question_id"] for row in rows] == [row["question_id"] for row in asked]
    assert all(set(row) == {"question_id", "answer"} for row in rows)
    assert json.loads((folder / "vizwiz_test.json").read_text())[0]["image"].endswith(".jpg")
    header, first, *_ = load_workbook(folder / "mmbench_cn_test.xlsx").active.iter_rows(values_only=True)
    assert header[:7] == ("index", "question", "A", "B", "C", "D", "prediction")
    assert all(first[1:6])
    assert (folder / "mmbench_en_dev.xlsx").is_file()  # the official score of dev comes from the server, too


def test_every_copy_passes_the_check_and_the_published_types(data):
    from datasets import load_dataset_builder

    for name, benchmark in BENCHMARKS.items():
        for protocol in PROTOCOLS:
            for split in benchmark.splits:
                check_data(data, f"{name}:{split}", protocol)
        for table in TABLES[name]:
            builder = load_dataset_builder(str(data / benchmark.dataset), table.config)
            assert set(builder.config.data_files) == set(table.splits.values())


def _rewrite(folder, benchmark, change, config=None):
    """Writes one benchmark to the folder and changes the rows of its first table."""
    import pyarrow as pa
    from pyarrow import parquet

    write_benchmarks(folder, images=8, benchmarks=[benchmark])
    table = TABLES[benchmark][0]
    split = table.splits[BENCHMARKS[benchmark].splits[0]]
    (file,) = (folder / BENCHMARKS[benchmark].dataset / table.config).glob(f"{split}-*")
    found = parquet.read_table(file)
    changed = change(found)
    if isinstance(changed, list):
        changed = pa.Table.from_pylist(changed, schema=found.schema)
    parquet.write_table(changed, file)


def _as_text(column):
    """The same table with a column of strings, in the file and in what `datasets` notes about it."""

    def change(table):
        import pyarrow as pa
        from datasets import Features, Value

        features = Features({**Features.from_arrow_schema(table.schema), column: Value("string")})
        rows = [{**row, column: str(row[column])} for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=features.arrow_schema)

    return change


def _set(column, value):
    return lambda table: [{**row, column: value} for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("benchmark", "change", "message"),
    [
        ("mmbench", _as_text("index"), "column 'index' to be int64, found string"),
        ("textvqa", _as_text("ocr_tokens"), "column 'ocr_tokens' to be list<string>, found string"),
        ("scienceqa", _as_text("answer"), "column 'answer' to be int8, found string"),
        ("pope", lambda table: table.drop_columns(["category"]), r"expected a column 'category' \(string\)"),
        ("mmbench", lambda table: table.slice(0, table.num_rows - 1).to_pylist(), "lacks the row with index 300000"),
        ("mmbench_cn", lambda table: table.slice(1).to_pylist(), "question 0 lacks the row with index 0: expected 4"),
        ("mme", lambda table: table.slice(1).to_pylist(), "expected a pair of questions for '.*png'.*found 1"),
        ("pope", _set("category", "random"), "expected the categories 'adversarial', 'popular', 'random', found 'rand"),
        ("vizwiz", _set("answers", None), "at least one reference answers, found 0"),
        ("textvqa", _set("answers", ["a"] * 9), "expected 10 reference answers, found 9"),
        ("refcoco", _set("bbox", [1.0, 2.0, 0.0, 3.0]), "expected a box of left, top, width and height"),
        ("refcoco", _as_text("bbox"), "column 'bbox' to be list<float32>, found string"),
        ("ocrbench", lambda table: table.drop_columns(["dataset"]), r"expected a column 'dataset' \(string\)"),
        ("docvqa", _set("answers", None), "at least one reference answers, found 0"),
        ("vqav2", _set("answers", [{"answer": "a", "answer_confidence": "yes", "answer_id": 1}] * 10), "one answer_id"),
    ],
)
def test_faults_are_one_sentence(tmp_path, benchmark, change, message):
    _rewrite(tmp_path, benchmark, change)
    with pytest.raises(DataError, match=message):
        check_data(tmp_path, benchmark, LLAVA)


def test_missing_folder_configuration_split_and_files(tmp_path, data):
    with pytest.raises(DataError, match=r"expected the data set lmms-lab-encoder/POPE .* found no such folder"):
        check_data(tmp_path, "pope", LLAVA)
    (tmp_path / "lmms-lab").mkdir()
    (tmp_path / "lmms-lab" / "POPE").symlink_to(data / BENCHMARKS["pope"].dataset)
    with pytest.raises(DataError, match="found lmms-lab/POPE: rename or link it"):
        check_data(tmp_path, "pope", LLAVA)
    write_benchmarks(tmp_path, images=8, benchmarks=["mmbench", "gqa"])
    with pytest.raises(DataError, match="expected a configuration 'cn', found 'en'"):
        check_data(tmp_path, "mmbench_cn", LLAVA)
    (tmp_path / BENCHMARKS["vqav2"].dataset).mkdir()
    with pytest.raises(DataError, match="expected a README and Parquet files"):
        check_data(tmp_path, "vqav2", LLAVA)
    (english,) = (tmp_path / BENCHMARKS["mmbench"].dataset).glob("en/dev-*")
    english.write_bytes(english.read_bytes()[:-100])
    with pytest.raises(DataError, match="found none or a damaged one"):
        check_data(tmp_path, "mmbench", LLAVA)
    readme = tmp_path / BENCHMARKS["gqa"].dataset / "README.md"
    readme.write_text(readme.read_text().replace("split: testdev", "split: train"))
    with pytest.raises(DataError, match="expected a split 'testdev', found 'train'"):
        check_data(tmp_path, "gqa", LLAVA)


def test_images_are_the_seeds_own_and_two_copies_share_no_cache(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_benchmarks(tmp_path / folder, images=4, seed=seed, benchmarks=["vqav2"])
    readmes = [(tmp_path / name / BENCHMARKS["vqav2"].dataset / "README.md").read_text() for name in "abc"]
    assert readmes[0] == readmes[1] != readmes[2]
    caches = [datasets_cache(tmp_path / name, "vqav2") for name in "abc"]
    assert len(set(caches)) == 3
    assert datasets_cache(tmp_path / "a", "vqav2") == caches[0]


def test_a_data_set_is_never_overwritten(tmp_path):
    write_benchmarks(tmp_path, images=2, benchmarks=["vqav2"])
    with pytest.raises(DataError, match="is there already"):
        write_benchmarks(tmp_path, images=2, benchmarks=["vizwiz", "vqav2"])
    assert not (tmp_path / BENCHMARKS["vizwiz"].dataset).exists()
    with pytest.raises(LlavaStfError, match="did you mean 'vizwiz'"):
        write_benchmarks(tmp_path, images=2, benchmarks=["vizwizz"])
