"""Candidate against champion: what a hold-out can show, who judges, and what is decided.

`contest` reads what two evaluations scored and has a verdict; `gate` is the decision alone.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
