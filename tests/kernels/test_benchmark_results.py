"""What the benchmark scripts keep: result files that a later run goes on with, and the tables and targets from them."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels" / "benchmarks"))  # siblings import one another

import cases
import harness
import records
import tables
import targets
from measuring import Machine
from shapes import Rates

MACHINE = Machine("Card 9", "9.0", "1.2", "13.0", "2.11.0", "3.6.0", "5.17.0", "3.12.3", "abc1234", "0123456789ab")
RATES = Rates(copy_tb_s=4.0, matmul_tflop_s=800.0)


def new_results(folder, what="projector", *, machine=MACHINE, date="2026-01-31"):
    return records.Results(folder, what, date, ["python x"], machine, RATES)


def projector_row(implementation, ms, *, batch=1, peak_bytes=None):
    case = {
        "model": "7b", "op": "projector", "direction": "forward", "batch": batch, "dtype": "bf16",
        "implementation": implementation,
    }  # fmt: skip
    work = cases.work_of(case)
    return records.Row(case, ms, 0.0, 7, 10, work.flops, work.bytes, peak_bytes=peak_bytes)


@pytest.fixture
def projector_results(tmp_path):
    """A written result file: ours takes half of eager's time and a quarter of its memory."""
    results = records.open_results(tmp_path / "results", new_results(None), fresh=False)
    results.add(projector_row("ours", 0.25, batch=64, peak_bytes=2**20))
    results.add(projector_row("eager", 0.5, batch=64, peak_bytes=2**22))
    results.add(projector_row("compile", 0.4, batch=64))
    results.add(projector_row("compile-no-graphs", 0.3, batch=64))
    return results


@pytest.fixture
def readmes(tmp_path):
    """Two files with the markers and the options that name them."""
    for name in ("short.md", "complete.md"):
        (tmp_path / name).write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n", encoding="utf-8")
    return ["--readme", str(tmp_path / "short.md"), "--kernels-readme", str(tmp_path / "complete.md")]


class TestRecords:
    def test_what_is_written_is_read_again(self, projector_results):
        [read] = records.all_results(projector_results.path.parent)
        assert read == projector_results
        assert read.path.name == "card-9-2026-01-31-projector.json"

    def test_a_row_of_the_same_case_is_replaced(self, projector_results):
        projector_results.add(projector_row("ours", 0.2, batch=64))
        [read] = records.all_results(projector_results.path.parent)
        assert [row.ms for row in records.select(read.rows, implementation="ours")] == [0.2]
        assert len(read.rows) == 4

    def test_goes_on_with_the_same_machine_and_code_on_another_day(self, projector_results):
        later = dataclasses.replace(MACHINE, commit="def5678-dirty")
        folder = projector_results.path.parent
        opened = records.open_results(folder, new_results(None, machine=later, date="2026-02-01"), fresh=False)
        assert opened.path == projector_results.path
        assert len(opened.rows) == 4

    @pytest.mark.parametrize("change", [{"sources": "ba9876543210"}, {"gpu": "Card 8"}, {"torch": "2.12.0"}])
    def test_starts_anew_where_something_counts(self, projector_results, change):
        other = dataclasses.replace(MACHINE, **change)
        opened = records.open_results(projector_results.path.parent, new_results(None, machine=other), fresh=False)
        assert opened.rows == []

    def test_fresh_starts_anew(self, projector_results):
        assert records.open_results(projector_results.path.parent, new_results(None), fresh=True).rows == []

    def test_a_failed_write_leaves_the_old_file(self, projector_results):
        before = projector_results.path.read_bytes()
        projector_results.commands = [object()]
        with pytest.raises(TypeError):
            projector_results.write()
        assert projector_results.path.read_bytes() == before
        assert [path.suffix for path in projector_results.path.parent.glob("*.json")] == [".json"]

    def test_a_foreign_file_is_named(self, tmp_path):
        (tmp_path / "x.json").write_text("{}")
        with pytest.raises(ValueError, match=r"x\.json is no benchmark result"):
            records.all_results(tmp_path)


