"""Vision towers of other architectures than CLIP."""
