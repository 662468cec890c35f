"""The benchmarks' scoring rules as functions of answers: no model, no data set, no lmms-eval run."""
