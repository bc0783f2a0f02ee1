"""Reading, validating, formatting, splitting and tokenising rows. No torch, and no database."""

from alignflow.data.base import fetch_base
from alignflow.data.forms import BadRow, first_user_turn, transcript
from alignflow.data.groups import HOLDOUT, main_places
from alignflow.data.lengths import limits_of
from alignflow.data.reading import RawRow, read_source
from alignflow.data.rows import Outcome, Rules, SourceAccount, account_of, outcome_of, rules_of
from alignflow.data.template import ChatTemplate, TemplateRejects, load_template

__all__ = [
    "HOLDOUT",
    "BadRow",
    "ChatTemplate",
    "Outcome",
    "RawRow",
    "Rules",
    "SourceAccount",
    "TemplateRejects",
    "account_of",
    "fetch_base",
    "first_user_turn",
    "limits_of",
    "load_template",
    "main_places",
    "outcome_of",
    "read_source",
    "rules_of",
    "transcript",
]
