from .checking import Check as Check
from .checking import check as check
from .deciding import decide as decide
from .errors import AlignflowError as AlignflowError
from .exporting import Exported as Exported
from .exporting import export as export
from .lineage import Waiting as Waiting
from .lineage import retrain as retrain
from .pipeline import Evaluation as Evaluation
from .pipeline import Report as Report
from .pipeline import evaluate as evaluate
from .pipeline import generate as generate
from .pipeline import load_report as load_report
from .pipeline import merge as merge
from .pipeline import run as run
from .recipe import Recipe as Recipe
from .recipe import load_recipe as load_recipe

__version__: str
