"""Modules of the `evaluate` library, loaded from here by name.

`evaluate.load` copies a module to its own cache and reads its imports line by line, so each stands
alone, with one import per line. `compute` returns the figure under the module's name, and
`per_prompt`: further figures that are means over prompts, with the value of each prompt.
"""
