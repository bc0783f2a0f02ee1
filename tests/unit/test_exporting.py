"""What leaves: only what its certificate is about, with a card of where it comes from, and no rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub, fake_hub

from alignflow.commands.cli import exit_code_of
from alignflow.errors import ArtifactError, CertificateError, RecipeError, StageError
from alignflow.exporting import export, hub
from alignflow.exporting.export import OPTIONS
from alignflow.exporting.ollama import modelfile
from alignflow.files import hash_files
from alignflow.merging import CERTIFICATE_FILE, Certificate
from alignflow.merging.certificate import Figures, Limits, Weights
from alignflow.pipeline.report import build_report, write_report
from alignflow.recipe import Recipe, TuningSection
from alignflow.stages import (
    Artifact,
    InputRef,
    PrepareParams,
    ResolvedModel,
    RowAccount,
    StageOutcome,
    StageResult,
    StageSpec,
    TrainingParams,
)
from alignflow.stages.artifacts import publish, work_directory

BASE = Path(__file__).parents[2] / "alignflow/builtin/freight/base"
SECRET = "What does Ada earn?"
COMMIT = "c" * 40
RECIPE = Recipe.model_validate(
    {
        "name": "support",
        "base_model": "org/base",
        "data": {"sft": ["/home/ada/data/rows|1.jsonl", "org/rows"], "evaluation": "eval.jsonl"},
        "sft": {},
        "merge": {},
    }
)
SOURCES = {"/home/ada/data/rows|1.jsonl": "1" * 64, "org/rows": COMMIT, "eval.jsonl": "3" * 64}
RESOLVED = {
    "tuning_mode": "lora",
    "lora_rank": 16,
    "lora_alpha": 32.0,
    "lora_target_modules_resolved": "k_proj,q_proj",
    "trainable_percent": 0.4567,
    "learning_rate": 0.0002,
}
RETRAIN = {
    "verdict": "promote",
    "outcome": "promoted: generation 3",
    "model": "support",
    "generation": 3,
    "gate": {"reasons": ["accuracy is 4.1 points better, p = 0.003"]},
}


def finished(
    home: Path,
    stage: str,
    told: Any,
    inputs: dict[str, Artifact],
    files: dict[str, Path] | None = None,
    **result: Any,
) -> Artifact:
    """A stage's artifact, with copies of folders as its output."""
    spec = StageSpec(
        stage=stage,
        home=str(home),
        params=told.as_json() if told else {},
        seed=7,
        inputs={role: InputRef(**_ref(artifact)) for role, artifact in inputs.items()},
        paths={"base_model": str(home.parent / "base")} if stage == "prepare" else {},
    )
    output = work_directory(home, stage, spec.key) / "output"
    output.mkdir(parents=True)
    for name, source in (files or {}).items():
        shutil.copytree(source, output / name)
    return publish(spec, StageResult(**result), 1.0, 1)


def _ref(artifact: Artifact) -> dict[str, str]:
    return {"stage": artifact.stage, "key": artifact.key, "path": artifact.path, "digest": "d"}


