"""Pre-training of vision encoders: `accelerate launch -m llava_stf.encoders.pretrain --method ... --config ...`."""
