"""How a server of LLaVAs does under load: requests a second, time to first token, gaps between tokens, KV cache.

`llava-stf bench serve` is the command; `measure` of `run` is the same from Python.
"""
