"""Tasks of ours for lmms-eval: YAML files that include its own, and what they call (`prompts`, `results`).

In the YAML files `$lmms_eval` stands for the folder of lmms-eval's tasks; `protocols.include_path` fills it in.
Functions are named by their full module, so that the files work from whatever folder they are written to.
"""
