"""A recipe drafted from a model, a person's own data and this machine: `alignflow init`.

    data -> what each source is (`looking`) -> what suits it (`choices`) -> YAML with reasons (`writing`)

No torch. What a row is, how long, and what memory is needed, `data` and `checking` say here too.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
