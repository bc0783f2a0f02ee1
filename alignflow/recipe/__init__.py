"""The recipe: what to train, on what, how, and how to judge it. No torch here.

Each field's description stands under it, and is what `alignflow check`, the Prefect form and the
documentation show. Names of hyper-parameters are Transformers' and TRL's; `batch_size` (effective,
over devices and accumulation) and `compute.micro_batch_size` are ours.
"""

from alignflow.recipe.evaluation import ComputeSection, EvaluationSection, MergeSection
from alignflow.recipe.methods import METHODS, STAGES, TRAINING_STAGES
from alignflow.recipe.online import (
    GRPOSection,
    OnlineSection,
    PPOSection,
    RewardedSection,
    RLOOSection,
)
from alignflow.recipe.preferences import DPOSection, KTOSection, ORPOSection, SimPOSection
from alignflow.recipe.pretraining import PretrainSection
from alignflow.recipe.retrain import GateSection, JudgeSection, RetrainSection
from alignflow.recipe.rewards import RewardTerm, WatchSection
from alignflow.recipe.root import Recipe, require_retrain
from alignflow.recipe.sources import DATA_PARTS, DataSection, DataSource, ModelSource
from alignflow.recipe.training import RewardSection, SFTSection, TrainingSection
from alignflow.recipe.tuning import TARGET_PRESETS, TuningSection

__all__ = [
    "DATA_PARTS",
    "METHODS",
    "STAGES",
    "TARGET_PRESETS",
    "TRAINING_STAGES",
    "ComputeSection",
    "DPOSection",
    "DataSection",
    "DataSource",
    "EvaluationSection",
    "GRPOSection",
    "GateSection",
    "JudgeSection",
    "KTOSection",
    "MergeSection",
    "ModelSource",
    "ORPOSection",
    "OnlineSection",
    "PPOSection",
    "PretrainSection",
    "RLOOSection",
    "Recipe",
    "RetrainSection",
    "RewardSection",
    "RewardTerm",
    "RewardedSection",
    "SFTSection",
    "SimPOSection",
    "TrainingSection",
    "TuningSection",
    "WatchSection",
    "require_retrain",
]
