"""An architecture at toy size: a config with its kinds of layers kept and its sizes taken away.

What a toy does wrong, the model does wrong; what it costs is a second on a CPU.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

Config = dict[str, Any]
WIDTH, HEADS, HEAD_WIDTH, VOCABULARY = 64, 4, 16, 256
FIRST_TEXT, FIRST_SPECIAL = 3, 200
"""Texts of a toy are tokens from the first up to the second, where its special tokens begin."""
NO_TOY = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError)
"""What is raised where no toy of a config can be made: the fault of the toy, not of the model."""
TOY_TOKENIZER = SimpleNamespace(eos_token_id=None, pad_token_id=0, init_kwargs={})
"""Of texts that are token ids already; no token of its own ends one."""
LARGEST_PARAMETERS = 20_000_000


def _at_most(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


def _to(size: int) -> Callable[[int], int]:
    return lambda value: size if value > 0 else value


SIZES: tuple[tuple[str, Callable[[int], int]], ...] = (
    (r"(hidden_size|d_model|n_embd|emb_dim|embedding_(dim|size)|lru_width)", _to(WIDTH)),
    (r"(word_embed_proj_dim|out_hidden_size|hidden_size_global|backbone_hidden_size)", _to(WIDTH)),
    (r"(projector_(in|out)put_dim|vision_output_dim|projection_dim|output_dim)", _to(WIDTH)),
    (r"hidden_size_per_layer_input", _to(HEAD_WIDTH)),
    (r".*intermediate_size(_mlp)?|.*ffn_(dim|hidden_size)|dff|dim_ff|n_inner|d_inner", _to(96)),
    (r"(swa_|decoder_|encoder_|num_)*attention_heads|n_heads?|num_heads", _to(HEADS)),
    (r"(swa_)?(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)", _at_most(HEADS)),
    (r"(swa_|global_|attention_)?(head_dim|head_size)|v_head_dim|kv_channels", _to(HEAD_WIDTH)),
    (r"qk_head_dim|index_head_dim", _to(2 * HEAD_WIDTH)),
    (r"(qk_rope|qk_nope)_head_dim", _to(HEAD_WIDTH)),
    (r"rotary_dim", _to(HEAD_WIDTH // 2)),
    (r"(q|kv|o)_lora_rank|laurel_rank|adapter_rank", _to(HEAD_WIDTH)),
    (r"index_(n_heads|topk)", _at_most(4)),
    (r"(moe_)?num_(local_)?experts|n_routed_experts", _at_most(4)),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts", _at_most(2)),
    (r"n_group|num_expert_group", _at_most(2)),
    (r"topk_group", _at_most(1)),
    (r"(moe_)?n(um)?_shared_experts", _at_most(1)),
    (r"zero_expert_num", _at_most(2)),
    (r"linear_num_value_heads", _to(4)),
    (r"linear_num_key_heads", _to(2)),
    (r"linear_num_heads", _to(HEADS)),
    (r"linear_(key_|value_)?head_dim", _to(8)),
    (r"mamba_(n_heads|num_heads)", _to(8)),
    (r"mamba_(d_head|head_dim|headdim)", _to(HEAD_WIDTH)),
    (r"mamba_d_ssm", _to(2 * WIDTH)),
    (r"mamba_d_state|(ssm_)?state_size", _to(16)),
    (r"(mamba_)?n_?groups|n_mamba_heads", _at_most(2)),
    (r"mamba_dt_rank|time_step_rank", _to(4)),
    (r"(mamba_)?expand", _to(2)),
    (r"(mamba_)?chunk_size|attention_chunk_size|block_size", _to(8)),
    (r"sliding_window(_size)?|(attention_)?window_size|keep_window_size|local_attention", _to(8)),
    (r"n_positions|n_ctx|max_seq_len|context_length", _at_most(512)),
    (r"(unpadded_)?vocab_size(_per_layer_input)?|vocab_offset", _to(VOCABULARY)),
    (r"depth|(en|de)coder_layers|num_global_layers", _at_most(2)),
    (r"first_k_dense_replace|num_dense_layers|max_window_layers", _at_most(1)),
    (r"(attn|expert)_layer_period", _at_most(2)),
    (r"(attn|expert)_layer_offset", _at_most(1)),
)
"""Sizes by name of field, the first match first; what is not here stays."""
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
LAYER_NUMBERS = (
    *("mlp_only_layers", "full_attn_idxs", "moe_layers", "hybrid_layer_ids"),
    *("attn_layer_indices", "cross_attention_layers"),
)
STATES = ("expand", "state_size")
"""Fields of a model that is all state space: its heads are those of the states."""


def toy_config(config: Any) -> Any:
    """A config of the same architecture at toy size."""
    whole = config.to_dict()
    whole.pop("quantization_config", None)
    return type(config).from_dict(_small(whole, _special_tokens(whole)))


def toy_model(kind: Any, config: Any, attention: str | None = None, **options: Any) -> Any:
    """A toy of a config that is one already, in float32 on the CPU, its weights the same each time.

    Raises:
        ValueError: It is too large to be one.
    """
    if attention is not None:
        options["attn_implementation"] = attention
    with torch.device("meta"):
        size = sum(
            p.numel() for p in kind.from_config(copy.deepcopy(config), **options).parameters()
        )
    if size > LARGEST_PARAMETERS:
        raise ValueError(f"{size:,} parameters are left of {config.model_type}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config, **options).float().eval()
        _spread(model)
    return model


def toy_texts(*lengths: int) -> list[list[int]]:
    """Texts that a toy reads, in token ids, none of which is special; the same each time."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(FIRST_TEXT, FIRST_SPECIAL, (length,), generator=generator).tolist()
        for length in lengths
    ]


