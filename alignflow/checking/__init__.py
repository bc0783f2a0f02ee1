"""What `alignflow check` finds out about a recipe, without torch, transformers or any weight.

`checked.check_file` goes from what needs nothing to what needs files: the recipe's own rules, the base
model's files, its architecture, the chat template, the rows, and what the run will need.
"""
