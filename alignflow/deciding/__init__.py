"""Whether to prompt, retrieve, fine-tune or pre-train: arms on the same questions, and a verdict."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
