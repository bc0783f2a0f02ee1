from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow import artifacts
from alignflow.artifacts import Artifact, publish
from alignflow.errors import DataError
from alignflow.events import EventWriter
from alignflow.modeling import load_policy, load_reward_model, load_tokenizer, read_base
from alignflow.recipe import PPOSection, TuningSection
from alignflow.stage import StageSpec
from alignflow.training import ppo, reward, sft
from alignflow.training.roles import SeparateModels, Sequences, SharedBase
from alignflow.training.rollouts import sample

MakeSpec = Callable[..., StageSpec]


def work_of(spec: StageSpec) -> Path:
    work = artifacts.work_directory(Path(spec.home), spec.stage, spec.key)
    (work / "output").mkdir(parents=True, exist_ok=True)
    return work


def completed(spec: StageSpec, run: Any) -> Artifact:
    work = work_of(spec)
    return publish(spec, run(spec, work, EventWriter(work / "events.jsonl", 1)), 0.0, 1)


@pytest.fixture
def trained(training_spec: MakeSpec) -> tuple[Artifact, Artifact]:
    """An SFT artifact and a reward artifact that tells the tiny pairs apart."""
    policy = completed(training_spec("sft"), sft.run)
    judge = training_spec("reward", sft=policy, learning_rate=1e-2, max_steps=30)
    return policy, completed(judge, reward.run)


def ppo_spec(
    make: MakeSpec, trained: tuple[Artifact, Artifact], home: Path, **section: Any
) -> StageSpec:
    policy, judge = trained
    like = make("reward", sft=policy)
    settings = {
        "learning_rate": 1e-3, "max_steps": 4, "batch_size": 8, "max_length": 64,
        "max_new_tokens": 8, "save_steps": 1, "min_reward_accuracy": 0.0, **section,
    }  # fmt: skip
    return like.model_copy(
        update={
            "stage": "ppo",
            "home": str(home),
            "params": {**like.params, "section": PPOSection(**settings).model_dump(mode="json")},
            "inputs": {**like.inputs, "reward": judge.ref()},
        }
    )


def shared(prepare: Path, trained: tuple[Artifact, Artifact]) -> SharedBase:
    policy, judge = trained
    tuning = TuningSection(rank=4)
    base = read_base(prepare)
    return SharedBase(
        base, policy.directory, judge.directory, tuning, dtype="float32", quantization=None
    )


def rollouts(prepare: Path, roles: SharedBase, count: int = 4) -> Sequences:
    tokenizer = load_tokenizer(prepare)
    prompts = [tokenizer(f"what colour is thing {n}?")["input_ids"] for n in range(count)]
    with roles.generating() as policy:
        return sample(
            policy, prompts, max_new_tokens=6, temperature=1.0,
            eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, seed=0,
        )  # fmt: skip


def test_four_adapters_on_one_base_give_the_numbers_of_the_models_they_stand_for(
    prepared: Artifact, trained: tuple[Artifact, Artifact]
) -> None:
    policy, judge = trained
    roles = shared(prepared.directory, trained)
    sequences = rollouts(prepared.directory, roles)
    base = read_base(prepared.directory)
    alone = load_policy(base, policy.directory, dtype="float32", quantization=None).eval()
    scorer = load_reward_model(base, judge.directory, dtype="float32", quantization=None).eval()
    given = {
        "input_ids": sequences.tokens,
        "attention_mask": sequences.attention,
        "position_ids": sequences.positions,
    }
    with torch.no_grad():
        logits = alone(**given).logits[:, sequences.prompt_length - 1 : -1]
        hidden = scorer.base_model.model.model(**given).last_hidden_state
        last = (sequences.attention * torch.arange(sequences.tokens.shape[1])).argmax(1)
        scores = scorer.base_model.model.score(hidden[torch.arange(len(last)), last])[:, 0]
        assert (roles.reference_logits(sequences) - logits).abs().max() == 0
        assert (roles.policy_logits(sequences) - logits).abs().max() == 0
        assert (roles.scores(sequences) - scores).abs().max() == 0


