"""alignflow: fine-tuning as retryable, certified stages, from Python as from the command line.

    import alignflow as af

    recipe = af.load_recipe("deployments/recipes/quickstart.yaml", {"dpo.beta": 0.2})
    findings = af.check(recipe)
    report = af.run(recipe, home="results")
    report.evaluation["aligned"]["accuracy"]

Nothing here imports torch, MLflow or Prefect before it is used; docs/python.md has more.
"""

import lazy_loader as lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
