"""Evaluation of llava_stf models: accuracy and cost on drawn images (`llava_stf_eval.drawn`)."""

__all__: list[str] = []