def answered_alone(model: Any, prompt: list[int], steps: int) -> list[int]:
    """What Transformers' own generation answers to one prompt, greedily, in at most `steps` tokens."""
    ids = torch.tensor([prompt])
    ends = model.generation_config.eos_token_id
    options = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
    answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return answer[0, len(prompt) :].tolist()


@torch.no_grad()
def _spread(model: Any) -> None:
    """Adds noise to every weight, so that no choice of a token is a tie and no part is silent."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)


def _small(config: Config, special: dict[int, int]) -> Config:
    """The same fields with small values, sections within too."""
    kept = _kept_layers(config)
    small: Config = {}
    for name, value in config.items():
        if _is_section(name, value):
            small[name] = _small(value, special)
        elif _is_token(name):
            small[name] = _token(value, special)
        elif name in LAYER_COUNTS:
            small[name] = len(kept)
        elif name == "num_kv_shared_layers":
            small[name] = sum(layer >= _layers(config) - value for layer in kept)
        elif name in LAYER_NUMBERS and isinstance(value, list):
            small[name] = [kept.index(layer) for layer in value if layer in kept]
        elif name == "per_layer_config" and isinstance(value, dict):
            small[name] = {
                str(kept.index(int(layer))): _small(part, special)
                for layer, part in value.items()
                if int(layer) in kept
            }
        elif isinstance(value, list) and len(value) == _layers(config):
            small[name] = [_size(name, value[layer]) for layer in kept]
        else:
            small[name] = _size(name, value)
    _fit_states(small, config)
    _fit_heads(small, config)
    _fit_rotary(small)
    if "attention_types" in small:  # GPT Neo counts its layers there too
        small["attention_types"] = [[small["attention_types"][0][0], 1]]
    return small


def _layers(config: Config) -> int:
    counts = (config.get(name) for name in LAYER_COUNTS)
    return next((count for count in counts if isinstance(count, int)), 0)


def _kept_layers(config: Config) -> list[int]:
    """The first layer of each kind; two where all are of one, and what periods need."""
    count = _layers(config)
    lists = [
        values
        for name, values in config.items()
        if isinstance(values, list) and len(values) == count and name not in LAYER_NUMBERS
    ]
    named = [config[name] for name in LAYER_NUMBERS if isinstance(config.get(name), list)]
    alone = config.get("per_layer_config") or {}
    shared = config.get("num_kv_shared_layers") or 0
    kinds: dict[str, int] = {}
    for layer in range(count):
        of_lists = [values[layer] for values in lists if not isinstance(values[layer], float)]
        among = [layer in numbers for numbers in named]
        own = layer in alone or str(layer) in alone
        kinds.setdefault(repr((of_lists, among, own, layer >= count - shared)), layer)
    least = 3 if "block_types" in config else 2
    kept = sorted(kinds.values())
    rest = (layer for layer in range(count) if layer not in kept)
    return sorted([*kept, *(next(rest) for _ in range(min(least, count) - len(kept)))])


def _size(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, smaller in SIZES:
        if re.fullmatch(pattern, name):
            return smaller(value)
    return value


def _is_section(name: str, value: Any) -> bool:
    return isinstance(value, dict) and name.endswith("_config") and name != "per_layer_config"


def _is_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index", "_token_ids"))


def _tokens(config: Config) -> Iterator[int]:
    for name, value in config.items():
        if _is_section(name, value):
            yield from _tokens(value)
        elif _is_token(name):
            yield from (id_ for id_ in (value if isinstance(value, list) else [value]) if id_)


def _special_tokens(config: Config) -> dict[int, int]:
    """Each token that the config names to one of the toy's."""
    named = sorted(set(_tokens(config)))
    return {old: FIRST_SPECIAL + place for place, old in enumerate(named)}


def _token(value: Any, special: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [_token(one, special) for one in value]
    return special.get(value, value)


def _fit_states(small: Config, config: Config) -> None:
    """State-space layers: heads times their width is the width that the states have."""
    if all(name in small for name in STATES):
        if "num_heads" in small:
            small["num_heads"] = 2 * WIDTH // HEAD_WIDTH
        if "intermediate_size" in small:
            small["intermediate_size"] = 2 * WIDTH
    if isinstance(wide := small.get("attention_hidden_size"), int):
        small["attention_hidden_size"] = wide * WIDTH // config["hidden_size"]
        if "attention_head_dim" in small:
            small["attention_head_dim"] = small["attention_hidden_size"] // HEADS
    if "mamba_headdim" in small and "n_mamba_heads" in small:
        small["mamba_headdim"] = 2 * WIDTH // small["n_mamba_heads"]


def _fit_heads(small: Config, config: Config) -> None:
    """Fewer heads for keys where the model has fewer, and at least one."""
    for name in ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads"):
        heads = config.get("swa_num_attention_heads" if name.startswith("swa") else _heads(config))
        given = config.get(name)
        if isinstance(given, int) and isinstance(heads, int):
            small[name] = HEADS if given >= heads else min(given, HEADS // 2)


def _heads(config: Config) -> str:
    names = ("num_attention_heads", "n_head", "n_heads", "num_heads")
    return next((name for name in names if name in config), names[0])


def _fit_rotary(small: Config) -> None:
    """Lists of rotary frequencies: half as many as rotated dimensions."""
    rope = small.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        share = part.get("partial_rotary_factor") or small.get("partial_rotary_factor") or 1.0
        half = int(HEAD_WIDTH * share) // 2
        for name in ("long_factor", "short_factor"):
            if isinstance(part.get(name), list):
                part[name] = part[name][:half]
        if isinstance(part.get("mrope_section"), list):
            sections = len(part["mrope_section"])
            part["mrope_section"] = [half - (sections - 1) * (half // sections)] + [
                half // sections
            ] * (sections - 1)
