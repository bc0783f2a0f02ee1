"""The memory that `check` names is no less than a stage takes, and at most half more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from stage_runs import build_tiny_base, make_spec, prepare_spec, run_and_publish, write_lines

from alignflow.checking.architecture import read_shape
from alignflow.checking.needs import StageNeed, needs_of
from alignflow.recipe import Recipe

pytestmark = pytest.mark.proof
MEASURED = """
import resource, sys
from pathlib import Path
from stage_runs import run_stage
from alignflow.stages.spec import StageSpec
run_stage(StageSpec.model_validate_json(Path(sys.argv[1]).read_text()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
SHAPES: dict[str, dict[str, int]] = {
    "large vocabulary": {"width": 64, "layers": 2, "vocabulary": 49152, "tokens": 160, "rows": 4},
    "long rows": {"width": 128, "layers": 4, "vocabulary": 1024, "tokens": 1024, "rows": 4},
    "many layers": {"width": 192, "layers": 16, "vocabulary": 4096, "tokens": 256, "rows": 8},
}


def base_of(folder: Path, shape: dict[str, int]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    base, width = build_tiny_base(folder), shape["width"]
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=shape["layers"],
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(str(base))
    return base


def peak_bytes(folder: Path, base: Path, shape: dict[str, int], stage: str) -> int:
    """Of a process that makes two updates on rows of the full length."""
    random = Random(0)

    def text() -> str:
        return "".join(random.choice("QXZJ") for _ in range(shape["tokens"] - 16))

    pairs = [{"prompt": f"{n}", "chosen": text(), "rejected": text()} for n in range(16)]
    shown = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    spec = prepare_spec(
        folder / "home",
        base,
        {
            "sft": write_lines(folder / "sft.jsonl", shown),
            "preferences": write_lines(folder / "pairs.jsonl", pairs),
        },
    )
    spec.params["limits"] = {"sft": 4096, "preferences": 4096}
    training = make_spec(
        run_and_publish(spec),
        folder,
        stage,
        tuning={"rank": 16},
        compute={"micro_batch_size": shape["rows"], "threads": 1},
        max_steps=2,
        batch_size=shape["rows"],
        max_length=shape["tokens"],
    )
    file = folder / "spec.json"
    file.write_text(training.model_dump_json())
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(file)],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def estimate(base: Path, shape: dict[str, int], stage: str) -> StageNeed:
    section = {
        "learning_rate": 1e-3,
        "batch_size": shape["rows"],
        "max_length": shape["tokens"],
    }
    recipe: dict[str, Any] = {
        "name": "toy",
        "base_model": str(base),
        "data": dict.fromkeys(("sft", "preferences", "prompts", "evaluation"), "a.jsonl"),
        "tuning": {"mode": "lora", "rank": 16, "dtype": "float32"},
        "compute": {"micro_batch_size": shape["rows"]},
        "evaluation": {"metrics": ["overlap"]},
        "sft": section,
        "method": "dpo" if stage == "dpo" else "ppo",
        **({"dpo": section} if stage == "dpo" else {}),
        **({} if stage == "dpo" else {"reward": section}),
        **({} if stage == "dpo" else {"ppo": {"max_length": 256, "max_new_tokens": 8}}),
    }
    recipe["data"] |= {"prompts": None} if stage == "dpo" else {}
    recipe["data"] = {name: source for name, source in recipe["data"].items() if source}
    shape_read = read_shape(base)
    needs = needs_of(
        Recipe.model_validate(recipe), shape_read, Path(os.sep), download=False, named={}
    )
    return next(need for need in needs.stages if need.stage == stage)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("large vocabulary", "sft"),
        ("long rows", "reward"),
        ("many layers", "dpo"),
    ],
)
def test_the_estimate_is_no_less_than_the_peak_and_at_most_half_more(
    name: str, stage: str, tmp_path: Path
) -> None:
    shape = SHAPES[name]
    base = base_of(tmp_path / "base", shape)
    peak, need = peak_bytes(tmp_path, base, shape, stage), estimate(base, shape, stage)
    assert peak <= need.first_bytes <= 1.5 * peak, (peak, need)
