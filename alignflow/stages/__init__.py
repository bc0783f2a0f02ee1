"""What a stage is told and returns, its artifact, and the process that runs it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
