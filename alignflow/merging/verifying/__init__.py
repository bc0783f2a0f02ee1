"""Whether what was written is base plus adapter: both compute, and their logits are compared."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
