"""Frames of a video: which are chosen, from what they are read, and what is said of what is no video."""

import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from llava_stf.errors import MissingDependencyError, VideoError
from llava_stf.images.decode import even_indices
from llava_stf.images.frames import Video, is_video


def grey(total, side=16):
    """Frames [total, side, side, 3] whose level tells their number."""
    levels = np.arange(total, dtype=np.uint8) * 8
    return np.broadcast_to(levels[:, None, None, None], (total, side, side, 3)).copy()


def numbers(video):
    return [round(np.asarray(frame).mean() / 8) for frame in video.frames]


@pytest.fixture
def animation(tmp_path):
    frames = [Image.fromarray(frame) for frame in grey(12)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    return tmp_path / "a.gif"


@pytest.mark.parametrize("total", [1, 2, 3, 7, 30, 1000])
@pytest.mark.parametrize("wanted", [1, 2, 3, 8, 64])
def test_indices_rise_evenly_from_the_first_to_the_last(total, wanted):
    indices = even_indices(total, wanted)
    assert len(indices) == min(total, wanted)
    assert indices == sorted(set(indices))
    if len(indices) > 1:
        assert (indices[0], indices[-1]) == (0, total - 1)
        steps = np.diff(indices)
        assert max(steps) - min(steps) <= 1


def test_arrays_lists_and_animations_are_read_alike(animation):
    expected = [0, 4, 7, 11]
    for source in (grey(12), list(grey(12)), [Image.fromarray(frame) for frame in grey(12)], animation, str(animation)):
        video = Video(source, frames=4)
        assert numbers(video) == expected
        assert video.total == 12
    assert numbers(Video(grey(3), frames=8)) == [0, 1, 2]
    assert numbers(Video(grey(3), frames=1)) == [1]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_files_are_read_by_pyav(tmp_path, suffix):
    av = pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width = stream.height = 32
        for image in grey(25, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    video = Video(tmp_path / f"a.{suffix}", frames=5)
    assert video.total == 25
    assert numbers(video) == [0, 6, 12, 18, 24]
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 85 // 100])
    if suffix == "avi":  # an index is not needed: what is there is shown
        assert 2 < Video(tmp_path / "cut.avi", frames=100).total < 25


def test_what_is_no_video_says_so(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all, only words")
    cases = {
        "is one image": tmp_path / "a.png",
        "empty file": tmp_path / "empty.mp4",
        "Cannot open": tmp_path / "absent.mp4",
        "shape": np.zeros((8, 8, 3), np.uint8),
        "no frame": np.zeros((0, 8, 8, 3), np.uint8),
        "frame cannot be read": [Image.new("RGB", (8, 8)), "absent.png"],
        "a path, an array": 7,
    }
    for sentence, source in cases.items():
        with pytest.raises(VideoError, match=sentence):
            Video(source)
    with pytest.raises(VideoError, match="frames=0"):
        Video(grey(3), frames=0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llava-stf\[video\]'"):
        Video(tmp_path / "text.mp4")


def test_a_damaged_file_says_so(tmp_path):
    pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    (tmp_path / "text.mp4").write_text("no video at all, only words")
    with pytest.raises(VideoError, match="damaged, or no video"):
        Video(tmp_path / "text.mp4")


def test_what_is_taken_for_a_video_unasked():
    assert [is_video(source) for source in ("a.mp4", "b.MOV", "c.png", grey(2), grey(1)[0], b"x")] == [
        True, True, False, True, False, False,
    ]  # fmt: skip


def test_the_command_asks_about_a_video(tmp_path, animation):
    from typer.testing import CliRunner

    from llava_stf import load_model
    from llava_stf.cli import app
    from llava_stf.loading.testing_videos import tiny_video_llava

    for part in tiny_video_llava():
        part.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--max-new-tokens", "4"]
    done = CliRunner().invoke(app, ["ask", str(animation), "What?", "--frames", "3", *options])
    assert done.exit_code == 0, done.output
    expected = load_model(tmp_path / "model").ask(Video(animation, frames=3), "What?", max_new_tokens=4)
    assert done.stdout.strip() == expected
