"""The planned model on the disk: PEFT's arithmetic in bounded memory, streamed, hashed, resumable."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
