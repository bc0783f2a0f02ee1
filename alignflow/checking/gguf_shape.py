"""The model of a GGUF file before anything was made of it: what its header says."""

from __future__ import annotations

from pathlib import Path

from alignflow.checking.architecture import Shape, base_shape
from alignflow.checking.findings import Finding, note
from alignflow.data import GgufHeader, dequantized_from, read_gguf
from alignflow.recipe import ModelSource, gguf_file, is_gguf

FLOAT32_BYTES = 4
LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Linear layers by the format's names, and as Transformers names them in the usual decoder."""
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"


def shape_here(
    model: ModelSource, directory: Path | None, field: str = "base_model"
) -> tuple[Shape | None, list[Finding]]:
    """As `base_shape`; also of a model in a GGUF file that has yet to be made a directory."""
    if directory is None and is_gguf(model.source):
        header = read_gguf(gguf_file(model.source, field), field)
        stage = field.rpartition(".")[0] or "prepare"
        text = (
            f"{header.path.name} is dequantized from {header.quantization} by `{stage}`; its chat "
            "template is checked then."
        )
        return gguf_shape(header), [note(field, text)]
    shape, findings = base_shape(model, directory, field)
    made_of = dequantized_from(directory) if directory is not None else None
    if shape is not None and made_of is not None:
        shape = shape.model_copy(update={"dequantized_from": made_of})
    return shape, findings


def gguf_shape(header: GgufHeader) -> Shape:
    """A model's shape; of an architecture with unusual layers their names stay unknown."""
    vocabulary = header.of_model("vocab_size") or header.metadata.get("tokenizer.ggml.tokens")
    embedded = (t for t in header.tensors if t.name == EMBEDDINGS)
    return Shape(
        parameters=header.parameters,
        embedding_parameters=sum(tensor.elements for tensor in embedded),
        modules=_linear_layers(header),
        hidden=header.of_model("embedding_length"),
        layers=header.of_model("block_count"),
        vocabulary=vocabulary,
        context=header.of_model("context_length"),
        model_type=header.architecture,
        dtype="float32",
        weight_bytes=FLOAT32_BYTES * header.parameters,
        dequantized_from=header.quantization,
    )


def _linear_layers(header: GgufHeader) -> dict[str, tuple[int, int]]:
    modules: dict[str, tuple[int, int]] = {}
    for tensor in header.tensors:
        if len(tensor.shape) < 2 or tensor.name in (EMBEDDINGS, HEAD):
            continue
        _, number, leaf, *_ = [*tensor.name.split("."), "", ""]
        if len(tensor.shape) > 2 or leaf not in LAYERS:
            return {}
        modules[f"model.layers.{number}.{LAYERS[leaf]}"] = (tensor.shape[0], tensor.shape[1])
    return modules
