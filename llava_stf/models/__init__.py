"""The models: configuration, vision tower, fusion, generation, and the patch of a plain LLaVA."""
