"""What a folder or a data set is taken for: hidden files are no data, and columns of another meaning are named."""

import pytest
from PIL import Image

from llava_stf.batch.rows import open_rows
from llava_stf.data.label_questions import ImageQuestions
from llava_stf.data.sources import open_records, open_stream
from llava_stf.encoders.pretrain.data import open_images
from llava_stf.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Images a.png and sub/b.png, and others that an editor and a system keep."""
    for name in ("a.png", "sub/b.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/._b.png", ".trash/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def test_hidden_images_are_none(folder):
    assert ImageQuestions(folder, ["What?"], folder).paths == ["a.png", "sub/b.png"]
    assert len(open_rows(folder, question="What?", images=None, allow_urls=False)) == 2
    assert len(open_images(str(folder))) == 2


def test_a_folder_that_is_hidden_itself_can_be_named(folder):
    assert ImageQuestions(folder / ".trash", ["What?"], folder).paths == [".trash/deep/c.png"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_other_columns_says_which_it_has_and_which_are_needed(tmp_path, streaming):
    datasets = pytest.importorskip("datasets", reason="needs the extra train")
    path = str(tmp_path / "vqa.parquet")
    datasets.Dataset.from_list([{"question": "Who?", "answer": "I."}]).to_parquet(path)
    with pytest.raises(DataError, match="columns question, answer; expected conversations or messages"):
        open_stream(path, seed=0) if streaming else open_records(path)


@pytest.mark.parametrize("field", ["video", "audio"])
def test_a_batch_row_with_more_than_images_says_so(tmp_path, field):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"image": "a.png", "question": "What?", "{field}": "a.mp4"}}\n')
    row = open_rows(path, question=None, images=tmp_path, allow_urls=False)[0]
    assert row.reason == f"it has '{field}', and only text and images can be used"
