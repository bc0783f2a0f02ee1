"""What MLflow is told, as far as it needs no MLflow."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from alignflow.errors import CertificateError
from alignflow.merging import require_certificate
from alignflow.recipe import TuningSection
from alignflow.tracking.connection import COLUMNS
from alignflow.tracking.run_log import as_param, metric_name


def test_full_tuning_has_no_lora_params() -> None:
    assert TuningSection(mode="full").logged() == {
        "tuning_mode": "full",
        "quantization": "none",
        "weights_dtype": "float32",
    }


def test_qlora_names_its_quantization_and_the_scaling_in_force() -> None:
    params = TuningSection(mode="qlora", rank=16, use_rslora=True).logged()
    assert params["quantization"] == "nf4"
    assert params["lora_scaling"] == 8.0


def test_resolved_modules_are_left_to_the_stage_that_resolves_them() -> None:
    params = TuningSection(target_modules="attention-qv").logged()
    assert "lora_target_modules_resolved" not in params


def test_lists_are_sorted_and_long_texts_are_cut() -> None:
    assert as_param(["v_proj", "q_proj"]) == "q_proj,v_proj"
    assert len(as_param("x" * 7000)) == 6000


def test_mlflows_page_reads_a_shared_view_as_we_write_it() -> None:
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    built = Path(spec.origin).parent / "server" / "js" / "build" / "static" / "js"
    page = "".join(path.read_text() for path in built.glob("main.*.js"))
    assert '="viewStateShareKey"' in page and '="mlflow.sharedViewState."' in page
    assert '["selectedColumns","columnOrder"' in page
    assert re.search(r'"attributes",PARAMS:"params",METRICS:"metrics",TAGS:"tags"', page)
    assert all(re.fullmatch(r"(params|metrics|tags)\.`[\w.]+`", column) for column in COLUMNS)


def test_names_keep_what_mlflow_takes() -> None:
    assert metric_name("logits/chosen@1") == "logits/chosen_1"


@pytest.mark.parametrize("content", [None, "{", "{}", '{"status": "failed"}', '{"passed": true}'])
def test_only_a_passed_certificate_is_taken(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "merge_certificate.json").write_text(content)
    with pytest.raises(CertificateError, match="not registered"):
        require_certificate(tmp_path)


def test_a_passed_certificate_is_returned(tmp_path: Path) -> None:
    (tmp_path / "merge_certificate.json").write_text('{"status": "passed"}')
    assert require_certificate(tmp_path) == {"status": "passed"}
