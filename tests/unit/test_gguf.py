"""GGUF files by their headers: against `gguf`'s own reader, and refused by name where they are bad."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import pytest
from gguf_files import CONTEXT, HIDDEN, LAYERS, Written, write_gguf

from alignflow.checking.checked import check
from alignflow.data.gguf import (
    ARCHITECTURES,
    KINDS,
    SPLITS_DIGITS,
    SPLITS_READ,
    demand_supported,
    read_gguf,
)
from alignflow.errors import RecipeError
from alignflow.recipe import ModelSource, Recipe, gguf_file, is_hub_id, resolve_base_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def job(path: Path, **fields: object) -> Recipe:
    rows = path.parent / "rows.jsonl"
    rows.write_text('{"prompt": "what colour?", "completion": "red"}\n' * 20)
    given = {
        "name": "r",
        "base_model": f"gguf:{path}",
        "data": {"sft": str(rows)},
        "sft": {},
        "method": "none",
        "merge": {},
    }
    return Recipe.model_validate(given | fields)


def test_a_header_says_what_ggufs_own_reader_says(tiny: Written) -> None:
    header, theirs = read_gguf(tiny.path, "base_model"), gguf.GGUFReader(tiny.path)
    read = {
        name: field.contents()
        for name, field in theirs.fields.items()
        if not name.startswith("GGUF.")
    }
    for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        read[name] = len(read[name])
    assert header.metadata == read
    assert [(t.name, t.kind, t.shape, header.data_begin + t.offset) for t in header.tensors] == [
        (t.name, t.tensor_type.name, tuple(t.shape[::-1]), t.data_offset) for t in theirs.tensors
    ]
    assert header.parameters == sum(weights.size for weights in tiny.weights.values())
    assert header.quantization == "Q4_1"


def test_types_of_tensors_are_the_formats() -> None:
    assert KINDS.items() <= {kind.value: kind.name for kind in gguf.GGMLQuantizationType}.items()


@pytest.mark.slow
def test_what_is_taken_for_read_is_what_transformers_reads() -> None:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    as_ours = {name.replace("_", "") for name in [*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS]}
    assert {name.replace("-", "") for name in ARCHITECTURES} <= as_ours
    assert SPLITS_READ - {"gpt-2", "phi-2", "olmo", "mpt"} == GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert not SPLITS_DIGITS & GGUF_PRE_TOKENIZER_SPLITS.keys()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot mmap an empty file"),
        (b"PK\x03\x04" + bytes(100), "it begins with b'PK"),
        (b"GGUF\x01\x00\x00\x00" + bytes(100), "format version 1"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 100, "no whole GGUF file"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"Download or copy it again") as refused:
        read_gguf(path, "base_model")
    assert told in refused.value.message and refused.value.exit_code == 64


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused(tiny: Written, tmp_path: Path, share: float) -> None:
    whole = tiny.path.read_bytes()
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RecipeError, match=r"no whole GGUF file|cut short"):
        read_gguf(path, "base_model")


def test_a_model_that_would_be_read_wrong_is_refused_with_every_reason(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", pre="martian").path
    with pytest.raises(RecipeError, match=r"splits text in a way that is not known here \('mart"):
        demand_supported(read_gguf(path, "base_model"), "base_model")
    path = write_gguf(tmp_path / "z.gguf", extra="rope_freqs").path
    with pytest.raises(RecipeError, match=r"scales positions by rope_freqs.weight"):
        demand_supported(read_gguf(path, "base_model"), "base_model")
    path = write_gguf(tmp_path / "y.gguf", metadata={"split.count": 3}).path
    with pytest.raises(RecipeError, match=r"one of 3 parts"):
        demand_supported(read_gguf(path, "base_model"), "base_model")


def test_a_check_says_what_the_header_says(tiny: Written, tmp_path: Path) -> None:
    checked = check(job(tiny.path), home=tmp_path)
    assert checked.ok, checked.findings
    shape = checked.base_model
    assert shape is not None
    assert (shape.model_type, shape.layers, shape.hidden) == ("llama", LAYERS, HIDDEN)
    assert shape.context == CONTEXT and shape.dequantized_from == "Q4_1"
    assert any("dequantized from Q4_1 by `prepare`" in found.text for found in checked.findings)
    wrong = check(job(tiny.path, tuning={"target_modules": ["w_pack"]}), home=tmp_path)
    assert wrong.exit_code == 64 and any("q_proj" in found.text for found in wrong.findings)


def test_a_check_refuses_a_file_that_is_not_there_or_none(tmp_path: Path) -> None:
    checked = check(job(tmp_path / "absent.gguf"), home=tmp_path)
    assert checked.exit_code == 64 and "there is no file" in str(checked.findings)
    (tmp_path / "x.gguf").write_bytes(b"hello")
    assert check(job(tmp_path / "x.gguf"), home=tmp_path).exit_code == 64


def test_without_the_package_the_remedy_is_named(
    tiny: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else there(name)
    )
    with pytest.raises(RecipeError, match=r"pip install 'alignflow\[gguf\]'"):
        resolve_base_model(ModelSource(source=f"gguf:{tiny.path}"))
    assert check(job(tiny.path), home=tmp_path).exit_code == 64


def test_the_name_of_a_file_is_a_path_whatever_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ModelSource.model_validate("gguf:a@b/c.gguf").source == "gguf:a@b/c.gguf"
    assert not is_hub_id("gguf:name")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert gguf_file("gguf:m.gguf") == tmp_path / "m.gguf"
