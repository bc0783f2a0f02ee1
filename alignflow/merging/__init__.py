"""Merging adapters into their base, streamed, with a certificate that the result is the same.

`planning` says what will be done, `writing` does it, `verifying` compares; `merge` is all three.
`plan` works from headers alone and imports no torch; `merge` loads it when it needs it.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
