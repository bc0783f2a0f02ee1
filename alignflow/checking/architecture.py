"""The base model by its config and its safetensors headers: layers, sizes, what adapters can target."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignflow.checking.findings import Finding, error, note, warning
from alignflow.checking.model_files import read_config
from alignflow.data import context_length, text_section
from alignflow.errors import ArtifactError, RecipeError
from alignflow.models import Located, read_checkpoint, read_header
from alignflow.recipe import TARGET_PRESETS, ModelSource, Recipe, TuningSection, names_module
from alignflow.stages import Record

USUAL_LAYERS = 32
HEADS = frozenset({"lm_head", "embed_out", "output_layer", "score", "classifier"})
NO_LINEAR = re.compile(r"embed|wte|wpe|norm|rotary")
FACTORS = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight$"
)
SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*([BbMm])(?![A-Za-z0-9])")


class Shape(Record):
    """What an estimate needs to know of a model."""

    parameters: int
    embedding_parameters: int = 0
    modules: dict[str, tuple[int, int]]
    """Name of each linear layer to its (outputs, inputs)."""
    hidden: int | None = None
    layers: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    model_type: str | None = None
    dtype: str | None = None
    weight_bytes: int
    """On disk."""
    from_name: bool = False
    """Guessed from the model's name, for it is not on this machine."""
    dequantized_from: str | None = None
    """What a GGUF file has most weights in, such as Q4_1."""

    def adapter_parameters(self, tuning: TuningSection) -> int:
        """Parameters of one adapter; a guess where the layers are not known.

        A layer of width h has about 12 h^2 parameters, its adapters about 20 h per rank.
        """
        if not self.modules:
            return int(self.parameters * 20 * tuning.rank / 12 / guessed_width(self.parameters))
        return sum(
            tuning.rank_of(name) * sum(self.modules[name])
            + (self.modules[name][0] if tuning.use_dora else 0)
            for name in adapted_modules(self, tuning)
        )

    @property
    def linear(self) -> dict[str, list[tuple[int, int]]]:
        """Leaf name of linear layers to (outputs, inputs) of each."""
        sizes: dict[str, list[tuple[int, int]]] = {}
        for name, size in self.modules.items():
            sizes.setdefault(_leaf(name), []).append(size)
        return sizes


def guessed_width(parameters: int) -> int:
    """Width of a model of that size, if it has the usual depth."""
    return max(64, int((parameters / 12 / USUAL_LAYERS) ** 0.5))


def read_shape(directory: Path) -> Shape:
    """A model's shape from its config and headers; no weight is read.

    Raises:
        RecipeError: The config does not parse.
        ArtifactError: There are no whole safetensors files.
    """
    config = read_config(directory / "config.json")
    inner = text_section(config)
    tensors = [size for sizes in read_checkpoint(directory).values() for size in sizes]
    return Shape(
        parameters=sum(tensor.elements for tensor in tensors),
        embedding_parameters=sum(t.elements for t in tensors if "embed" in t.name),
        modules=_linear_layers(tensors),
        hidden=_whole(inner, "hidden_size", "n_embd", "d_model"),
        layers=_whole(inner, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        vocabulary=_whole(inner, "vocab_size"),
        context=context_length(config),
        model_type=config.get("model_type"),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        weight_bytes=sum(tensor.bytes for tensor in tensors),
    )


def _whole(config: dict[str, Any], *names: str) -> int | None:
    return next((config[n] for n in names if isinstance(config.get(n), int)), None)


def _linear_layers(tensors: list[Located]) -> dict[str, tuple[int, int]]:
    """Sizes by name. GPT-2's layers lie as (inputs, outputs), which the length of a bias shows."""
    biases = {t.name.removesuffix(".bias"): t.shape[0] for t in tensors if t.name.endswith(".bias")}
    weights = [t for t in tensors if t.name.endswith(".weight") and len(t.shape) == 2]
    sizes: dict[str, tuple[int, int]] = {}
    for tensor in weights:
        name, (first, second) = tensor.name.removesuffix(".weight"), tensor.shape
        turned = biases.get(name) == second != first
        sizes[name] = (second, first) if turned else (first, second)
    return {
        module: size
        for module, size in sizes.items()
        if _leaf(module) not in HEADS and not NO_LINEAR.search(_leaf(module))
    }


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def shape_from_name(source: str) -> Shape | None:
    """A rough shape from the size that a model's name states, such as `-8B`."""
    match = SIZE_IN_NAME.search(source.rpartition("/")[2].replace("-", " "))
    if match is None:
        return None
    parameters = int(float(match[1]) * (1e9 if match[2] in "Bb" else 1e6))
    return Shape(parameters=parameters, modules={}, weight_bytes=2 * parameters, from_name=True)


def base_shape(
    model: ModelSource, directory: Path | None, field: str = "base_model"
) -> tuple[Shape | None, list[Finding]]:
    """A model's shape as far as it can be known here, and what is wrong with its files."""
    if directory is None:
        shape = shape_from_name(model.source)
        stage = field.rpartition(".")[0] or "prepare"
        text = f"{model.source} is not on this machine; its files are checked by `{stage}`."
        return shape, [note(field, text)]
    try:
        return read_shape(directory), []
    except RecipeError as problem:
        return None, [error(field, problem.message.removeprefix("base_model: "))]
    except ArtifactError as problem:
        return None, [error(field, problem.message, ArtifactError)]


def resolved_targets(shape: Shape, tuning: TuningSection) -> list[str]:
    """Leaf names of the layers that adapters go on; names that do not exist are left out."""
    return sorted({leaf for leaf in _wanted(shape, tuning) if leaf in shape.linear})


def adapted_modules(shape: Shape, tuning: TuningSection) -> list[str]:
    """Names of the linear layers that get an adapter."""
    leaves, layers = resolved_targets(shape, tuning), tuning.layers_to_transform
    modules = [name for name in shape.modules if _leaf(name) in leaves]
    if layers is None:
        return modules
    numbers = {name: re.search(r"\.(\d+)\.", name) for name in modules}
    return [name for name, number in numbers.items() if number and int(number[1]) in layers]


def _wanted(shape: Shape, tuning: TuningSection) -> list[str]:
    targets = tuning.target_modules
    if targets == "all-linear":
        return list(shape.linear)
    names = targets if isinstance(targets, list) else TARGET_PRESETS.get(targets, (targets,))
    return [name.rpartition(".")[2] for name in names]


def target_findings(recipe: Recipe, shape: Shape) -> list[Finding]:
    """Target modules, layers and patterns that mean nothing in this architecture."""
    if recipe.tuning.mode == "full" or not shape.linear:
        return []
    known = sorted(shape.linear)
    unknown = [
        error(
            "tuning.target_modules",
            f"the model has no linear layer {leaf!r}; " + _meant(leaf, known),
        )
        for leaf in dict.fromkeys(_wanted(shape, recipe.tuning))
        if leaf not in shape.linear
    ]
    return unknown or list(_unmatched(recipe.tuning, shape))


def _unmatched(tuning: TuningSection, shape: Shape) -> Iterator[Finding]:
    layers = tuning.layers_to_transform
    if layers and shape.layers is not None and max(layers) >= shape.layers:
        yield error(
            "tuning.layers_to_transform",
            f"names layer {max(layers)}; the model has layers 0 to {shape.layers - 1}.",
        )
        return
    adapted = adapted_modules(shape, tuning)
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(tuning, field):
            if not any(names_module(pattern, name) for name in adapted):
                yield error(
                    f"tuning.{field}",
                    f"{pattern!r} means none of the {len(adapted)} modules with adapters, such as "
                    f"{adapted[0] if adapted else 'none'}. Give the end of a module's name.",
                )


def _meant(leaf: str, known: list[str]) -> str:
    close = difflib.get_close_matches(leaf, known, n=1)
    presets = ", ".join([*TARGET_PRESETS, "all-linear"])
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}It has {', '.join(known)}; or take a preset: {presets}."


