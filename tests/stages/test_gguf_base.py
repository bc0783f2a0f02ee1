"""A model in a GGUF file as a base: exactly the tensors, tokens and template of the file."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from gguf_files import CONTEXT, HEADS, HIDDEN, KEY_HEADS, LAYERS, Written, write_gguf
from stage_runs import make_spec, prepare_spec, run_and_publish, run_stage, work_of

from alignflow.checking import check
from alignflow.data import gguf_base
from alignflow.data.stored import StoredRows
from alignflow.errors import ArtifactError, RecipeError
from alignflow.files import file_stamps, sha256_file
from alignflow.models import load_base, load_tokenizer, read_base
from alignflow.pipeline import generate, merge
from alignflow.recipe import Recipe
from alignflow.stages import Artifact, StageSpec

gguf_base_file = import_module("alignflow.data.gguf_base")
ASKED = [{"role": "user", "content": "what colour is thing 12?"}]
TEXTS = [
    "what colour is thing 12?",
    "\n\n1. it is\n\n  22   red.\n",
    "   7\t8\r\n\n  it's 3.14   \n",
    "Grüße 20 € \n\n\n5",
    "<|im_start|>user\n1<|im_end|>\n",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def gguf_spec(home: Path, file: Path, sources: dict[str, Path]) -> StageSpec:
    spec = prepare_spec(home, file.parent, sources)
    model = {"source": f"gguf:{file}", "digest": sha256_file(file)}
    return spec.model_copy(
        update={
            "params": spec.params
            | {"base_model": model, "limits": {"sft": 128, "preferences": 128}},
            "paths": {"base_model": str(file)},
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf-home")


@pytest.fixture(scope="module")
def prepared(tiny: Written, home: Path, tiny_rows: dict[str, Path]) -> Artifact:
    return run_and_publish(gguf_spec(home, tiny.path, tiny_rows))


def test_two_first_runs_on_one_file_make_its_base_once_and_wait_for_each_other(
    tiny: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, begun, go_on = [], threading.Event(), threading.Event()

    def write(*given: Any) -> None:
        written.append(given)
        begun.set()
        assert go_on.wait(60)
        original(*given)

    original = gguf_base_file._write
    monkeypatch.setattr(gguf_base_file, "_write", write)
    digest = sha256_file(tiny.path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gguf_base, tiny.path, digest, tmp_path)
        assert begun.wait(60)
        second = pool.submit(gguf_base, tiny.path, digest, tmp_path)
        time.sleep(0.3)
        assert not second.done(), "it waits"
        go_on.set()
        assert first.result(60) == second.result(60) == tmp_path / "bases" / digest
    assert len(written) == 1
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [digest]


def written_model(tiny: Written) -> Any:
    """The model of the tensors that were written, without reading the file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tiny.tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"},
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(value) for name, value in tiny.weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    return model.eval()


