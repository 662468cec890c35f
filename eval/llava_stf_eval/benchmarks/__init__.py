"""A run of benchmarks: which model is asked what, in a process each, and the folder with what comes of it."""
