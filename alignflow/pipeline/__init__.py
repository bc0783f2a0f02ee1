"""One run of a recipe: its stages in order, what became of them, and the report."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