class TestSession:
    """Rows are measured by what a test passes in; the device's rates are those of the opened file."""

    @pytest.fixture
    def session(self, projector_results):
        session = harness.Session(projector_results)
        session.measured = []

        def measure(case, error=None):
            def row():
                session.measured.append(case)
                if error:
                    raise error
                return dataclasses.replace(projector_row("ours", 1.0), case=case)

            session.measure(case, row)

        session.try_case = measure
        return session

    def test_a_row_that_is_there_is_not_measured_again(self, session):
        session.try_case(session.results.rows[0].case)
        assert session.measured == []
        assert session.finish() == 0

    def test_a_new_row_is_written_at_once(self, session):
        session.try_case({"batch": 7})
        assert records.only(records.read_results(session.results.path).rows, batch=7).ms == 1.0

    def test_a_failure_is_told_and_does_not_stop_the_rest(self, session, capsys):
        session.try_case({"batch": 7}, cases.WrongResultError("relative errors"))
        session.try_case({"batch": 8})
        assert session.finish() == 1
        assert "FAILED WrongResultError: relative errors" in capsys.readouterr().out
        assert [row.case for row in session.results.rows[-1:]] == [{"batch": 8}]

    def test_after_the_budget_nothing_is_begun(self, projector_results):
        session = harness.Session(projector_results, budget=0)
        session.measure({"batch": 7}, lambda: pytest.fail("measured"))
        assert session.finish() == harness.INCOMPLETE


class TestTables:
    def run(self, monkeypatch, folder, readmes, *options):
        monkeypatch.setattr(sys, "argv", ["tables.py", "--results", str(folder), *readmes, *options])
        return tables.main()

    def test_of_no_results_say_so(self, tmp_path, monkeypatch, readmes):
        assert self.run(monkeypatch, tmp_path / "none", readmes) == 0
        text = (tmp_path / "short.md").read_text()
        assert text == f"before\n{tables.START}\n{tables.NOT_MEASURED}\n{tables.END}\nafter\n"

    def test_rows(self, tmp_path, monkeypatch, readmes, projector_results):
        assert self.run(monkeypatch, projector_results.path.parent, readmes) == 0
        [line] = [line for line in (tmp_path / "short.md").read_text().splitlines() if line.startswith("| 7B")]
        # ours, eager, no convolution, the faster of both compiled; ratios; floor of 6.67 ms; memory.
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:8] == ["7B forward, bf16", "64", "0.250", "0.500", tables.EMPTY, "0.300", "2.00", "1.20"]
        assert cells[9:] == ["1", "4"]

    def test_name_their_conditions(self, tmp_path, monkeypatch, readmes, projector_results):
        self.run(monkeypatch, projector_results.path.parent, readmes)
        for name in ("short.md", "complete.md"):
            text = (tmp_path / name).read_text()
            assert all(word in text for word in ("Card 9", "driver 1.2", "2026-01-31", "abc1234", "4.00 TB/s"))

    def test_the_newest_result_of_a_card_counts(self, projector_results):
        newer = new_results(None, date="2026-03-01")
        newer.rows = [projector_row("ours", 0.125)]
        table = tables.markdown([projector_results, newer], complete=False)
        assert "0.125" in table
        assert "0.250" not in table

    def test_check(self, tmp_path, monkeypatch, readmes, projector_results):
        folder, before = projector_results.path.parent, (tmp_path / "short.md").read_text()
        assert self.run(monkeypatch, folder, readmes, "--check") == 1
        assert (tmp_path / "short.md").read_text() == before
        assert self.run(monkeypatch, folder, readmes) == 0
        assert self.run(monkeypatch, folder, readmes, "--check") == 0
        projector_results.add(projector_row("ours", 0.2, batch=64))
        assert self.run(monkeypatch, folder, readmes, "--check") == 1

    @pytest.mark.parametrize("text", ["", tables.START, tables.END + tables.START, (tables.START + tables.END) * 2])
    def test_markers_must_be_there_once(self, text):
        with pytest.raises(ValueError, match="expected one"):
            tables.replaced(text, "table")


class TestTargets:
    def test_met_and_missed_and_not_measured(self, projector_results):
        lines = "\n".join(targets.target_lines([projector_results]))
        assert "eager over ours, B=64: 2.00 (target at least 1.15: met)" in lines
        assert "torch.compile over ours, B=64: 1.20 (target at least 1.00: met)" in lines
        assert "memory over eager's, B=64: 0.25 (target at most 0.50: met)" in lines
        assert "eager over ours, B=16: not measured (target at least 1.15)" in lines
        projector_results.add(projector_row("compile-no-graphs", 0.2, batch=64))
        assert "B=64: 0.80 (target at least 1.00: MISSED)" in "\n".join(targets.target_lines([projector_results]))

    def test_first_token(self):
        results = new_results(None, "model")
        for tokens, ms in ((576, 24.0), (144, 10.0)):
            case = {"model": "7b", "part": "first_token", "tokens": tokens, "batch": 1, "mode": "compiled"}
            results.rows.append(records.Row(case, ms, 0.0, 7, 1, 1, 1))
        [line] = [line for line in targets.target_lines([results]) if "compiled" in line and "B=1:" in line]
        assert line.endswith("2.40 (target at least 2.30: met)")
