"""What a merge will do, from headers alone: no weight is read, no torch is imported.

Whatever cannot be merged is refused here, before the first byte is written.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
