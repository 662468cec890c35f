"""Files: weights and JSON, folders that appear whole or not at all, the output folder of a training run."""
