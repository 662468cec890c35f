"""`llava-stf serve`: a LLaVA behind OpenAI's HTTP routes, on transformers alone."""
