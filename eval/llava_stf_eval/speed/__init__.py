"""What an answer costs in time and memory, stage by stage, for several ways to shorten the sequence in one process.

`llava-stf bench speed` is the command; `measure` of `run` is the same from Python.
"""
