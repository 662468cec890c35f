"""Self-supervised image encoders: what is known, conversion to Vision Transformers of transformers, pre-training."""
