"""Candidate against champion: what a hold-out can show, who judges, and what is decided.

`contest` reads what two evaluations scored and has a verdict; `gate` is the decision alone.
"""

from alignflow.gate.contest import Contestants, contest, decides, number_of_prompts, questions
from alignflow.gate.decision import gate
from alignflow.gate.judge import judge_spec
from alignflow.gate.power import Power, power_of
from alignflow.gate.primary import JudgedWins
from alignflow.gate.verdict import Verdict, as_page

__all__ = [
    "Contestants",
    "JudgedWins",
    "Power",
    "Verdict",
    "as_page",
    "contest",
    "decides",
    "gate",
    "judge_spec",
    "number_of_prompts",
    "power_of",
    "questions",
]
