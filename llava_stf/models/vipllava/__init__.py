"""ViP-LLaVA on fused tokens, as a model of transformers: configuration, modeling, processing."""
