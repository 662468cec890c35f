"""Data sets of the benchmarks: their columns, local copies checked and fetched, and copies made of synthetic data."""
