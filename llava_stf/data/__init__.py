"""Training data: records of LLaVA's format from files, hub and stream, and their preparation."""
