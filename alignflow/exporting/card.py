"""The model card: README.md with front matter, written from where the model comes from. No rows in it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignflow.data import PARAPHRASE
from alignflow.evaluation import leading_figures
from alignflow.exporting.origin import Origin
from alignflow.merging import Certificate
from alignflow.pipeline import as_text
from alignflow.recipe import METHODS
from alignflow.stages import Artifact

CARD_FILE = "README.md"
JUDGED = ("base", "sft", "aligned", "merged")
SETTINGS = {
    "tuning": "tuning_mode",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target modules": "lora_target_modules_resolved",
    "trainable": "trainable_percent",
    "learning rate": "learning_rate",
    "epochs": "num_train_epochs",
    "batch": "batch_size",
}
"""Columns of the card's table of training to what a stage resolved."""


def card(title: str, repo: str | None, origin: Origin, certificate: Certificate | None) -> str:
    """The model card.

    Args:
        title: What the model is called.
        repo: Name on the Hub; None where it is not known yet.
        origin: Where it comes from.
        certificate: Of a merged model; None of an adapter.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["cell"] = lambda text: text.replace("|", r"\|")
    is_adapter = certificate is None
    front = yaml.safe_dump(_front_matter(origin, is_adapter), sort_keys=False, allow_unicode=True)
    base = origin.base
    models, figures = _figures(origin.report)
    return environment.get_template("card.md.j2").render(
        front=front,
        title=title,
        named=repo or "OWNER/NAME",
        is_adapter=is_adapter,
        certificate=certificate,
        origin=origin,
        base=f"[{base.name}](https://huggingface.co/{base.name})" if base.is_on_hub else base.name,
        methods=list(dict.fromkeys(artifact.stage for artifact in origin.trained)),
        seeds=sorted({artifact.spec.seed for artifact in origin.trained}),
        libraries=", ".join(f"{name} {n}" for name, n in _libraries(origin).items()),
        version=version("alignflow"),
        on_hub=any(source.is_on_hub for source in origin.sources),
        trained=[_training(artifact) for artifact in origin.trained],
        models=models,
        figures=figures,
    )


def _front_matter(origin: Origin, is_adapter: bool) -> dict[str, Any]:
    """What the Hub reads of a card. A base or data that is not on the Hub is not named there."""
    used = {artifact.stage for artifact in origin.trained}
    method = [name for name in METHODS if name in used]
    data = dict.fromkeys(source.name for source in origin.sources if source.is_on_hub)
    base = origin.base
    return {
        "license": base.licence,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base.name} if base.is_on_hub else {}),
        **(
            {"base_model_relation": "adapter" if is_adapter else "finetune"}
            if base.is_on_hub
            else {}
        ),
        **({"datasets": list(data)} if data else {}),
        "tags": ["alignflow", *(["sft"] if "sft" in used else []), *method],
    }


def _libraries(origin: Origin) -> Mapping[str, str]:
    return origin.stages[-1].libraries if origin.stages else {}


def _training(artifact: Artifact) -> dict[str, str]:
    """A stage's row of the table of training."""
    told = artifact.result.params
    rows = artifact.result.rows
    row = {"stage": artifact.stage, "rows": str(rows.trained) if rows else "-"}
    return row | {name: _cell(name, told.get(field)) for name, field in SETTINGS.items()}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "trainable":
        return f"{value:.3g} %"
    return f"{value:g}" if isinstance(value, float) else str(value).replace(",", ", ")


def _figures(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Models that were judged, and the leading figures of each with its interval."""
    evaluation = report.get("evaluation", {})
    intervals = report.get("evaluation_intervals", {})
    models = [model for model in JUDGED if model in evaluation]
    names = [
        name
        for name in leading_figures(PARAPHRASE)
        if any(evaluation[model].get(name) is not None for model in models)
    ]
    table = []
    for name in names:
        cells = []
        for model in models:
            text = as_text(name, evaluation[model].get(name))
            spread = intervals.get(model, {}).get(name)
            low_high = f" ({' to '.join(as_text(name, end) for end in spread)})" if spread else ""
            cells.append(text + low_high)
        table.append((name, cells))
    return models, table
