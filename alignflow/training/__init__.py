"""Stages that train, on TRL's trainers. No prefect, no mlflow."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
