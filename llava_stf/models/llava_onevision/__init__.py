"""LLaVA-OneVision on fused tokens, as a model of transformers: configuration, modeling, processing."""
