"""Reports of benchmark runs: tables beside published figures, plots, and a page to browse wrong answers."""

from llava_stf_eval.report.runs import BenchmarkResult, Run, Sample, load_run, load_runs
from llava_stf_eval.report.scores import print_scores
from llava_stf_eval.report.write import write_report

__all__ = ["BenchmarkResult", "Run", "Sample", "load_run", "load_runs", "print_scores", "write_report"]
