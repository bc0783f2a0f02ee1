"""Distillation: the loss by hand, by autograd and by TRL's own trainer; its teacher; its vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from stage_runs import STOCK_TRAINER, build_tiny_base, logged, make_spec, run_stage, work_of
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer, _chunked_divergence_loss

from alignflow.data.stored import StoredRows
from alignflow.errors import RecipeError
from alignflow.files import digest_directory
from alignflow.models.loading import load_base, quiet, read_base
from alignflow.recipe.online import DistillSection
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageSpec
from alignflow.training.engine.arguments import training_arguments
from alignflow.training.engine.job import read_job
from alignflow.training.methods.distill import REVERSE_KL, Distill

SETTINGS: dict[str, Any] = {"batch_size": 8, "max_new_tokens": 6, "max_steps": 3}
MakeTaught = Callable[..., StageSpec]
# TRL's own call of a name that Transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with other weights."""
    directory = build_tiny_base(tmp_path_factory.mktemp("teacher"))
    model = AutoModelForCausalLM.from_pretrained(str(directory))
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(directory))
    return directory


@pytest.fixture
def taught(prepared: Artifact, teacher: Path, tmp_path: Path) -> MakeTaught:
    def make(directory: Path = teacher, **section: Any) -> StageSpec:
        settings = {**SETTINGS, **section}
        return make_spec(prepared, tmp_path, "distill", teacher=directory, **settings)

    return make


def test_the_reverse_kl_of_two_tokens_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = (log 2 + log 2/3) / 2, gradient p (log p/q - KL)."""
    student = torch.tensor([[[0.0, 0.0], [5.0, 1.0]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, math.log(3)], [1.0, 7.0]]])
    mask, head = torch.tensor([[1, 0]]), torch.eye(2)
    loss, entropy, count = _chunked_divergence_loss(student, teacher, head, head, mask, REVERSE_KL)
    loss.backward()
    kl = (math.log(2) + math.log(2 / 3)) / 2
    assert loss.item() == pytest.approx(kl) and kl == pytest.approx(0.14384, abs=1e-5)
    assert (entropy.item(), count.item()) == (pytest.approx(math.log(2)), 1)
    assert student.grad is not None
    expected = [(math.log(2) - kl) / 2, (math.log(2 / 3) - kl) / 2]
    assert student.grad[0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert student.grad[0, 1].tolist() == [0.0, 0.0]


def trainer_of(spec: StageSpec) -> Any:
    work = work_of(spec)
    (work / "output").mkdir(parents=True, exist_ok=True)
    job = read_job(spec, work, EventWriter(work / "events.jsonl", 1), DistillSection)
    method = Distill(job)
    arguments = training_arguments(method.configuration, job, 8, **method.arguments())
    with quiet():
        return method.trainer(
            model=method.model,
            args=arguments,
            train_dataset=Dataset.from_list([method.features(row) for row in method.rows]),
            processing_class=job.tokenizer,
            **method.options(),
        )


def plain_loss(student: Any, teacher: Any, batch: dict[str, Any], temperature: float) -> Any:
    """Mean KL(p || q) of the sampled tokens, from whole logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    start, counted = batch["prompt_ids"].shape[1], batch["completion_mask"].bool()

    def logps(model: Any) -> Any:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, start - 1 : -1]
        return (logits / temperature).log_softmax(dim=-1)

    ours = logps(student)
    with torch.no_grad():
        theirs = logps(teacher)
    return (ours.exp() * (ours - theirs)).sum(dim=-1)[counted].mean()


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_gradient_are_those_of_whole_logits(
    taught: MakeTaught, mode: str, temperature: float
) -> None:
    trainer = trainer_of(taught(mode=mode, temperature=temperature))
    student = trainer.model
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    student.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert batch["completion_ids"].shape[1] <= 6
    moving = {name: p for name, p in student.named_parameters() if p.requires_grad}
    gradients = []
    for loss in (
        trainer.compute_loss(student, batch),
        plain_loss(student, trainer.teacher_model, batch, temperature),
    ):
        student.zero_grad()
        loss.backward()
        gradients.append((loss.item(), {n: p.grad.clone() for n, p in moving.items()}))
    (loss, ours), (expected, theirs) = gradients
    assert loss == pytest.approx(expected, rel=1e-5) and loss > 0.01
    for name in moving:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6), name
    assert all(not p.requires_grad for p in trainer.teacher_model.parameters())


def test_distillation_equals_trl(
    taught: MakeTaught, prepared: Artifact, teacher: Path, tmp_path: Path
) -> None:
    """TRL's trainer on texts, which tokenizes them itself, samples the same and logs the same."""
    settings = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    spec = taught(mode="full", **settings)
    run_stage(spec)
    rows = [*StoredRows.of(prepared.directory / "preferences" / "train")]
    first = {tuple(row["prompt_ids"]): row["prompt"] for row in reversed(rows)}
    base = read_base(prepared.directory)
    set_seed(0)
    with quiet():
        stock = DistillationTrainer(
            model=load_base(base, dtype="float32", quantization=None),
            teacher_model=AutoModelForCausalLM.from_pretrained(str(teacher)),
            args=DistillationConfig(
                output_dir=str(tmp_path),
                max_steps=3,
                per_device_train_batch_size=8,
                max_completion_length=6,
                **STOCK_TRAINER,
            ),
            train_dataset=Dataset.from_list(
                [{"prompt": text} for _, text in sorted(first.items())]
            ),
            processing_class=AutoTokenizer.from_pretrained(base.path),
        )
        stock.train()
    losses = [entry["loss"] for entry in stock.state.log_history if "loss" in entry]
    assert logged(spec, "loss") == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_the_policy_nears_its_teacher_in_each_mode(
    taught: MakeTaught, teacher: Path, mode: str
) -> None:
    before = digest_directory(teacher)
    spec = taught(mode=mode, learning_rate=1e-2, max_steps=6)
    result = run_stage(spec)
    losses = logged(spec, "loss")
    assert losses[-1] < losses[0] and min(losses) > 0
    assert result.rows is not None and result.rows.balanced and result.rows.read == 60
    folders = [path.name for path in (work_of(spec) / "output").iterdir()]
    assert folders == ["model" if mode == "full" else "adapter"]
    assert digest_directory(teacher) == before


def test_a_policy_that_is_its_teacher_has_nothing_to_learn(
    taught: MakeTaught, tiny_base: Path
) -> None:
    spec = taught(tiny_base, mode="full")
    run_stage(spec)
    assert logged(spec, "loss") == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_teacher_that_speaks_otherwise_is_refused(taught: MakeTaught, tmp_path: Path) -> None:
    other = build_tiny_base(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("<|user|>", "<|human|>"))
    with pytest.raises(RecipeError, match=r"'<\|human\|>' has id 3 in it, None in the base"):
        run_stage(taught(other))