def context_findings(recipe: Recipe, shape: Shape) -> Iterator[Finding]:
    """Lengths above the context window."""
    if shape.context is None:
        return
    for name, section in recipe.training_sections.items():
        if section.max_length > shape.context:
            yield warning(
                f"{name}.max_length",
                f"is {section.max_length} tokens, the base model's context {shape.context}; rows "
                f"above {shape.context} are dropped. Lower it, or take a model with a longer context.",
            )
    if recipe.data.evaluation and recipe.evaluation.max_new_tokens >= shape.context:
        yield error(
            "evaluation.max_new_tokens",
            f"is {recipe.evaluation.max_new_tokens}, which fills the context of {shape.context} "
            "tokens and leaves none for a prompt. Lower it.",
        )


def adapter_findings(adapter: str, digest: str | None, shape: Shape | None) -> Iterator[Finding]:
    """Whether `tuning.init_adapter` is an adapter, and one of the base of this digest and shape."""
    field, directory = "tuning.init_adapter", Path(adapter).expanduser().absolute()
    weights = directory / "adapter_model.safetensors"
    files = {"adapter_config": directory / "adapter_config.json", "adapter_model": weights}
    absent = next((name for name, path in files.items() if not path.is_file()), None)
    if absent is not None:
        yield error(
            field,
            f"{adapter!r} is not an adapter directory ({directory} has no {absent} file). Give the "
            "folder PEFT saved.",
        )
        return
    record = directory / "base_model.json"
    try:
        recorded = read_config(record).get("digest") if record.is_file() else None
        tensors = read_header(weights)
    except (RecipeError, ArtifactError) as problem:
        yield error(field, problem.message, ArtifactError)
        return
    if recorded and digest and recorded != digest:
        yield error(
            field,
            f"{adapter!r} was trained on a base model with digest {recorded[:12]}, this recipe's "
            f"has {digest[:12]}. Use an adapter of this base, or the base of that adapter.",
            ArtifactError,
        )
    elif shape is not None and shape.linear:
        yield from _misfits(adapter, tensors, shape)


def _misfits(adapter: str, tensors: list[Located], shape: Shape) -> Iterator[Finding]:
    """The first factor that no layer of the base has the size for."""
    for tensor in tensors:
        match = FACTORS.match(tensor.name)
        if match is None or len(tensor.shape) != 2:
            continue
        leaf = match["module"].rpartition(".")[2]
        side, size = (1, tensor.shape[1]) if match["side"] == "A" else (0, tensor.shape[0])
        sizes = {layer[side] for layer in shape.linear.get(leaf, [])}
        if leaf not in HEADS and size not in sizes:
            has = f"of size {sorted(sizes)}" if sizes else "at all"
            yield error(
                "tuning.init_adapter",
                f"{adapter!r} belongs to another base: {tensor.name} has size {size}, this base "
                f"has {'' if sizes else 'no '}{leaf} {has}. Use an adapter of this base.",
                ArtifactError,
            )
            return
