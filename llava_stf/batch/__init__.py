"""Questions over many images, answered offline: `llava-stf batch INPUT OUTPUT`, or `run_batch` from Python."""
