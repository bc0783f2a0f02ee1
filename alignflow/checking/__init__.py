"""What `alignflow check` finds out about a recipe, without torch, transformers or any weight.

`checked.check_file` goes from what needs nothing to what needs files: the recipe's own rules, the base
model's files, its architecture, the chat template, the rows, and what the run will need.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