def certificate(model: Path, adapter: Path, **changes: Any) -> Certificate:
    figures = Figures(
        probes=2, tokens=2000, kl=1e-6, max_logp_difference=0.01, top1_agreement=1, finite=True,
        weights=Weights(equal=9),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "status": "passed",
        "base": {"source": str(model.parent / "base"), "digest": "b" * 64},
        "adapters": [{"path": str(adapter), "sha256": "5" * 64, "weight": 1.0, "step": 0}],
        "arithmetic": "as PEFT does",
        "dtype": "bfloat16",
        "finite": True,
        "figures": figures,
        "limits": Limits(),
        "files": hash_files(model),
        "plan": "p",
        "serve": {"merged": f"vllm serve {model}"},
    }
    return Certificate(**fields | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run in a home: its home, its merged model, its adapter."""
    folder = tmp_path_factory.mktemp("run")
    home, model, adapter = folder / "home", folder / "model", folder / "adapter"
    shutil.copytree(BASE, folder / "base")
    (folder / "base/README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    shutil.copytree(BASE, model)
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "base")}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "base_model.json").write_text(json.dumps({"source": str(folder), "digest": COMMIT}))
    base = ResolvedModel(source="org/base", digest=COMMIT)
    limits = {"limits": {"sft": 64}, "max_examples": None}
    params = PrepareParams(data=RECIPE.data, base_model=base, sources=SOURCES, **limits)
    prepare = finished(home, "prepare", params, {})
    rows = RowAccount(read=10, trained=8, dropped={"too_long": 2})
    learnt = TrainingParams(section={}, tuning=TuningSection(), dtype="float32")
    told = {"params": RESOLVED, "rows": rows, "files": {"adapter": adapter}}
    sft = finished(home, "sft", learnt, {"data": prepare}, **told)
    certificate(model, sft.directory / "adapter").write(model)
    judged = {
        "evaluation": {"base": {"accuracy": 0.5}, "merged": {"accuracy": 0.75}},
        "intervals": {"merged": {"accuracy": [0.7, 0.8]}},
        "samples": [{"question": SECRET, "target": "42", "merged": "42"}],
    }
    inputs = {"data": prepare, "sft": sft}
    merge = finished(home, "merge", None, inputs, details=judged, files={"model": model})
    outcomes = [
        StageOutcome(
            stage=a.stage, key=a.key, state="completed", artifact=a.directory, result=a.result
        )
        for a in (prepare, sft, merge)
    ]
    report = build_report(RECIPE, "support-1", "completed", 1.0, outcomes, {})
    write_report(home, report | {"retrain": RETRAIN})
    return {"home": home, "model": merge.directory / "model", "adapter": sft.directory / "adapter"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch) as started:
        monkeypatch.setattr(hub, "WAIT_SECONDS", 0.0)
        yield started


@pytest.fixture
def copied(run: dict[str, Path], tmp_path: Path) -> Path:
    """The merged model, to be changed."""
    return Path(shutil.copytree(run["model"], tmp_path / "copied"))


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_where_the_model_comes_from_and_holds_no_rows_and_no_paths(
    run: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "folder"
    made = export("last", "hub", output=out, repo="ada/support", home=run["home"])
    card = (out / "README.md").read_text()
    assert front_matter(card) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "datasets": ["org/rows"],
        "tags": ["alignflow", "sft"],
    }
    for told in (
        f"[org/base](https://huggingface.co/org/base), commit `{COMMIT}`",
        "apache-2.0 (its model card)",
        rf"| sft | rows\|1.jsonl | `{'1' * 64}` |",
        f"| sft | org/rows | `{COMMIT}` |",
        "| sft | 8 | lora | 16 | 32 | - | k_proj, q_proj | 0.457 % | 0.0002 |",
        "| accuracy | 50.0% | 75.0% (70.0% to 80.0%) |",
        "Promoted: accuracy is 4.1 points better, p = 0.003.",
        "**Not for**",
        "KL 1e-06 nats per token",
        'from_pretrained("ada/support")',
    ):
        assert told in card, card
    everything = "".join(path.read_text(errors="replace") for path in out.glob("*.[jmR]*"))
    assert SECRET not in everything
    for private in ("/home/ada", str(run["home"].parent), "vllm"):
        assert private not in everything
    assert made.url is None and "nothing was pushed" in made.notes[-1]
    kept = Certificate.model_validate_json((out / CERTIFICATE_FILE).read_text())
    assert kept.files == {n: f for n, f in hash_files(out).items() if n in kept.files}


def test_a_licence_that_nobody_tells_is_unknown_and_said(
    run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    card = run["home"].parent / "base/README.md"
    told = card.read_text()
    card.unlink()
    try:
        made = export(run["model"], "hub", output=tmp_path / "out", home=run["home"])
    finally:
        card.write_text(told)
    assert made.notes[0].startswith("licence unknown: its model card could not be read")
    assert front_matter((tmp_path / "out/README.md").read_text())["license"] == "unknown"


def test_a_push_makes_a_private_model_of_certified_files_in_one_commit(
    run: dict[str, Path], server: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "last", "--to", "hub", "--repo", "ada/support"]
    assert exit_code_of([*arguments, "--home", str(run["home"]), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["url"] == f"{server.address}/ada/support/commit/{'a' * 40}"
    repository = server.repositories["ada/support"]
    assert repository["private"]
    files = repository["files"]
    weights = (run["model"] / "model.safetensors").read_bytes()
    assert files["model.safetensors"] == weights and weights in server.stored.values()
    assert {"config.json", "chat_template.jinja", "README.md", CERTIFICATE_FILE} < set(files)
    assert (
        sum(asked.startswith("POST /api/models/ada/support/commit") for asked in server.asked) == 1
    )
    assert made["size_bytes"] == sum(map(len, files.values()))


def test_a_hub_that_is_busy_is_asked_again_and_gets_no_file_twice(
    run: dict[str, Path], server: FakeHub
) -> None:
    server.failing = ["PUT /lfs/", "POST /api/models/ada/support/commit"]
    export(run["model"], "hub", repo="ada/support", home=run["home"])
    assert "README.md" in server.repositories["ada/support"]["files"]
    assert sum(asked.startswith("PUT") for asked in server.asked) == 3  # one of two twice
    server.failing = ["POST /api/models/ada/support/commit"] * 3
    with pytest.raises(StageError, match="ada/support: the Hub answers 503"):
        export(run["model"], "hub", repo="ada/support", home=run["home"])


def test_a_token_that_may_not_write_is_said_with_what_to_do(
    run: dict[str, Path], server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    with pytest.raises(RecipeError, match=r"answers 403: the token may not write.*HF_TOKEN"):
        export(run["model"], "hub", repo="ada/support", home=run["home"])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RecipeError, match=r"answers 401: there is no token.*HF_TOKEN"):
        export(run["model"], "hub", repo="ada/support", home=run["home"])
    assert server.repositories == {}


def test_nothing_goes_to_a_public_model_unasked(run: dict[str, Path], server: FakeHub) -> None:
    server.repositories["ada/open"] = {"private": False, "files": {}}
    with pytest.raises(RecipeError, match=r"ada/open is public.*--public"):
        export(run["model"], "hub", repo="ada/open", home=run["home"])
    assert server.repositories["ada/open"]["files"] == {}
    export(run["model"], "hub", repo="ada/open", public=True, home=run["home"])
    assert "README.md" in server.repositories["ada/open"]["files"]


def test_an_adapter_goes_to_the_hub_with_its_base_by_name(
    run: dict[str, Path], tmp_path: Path
) -> None:
    export(run["adapter"], "hub", output=tmp_path / "out", home=run["home"])
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert not (tmp_path / "out/base_model.json").exists()
    front = front_matter((tmp_path / "out/README.md").read_text())
    assert front["library_name"] == "peft" and front["base_model_relation"] == "adapter"
    with pytest.raises(ArtifactError, match=r"is an adapter.*alignflow merge BASE"):
        export(run["adapter"], "ollama", home=run["home"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "unverified"}, "merged with --no-verify. Merge it again without"),
        ({"status": "failed", "finite": False}, "differs from base plus adapter.*dtype float32"),
        (None, "has no merge_certificate.json that can be read.*alignflow merge BASE ADAPTER OUT"),
    ],
    ids=["unverified", "failed", "none"],
)
def test_what_no_certificate_passed_for_is_refused(
    changes: dict[str, Any] | None, said: str, copied: Path, run: dict[str, Path]
) -> None:
    (copied / CERTIFICATE_FILE).unlink()
    if changes:
        certificate(copied, run["adapter"], **changes).write(copied)
    with pytest.raises(CertificateError, match=said) as raised:
        export(copied, "hub", dry_run=True)
    assert raised.value.exit_code == 72


def test_a_file_that_changed_since_the_certificate_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ArtifactError, match=r"config.json changed since the certificate"):
        export(copied, "hub", dry_run=True)


def test_options_of_another_form_and_places_that_are_taken_are_refused(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(run["model"]), "--home", str(run["home"])]
    for option in OPTIONS:
        form = "nf4"
        name = f"--{option.replace('_', '-')}"
        value = {"public": [], "dry_run": [], "outtype": ["f16"]}.get(option, ["x"])
        assert exit_code_of([*arguments, "--to", form, name, *value]) == 64
        assert f"{name} is for --to" in capsys.readouterr().err
    assert exit_code_of([*arguments, "--to", "hub"]) == 64
    assert "--dry-run" in capsys.readouterr().err
    assert exit_code_of([*arguments, "--to", "hub", "--repo", "support"]) == 64
    assert "OWNER/NAME" in capsys.readouterr().err
    assert exit_code_of([*arguments, "--to", "hub", "--output", str(tmp_path)]) == 66
    assert "exists. Remove it" in capsys.readouterr().err
    within = str(run["model"].parent / "out")
    assert exit_code_of([*arguments, "--to", "hub", "--output", within]) == 66
    assert "lies within an artifact" in capsys.readouterr().err


def test_a_modelfile_has_the_chat_format_what_ends_a_response_and_greedy_answers(
    run: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(run["model"]), "--to", "ollama", "--output", str(tmp_path / "o")]
    assert exit_code_of([*arguments, "--home", str(run["home"])]) == 0
    assert f"ollama create support -f {tmp_path}/o/Modelfile" in capsys.readouterr().out
    text = (tmp_path / "o/Modelfile").read_text()
    assert text.startswith(f"FROM {run['model']}\n")
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text
    assert text.endswith(
        'PARAMETER stop "<|im_end|>"\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n'
        "PARAMETER num_predict 48\n"
    )


def test_how_responses_are_drawn_is_that_of_transformers_and_not_of_ollama(copied: Path) -> None:
    config = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05}
    (copied / "generation_config.json").write_text(json.dumps(config))
    lines = modelfile(copied, "x").splitlines()
    drawn = [
        line.split()[1:] for line in lines if line.startswith("PARAMETER") and "stop" not in line
    ]
    assert drawn == [
        ["temperature", "0.7"],
        ["top_k", "50"],
        ["top_p", "1"],
        ["min_p", "0"],
        ["repeat_penalty", "1.05"],
    ]


def test_a_chat_template_that_ollama_cannot_have_is_refused_with_the_reason(copied: Path) -> None:
    numbered = (
        "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    (copied / "chat_template.jinja").write_text(numbered)
    with pytest.raises(ArtifactError, match=r"cannot be written as Ollama's: it .*--to gguf"):
        modelfile(copied, "x")
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="has no chat template"):
        modelfile(copied, "x")
