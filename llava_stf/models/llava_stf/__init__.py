"""LLaVA-STF as a model of transformers, named as there: configuration, modeling, processing."""