def test_logits_are_those_of_the_tensors_that_were_written(
    tiny: Written, prepared: Artifact
) -> None:
    model = load_base(read_base(prepared.directory), dtype="float32", quantization=None).eval()
    ids = torch.randint(0, tiny.tokenizer.get_vocab_size(), (2, 40), generator=torch.manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, written_model(tiny)(ids).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tokens_are_those_of_the_models_own_tokenizer(tiny: Written, prepared: Artifact) -> None:
    tokenizer = load_tokenizer(prepared.directory)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == tiny.tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text


def test_template_ends_and_padding_are_the_files(tiny: Written, prepared: Artifact) -> None:
    tokenizer = load_tokenizer(prepared.directory)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == gguf_files.TEMPLATE
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant<|im_end|>\n")
    assert text.endswith("12?<|im_end|>\n<|im_start|>assistant\n")
    config = json.loads((prepared.directory / "tokenizer/generation_config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    record = json.loads((prepared.directory / "base_model.json").read_text())
    assert record["dequantized_from"] == "Q4_1" and record["context_length"] == CONTEXT
    assert record["digest"] == sha256_file(tiny.path)


def test_the_end_is_learned_where_it_is_also_what_pads(prepared: Artifact) -> None:

    rows = StoredRows.of(prepared.directory / "sft/train")
    for row in rows:
        ends = [n for n, token in enumerate(row["input_ids"]) if token == 2]
        assert row["labels"][ends[-1]] == 2 if "labels" in row else row["completion_mask"][ends[-1]]


def test_the_directory_is_made_once_wherever_the_file_lies(
    tiny: Written, prepared: Artifact, home: Path, tmp_path: Path
) -> None:
    digest = sha256_file(tiny.path)
    there = gguf_base(tiny.path, digest, home)
    before = file_stamps(there)
    moved = tmp_path / "moved.gguf"
    shutil.copyfile(tiny.path, moved)
    assert gguf_base(moved, digest, home) == there == Path(read_base(prepared.directory).path)
    assert file_stamps(there) == before and [p.name for p in there.parent.iterdir()] == [digest]


def test_one_that_was_interrupted_is_made_again(tiny: Written, tmp_path: Path) -> None:
    digest = sha256_file(tiny.path)
    left = tmp_path / "bases" / f"making-{digest}" / "output"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    made = gguf_base(tiny.path, digest, tmp_path)
    assert (made / "model.safetensors").stat().st_size > 4 and not left.exists()


def test_a_file_with_a_tensor_that_nothing_takes_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", extra="blk.0.attn_extra").path
    with pytest.raises(RecipeError, match=r"parameters, of which Transformers' llama takes"):
        gguf_base(path, sha256_file(path), tmp_path / "home")
    assert not list((tmp_path / "home").glob("bases/*/config.json"))


def test_a_file_that_has_changed_since_is_refused(tiny: Written, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has changed since the run began"):
        gguf_base(tiny.path, "0" * 64, tmp_path)


@pytest.mark.proof
def test_a_check_sees_the_template_once_the_directory_is_there(
    tiny: Written, prepared: Artifact, home: Path, tiny_rows: dict[str, Path]
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "base_model": f"gguf:{tiny.path}",
            "data": {"sft": str(tiny_rows["sft"])},
            "sft": {},
            "method": "none",
            "merge": {},
        }
    )
    checked = check(recipe, home=home)
    assert checked.ok, checked.findings
    assert checked.example is not None and "<|im_start|>assistant" in checked.example.prompt
    assert checked.base_model is not None and checked.base_model.dequantized_from == "Q4_1"


def test_an_adapter_on_it_is_merged_and_answers(
    tiny: Written, prepared: Artifact, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_HOME", str(home))
    trained = run_and_publish(make_spec(prepared, home, "sft", max_length=128))
    adapter, merged = trained.directory / "adapter", tmp_path / "merged"
    certificate = merge(f"gguf:{tiny.path}", adapter, merged)
    assert certificate.status == "passed"
    assert not (merged / "dequantized.json").exists()
    said = generate(merged, "what colour is thing 3?", max_new_tokens=8)
    assert generate(adapter, "what colour is thing 3?", max_new_tokens=8) == said
    base = f"gguf:{tiny.path}"
    assert generate(adapter, "what colour is thing 3?", base=base, max_new_tokens=8) == said
    other = write_gguf(tmp_path / "other.gguf", metadata={"general.version": 2}).path
    with pytest.raises(ArtifactError, match=r"trained on a base model with digest"):
        generate(adapter, "what?", base=f"gguf:{other}")


def test_what_a_teacher_in_a_file_teaches_is_learned(
    tiny: Written, prepared: Artifact, home: Path
) -> None:
    lengths = {"max_length": 128, "max_new_tokens": 8}
    spec = make_spec(prepared, home, "distill", teacher=tiny.path.parent, **lengths)
    record = {"source": f"gguf:{tiny.path}", "digest": sha256_file(tiny.path)}
    params = spec.params | {"models": {"teacher": record}}
    spec = spec.model_copy(update={"params": params, "paths": {"teacher": str(tiny.path)}})
    run_stage(spec)
    assert (work_of(spec) / "output/adapter/adapter_config.json").is_file()