def test_updates_move_policy_and_value_and_nothing_else(
    prepared: Artifact, trained: tuple[Artifact, Artifact]
) -> None:
    roles = shared(prepared.directory, trained)
    sequences = rollouts(prepared.directory, roles)
    before = {name: p.detach().clone() for name, p in roles.model.named_parameters()}
    optimizer = torch.optim.AdamW([p for ps in roles.parameters().values() for p in ps], lr=1e-2)
    for _ in range(2):  # a new adapter's A has no gradient until its B has moved
        (
            roles.policy_logits(sequences).square().mean() + roles.values(sequences).square().mean()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in roles.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (".default." in name or ".value." in name), name


def test_sampling_stops_at_the_end_of_a_response_and_is_the_same_for_a_seed(
    prepared: Artifact, trained: tuple[Artifact, Artifact]
) -> None:
    roles = shared(prepared.directory, trained)
    first, again = (rollouts(prepared.directory, roles, 16) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    eos = load_tokenizer(prepared.directory).eos_token_id
    for tokens, mask in zip(first.responses, first.mask, strict=True):
        real = tokens[mask.bool()].tolist()
        assert eos not in real[:-1]
        assert len(real) == 6 or real[-1] == eos


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bytes(
    training_spec: MakeSpec,
    trained: tuple[Artifact, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = completed(ppo_spec(training_spec, trained, tmp_path / "straight"), ppo.run)
    spec = ppo_spec(training_spec, trained, tmp_path / "killed")
    whole = ppo.update

    def dies(job: Any, roles: Any, optimizer: Any, state: ppo.State, *rest: Any) -> Any:
        if state.update == 2:
            raise KeyboardInterrupt
        return whole(job, roles, optimizer, state, *rest)

    monkeypatch.setattr(ppo, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        completed(spec, ppo.run)
    monkeypatch.setattr(ppo, "update", whole)
    resumed = completed(spec, ppo.run)
    assert resumed.files["adapter/adapter_model.safetensors"] == straight.files["adapter/adapter_model.safetensors"]  # fmt: skip


def test_a_micro_batch_of_one_gives_the_same_update(
    training_spec: MakeSpec, trained: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    weights = []
    for size in (4, 1):
        spec = ppo_spec(training_spec, trained, tmp_path / str(size), max_steps=1)
        spec = spec.model_copy(update={"compute": {"micro_batch_size": size}})
        made = completed(spec, ppo.run)
        weights.append(load_file(made.directory / "adapter" / "adapter_model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=2e-5)


def test_a_reward_model_that_cannot_tell_pairs_apart_is_refused(
    training_spec: MakeSpec, trained: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"ranks .* of held-out pairs rightly"):
        completed(
            ppo_spec(training_spec, trained, tmp_path, min_reward_accuracy=1.0)
            if trained[1].result.metrics["preference_accuracy"] != 1.0
            else _blind(training_spec, trained, tmp_path),
            ppo.run,
        )


def _blind(make: MakeSpec, trained: tuple[Artifact, Artifact], home: Path) -> StageSpec:
    judge = completed(make("reward", sft=trained[0], learning_rate=1e-9, max_steps=1), reward.run)
    return ppo_spec(make, (trained[0], judge), home, min_reward_accuracy=1.0)


def test_full_tuning_keeps_four_models_and_trains_two(
    training_spec: MakeSpec, tmp_path: Path
) -> None:
    policy = completed(training_spec("sft", mode="full"), sft.run)
    judge = completed(
        training_spec("reward", mode="full", sft=policy, learning_rate=3e-3, max_steps=30),
        reward.run,
    )
    spec = ppo_spec(training_spec, (policy, judge), tmp_path, max_steps=1)
    spec = spec.model_copy(
        update={
            "params": {**spec.params, "tuning": TuningSection(mode="full").model_dump(mode="json")}
        }
    )
    made = completed(spec, ppo.run)
    assert "model/model.safetensors" in made.files


def test_ppo_solves_a_bandit(
    training_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reward 1 when the first token is one of 64 of 384, which happens one time in six at first.

    With full tuning: the tiny base is random, and no adapter could make its tied head decided.
    """

    class Bandit(SeparateModels):
        def scores(self, sequences: Sequences) -> torch.Tensor:
            return (sequences.responses[:, 0] < 64).float()

    def bandit(base: Any, sft: Path, reward: Path, tuning: Any, *, dtype: str) -> Bandit:
        return Bandit(base, sft, reward, dtype=dtype)

    policy = completed(training_spec("sft", mode="full", max_steps=1), sft.run)
    judge = completed(
        training_spec("reward", mode="full", sft=policy, learning_rate=3e-3, max_steps=30),
        reward.run,
    )
    monkeypatch.setattr(ppo, "load_roles", bandit)
    spec = ppo_spec(
        training_spec, (policy, judge), tmp_path, max_steps=25, batch_size=32, learning_rate=1e-2,
        kl_coef=0.0, missing_eos_penalty=None, max_new_tokens=2, save_steps=100, max_approx_kl=None,
    )  # fmt: skip
    assert completed(spec, ppo.run).result.metrics["reward"] > 0.9
