"""Modules of the `evaluate` library, loaded from here by name. A file is all that a metric needs.

`ABOUT` says what the metric is (`alignflow.evaluation.about`); the rest of the program knows it by
that. `evaluate.load` copies a module to its own cache and reads its imports line by line, so there
is one import per line. `_compute` returns the figure under the file's name, and `per_prompt`: further
figures that are means over prompts, with the value of each prompt.
"""
