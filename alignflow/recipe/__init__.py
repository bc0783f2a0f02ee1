"""The recipe: what to train, on what, how, and how to judge it. No torch here.

Each field's description stands under it, and is what `alignflow check`, the Prefect form and the
documentation show. Names of hyper-parameters are Transformers' and TRL's; `batch_size` (effective,
over devices and accumulation) and `compute.micro_batch_size` are ours.
"""

from alignflow.recipe.decide import ArmName as ArmName
from alignflow.recipe.decide import Configuration as Configuration
from alignflow.recipe.decide import DecideSection as DecideSection
from alignflow.recipe.decide import ParaphrasesSection as ParaphrasesSection
from alignflow.recipe.decide import RetrievalSection as RetrievalSection
from alignflow.recipe.evaluation import Attention as Attention
from alignflow.recipe.evaluation import ComputeSection as ComputeSection
from alignflow.recipe.evaluation import EvaluationSection as EvaluationSection
from alignflow.recipe.evaluation import MergeSection as MergeSection
from alignflow.recipe.file import SCHEMA_FILE as SCHEMA_FILE
from alignflow.recipe.file import load_recipe as load_recipe
from alignflow.recipe.judging import ExecutionArguments as ExecutionArguments
from alignflow.recipe.judging import MetricArguments as MetricArguments
from alignflow.recipe.judging import MetricUse as MetricUse
from alignflow.recipe.methods import METHODS as METHODS
from alignflow.recipe.methods import STAGES as STAGES
from alignflow.recipe.methods import TRAINING_STAGES as TRAINING_STAGES
from alignflow.recipe.names import DATA_SUFFIXES as DATA_SUFFIXES
from alignflow.recipe.names import SPLITS as SPLITS
from alignflow.recipe.names import is_builtin as is_builtin
from alignflow.recipe.names import is_gguf as is_gguf
from alignflow.recipe.names import is_hub_id as is_hub_id
from alignflow.recipe.names import is_ledger as is_ledger
from alignflow.recipe.names import matching_files as matching_files
from alignflow.recipe.names import pointed as pointed
from alignflow.recipe.names import pointed_entry as pointed_entry
from alignflow.recipe.online import DistillSection as DistillSection
from alignflow.recipe.online import GRPOSection as GRPOSection
from alignflow.recipe.online import OnlineSection as OnlineSection
from alignflow.recipe.online import PPOSection as PPOSection
from alignflow.recipe.online import RewardedSection as RewardedSection
from alignflow.recipe.online import RFTSection as RFTSection
from alignflow.recipe.online import RLOOSection as RLOOSection
from alignflow.recipe.online import SampledSection as SampledSection
from alignflow.recipe.preferences import DPOSection as DPOSection
from alignflow.recipe.preferences import KTOSection as KTOSection
from alignflow.recipe.preferences import ORPOSection as ORPOSection
from alignflow.recipe.preferences import SimPOSection as SimPOSection
from alignflow.recipe.pretraining import PretrainSection as PretrainSection
from alignflow.recipe.resolve import Resolved as Resolved
from alignflow.recipe.resolve import digest_adapter as digest_adapter
from alignflow.recipe.resolve import gguf_file as gguf_file
from alignflow.recipe.resolve import hub_commit as hub_commit
from alignflow.recipe.resolve import load_function as load_function
from alignflow.recipe.resolve import local_directory as local_directory
from alignflow.recipe.resolve import resolve_base_model as resolve_base_model
from alignflow.recipe.resolve import resolve_function as resolve_function
from alignflow.recipe.retrain import PREFERENCE_SET_PATTERN as PREFERENCE_SET_PATTERN
from alignflow.recipe.retrain import GateSection as GateSection
from alignflow.recipe.retrain import JudgeSection as JudgeSection
from alignflow.recipe.retrain import RetrainSection as RetrainSection
from alignflow.recipe.rewards import EXECUTION as EXECUTION
from alignflow.recipe.rewards import REWARD_MODEL as REWARD_MODEL
from alignflow.recipe.rewards import RewardTerm as RewardTerm
from alignflow.recipe.rewards import WatchSection as WatchSection
from alignflow.recipe.root import Recipe as Recipe
from alignflow.recipe.root import require_decide as require_decide
from alignflow.recipe.root import require_retrain as require_retrain
from alignflow.recipe.root import require_training as require_training
from alignflow.recipe.sources import DATA_PARTS as DATA_PARTS
from alignflow.recipe.sources import DataSection as DataSection
from alignflow.recipe.sources import DataSource as DataSource
from alignflow.recipe.sources import ModelSource as ModelSource
from alignflow.recipe.training import RewardSection as RewardSection
from alignflow.recipe.training import SFTSection as SFTSection
from alignflow.recipe.training import TrainingSection as TrainingSection
from alignflow.recipe.tuning import MOVES_THE_BASE as MOVES_THE_BASE
from alignflow.recipe.tuning import TARGET_PRESETS as TARGET_PRESETS
from alignflow.recipe.tuning import TuningSection as TuningSection
from alignflow.recipe.tuning import names_module as names_module
