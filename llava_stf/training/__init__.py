"""Finetuning on data in LLaVA's format: `accelerate launch -m llava_stf.training.finetune --config FILE`."""
