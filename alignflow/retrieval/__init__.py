"""Documents as passages: read, cut by their structure, indexed, found, and fenced in a prompt."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
