"""Reading, validating, formatting, splitting and tokenising rows. No torch, and no database."""

from alignflow.data.base import fetch_base
from alignflow.data.forms import BadRow, transcript
from alignflow.data.groups import HOLDOUT, main_places
from alignflow.data.lengths import limits_of
from alignflow.data.template import TemplateRejects, load_template

__all__ = [
    "HOLDOUT",
    "BadRow",
    "TemplateRejects",
    "fetch_base",
    "limits_of",
    "load_template",
    "main_places",
    "transcript",
]
