"""A GPT that is timed and trained in no time, as tables of a configuration; what follows goes on with [data]."""

__all__ = ["SMALL_GPT"]

SMALL_GPT = """
[model]
name = "gpt"
args = { layers = 1, width = 16, heads = 2, context = 8 }
[data]
name = "python_source"
args = { context = 8 }
"""
