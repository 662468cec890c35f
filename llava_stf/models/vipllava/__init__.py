"""ViP-LLaVA on pooled tokens, as a model of transformers: configuration, modeling, processing."""
