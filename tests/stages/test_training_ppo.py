from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import (
    logged,
    make_spec,
    prepare_spec,
    question,
    run_and_publish,
    run_stage,
    work_of,
    write_lines,
)

from alignflow.errors import DataError, Preempted
from alignflow.models.generate import respond
from alignflow.models.loading import load_policy, load_reward_model, load_tokenizer, read_base
from alignflow.models.reward_head import head_values
from alignflow.recipe import PPOSection, TuningSection
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import read_events
from alignflow.stages.spec import StageSpec
from alignflow.training.methods import ppo
from alignflow.training.rl import ppo_step
from alignflow.training.rl.chosen import nll_step
from alignflow.training.rl.ppo_step import rate_share
from alignflow.training.rl.roles import Sequences
from alignflow.training.rl.rollouts import Chosen, Prompt, Setting, roll_out
from alignflow.training.rl.shared_base import SharedBase, merged_in_place

ADAPTER = "adapter/adapter_model.safetensors"
Trained = tuple[Artifact, Artifact]


@pytest.fixture(scope="module")
def trained(prepared: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An SFT artifact and a reward artifact that tells the tiny pairs apart."""
    home = tmp_path_factory.mktemp("ppo")
    policy = run_and_publish(make_spec(prepared, home, "sft"))
    judge = make_spec(prepared, home, "reward", sft=policy, learning_rate=1e-2, max_steps=30)
    return policy, run_and_publish(judge)


@pytest.fixture(scope="module")
def with_prompts(
    tiny_base: Path, tiny_rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """Prepared prompts of their own, with targets, some held out."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [
        {"prompt": question(n), "target": "!", "split": "held_out" if n % 5 == 0 else "train"}
        for n in range(200, 240)
    ]
    sources = {"sft": tiny_rows["sft"], "prompts": write_lines(folder / "prompts.jsonl", rows)}
    return run_and_publish(prepare_spec(folder, tiny_base, sources))


@pytest.fixture
def exclamations(tmp_path: Path) -> str:
    """A reward function of the user's: 1 for a response that starts with `!` to `_`."""
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "def exclaims(prompts, responses, targets):\n"
        "    assert len(prompts) == len(responses) == len(targets)\n"
        "    return [float('!' <= response[:1] <= '_') for response in responses]\n"
    )
    return f"{path}:exclaims"


def ppo_spec(
    data: Artifact,
    home: Path,
    trained: Trained | None = None,
    *,
    mode: str = "lora",
    dtype: str = "float32",
    compute: dict[str, Any] | None = None,
    **section: Any,
) -> StageSpec:
    settings = {
        "learning_rate": 1e-3,
        "max_steps": 4,
        "batch_size": 8,
        "max_length": 64,
        "max_new_tokens": 8,
        "save_steps": 1,
        "min_reward_accuracy": 0.0,
        **section,
    }
    inputs = {"data": data.ref()}
    if trained:
        inputs |= {"sft": trained[0].ref(), "reward": trained[1].ref()}
    tuning = TuningSection.model_validate({"mode": mode, "rank": 4})
    return StageSpec(
        stage="ppo",
        home=str(home),
        seed=0,
        params={
            "section": PPOSection.model_validate(settings).model_dump(mode="json"),
            "tuning": tuning.model_dump(mode="json"),
            "dtype": dtype,
        },
        inputs=inputs,
        compute=compute or {},
    )


def shared(
    prepared: Artifact,
    trained: Trained,
    mode: str = "lora",
    dtype: str = "float32",
    **options: Any,
) -> SharedBase:
    policy, judge = trained
    return SharedBase(
        read_base(prepared.directory),
        policy.directory / "adapter",
        judge.directory,
        TuningSection.model_validate({"rank": 4, "mode": mode}),
        dtype=dtype,
        **options,
    )


def rollouts(prepared: Artifact, roles: SharedBase, count: int = 4) -> Sequences:
    tokenizer = load_tokenizer(prepared.directory)
    prompts = [tokenizer(question(n))["input_ids"] for n in range(count)]
    with roles.generating() as policy:
        responses = respond(policy, tokenizer, prompts, max_new_tokens=6, temperature=1.0, seed=0)
    ids = [response.ids for response in responses]
    return Sequences.of(prompts, ids, pad=tokenizer.pad_token_id, device=policy.device)


@pytest.mark.parametrize(
    ("mode", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("qlora", "float32")]
)
def test_four_adapters_on_one_base_give_the_numbers_of_the_models_they_stand_for(
    prepared: Artifact, trained: Trained, mode: str, dtype: str
) -> None:
    """In bfloat16 the reward's head still computes in float32, as it did when it was trained."""
    policy, judge = trained
    roles = shared(prepared, trained, mode, dtype)
    loading: Any = {"dtype": dtype, "quantization": "nf4" if mode == "qlora" else None}
    sequences = rollouts(prepared, roles)
    base = read_base(prepared.directory)
    alone = load_policy(base, policy.directory, **loading).eval()
    scorer = load_reward_model(base, judge.directory, **loading).eval()
    given = {
        "input_ids": sequences.tokens,
        "attention_mask": sequences.attention,
        "position_ids": sequences.positions,
    }
    with torch.no_grad():
        logits = alone(**given).logits[:, sequences.prompt_length - 1 : -1]
        hidden = scorer.base_model.model.model(**given).last_hidden_state
        last = (sequences.attention * torch.arange(sequences.tokens.shape[1])).argmax(1)
        states = hidden[torch.arange(len(last)), last]
        [head] = [w for n, w in load_file(judge.directory / ADAPTER).items() if "score" in n]
        scores = torch.nn.functional.linear(states.to(head.dtype), head)[:, 0]
        reference = roles.reference_head.logits(roles.reference_states(sequences))
        own = roles.policy_head.logits(roles.policy_states(sequences))
    assert (reference - logits).abs().max() == 0
    assert (own - logits).abs().max() == 0
    assert (roles.scores(sequences) - scores).abs().max() == 0


def test_merging_for_generation_changes_no_bit_of_the_weights_afterwards(
    prepared: Artifact, trained: Trained
) -> None:
    roles = shared(prepared, trained)
    tokens = torch.tensor([[5, 9, 11]])
    before = {name: p.detach().clone() for name, p in roles.model.named_parameters()}
    with torch.no_grad():
        apart = roles.model(input_ids=tokens).logits
        with merged_in_place(roles.model, "default"):
            moved = [n for n, p in roles.model.named_parameters() if not torch.equal(p, before[n])]
            merged = roles.model(input_ids=tokens).logits
        after = roles.model(input_ids=tokens).logits
    assert moved
    assert all("base_layer" in name for name in moved)
    torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-4)
    assert torch.equal(after, apart)
    assert all(torch.equal(p, before[n]) for n, p in roles.model.named_parameters())


@pytest.mark.parametrize("value_model", ["separate", "policy"])
def test_updates_move_policy_and_value_and_nothing_else(
    prepared: Artifact, trained: Trained, value_model: str
) -> None:
    roles = shared(prepared, trained, value_model=value_model)
    sequences = rollouts(prepared, roles)
    before = {name: p.detach().clone() for name, p in roles.model.named_parameters()}
    optimizer = torch.optim.AdamW([p for ps in roles.parameters().values() for p in ps], lr=1e-2)
    for _ in range(2):  # a new adapter's A has no gradient until its B has moved
        states = roles.policy_states(sequences)
        loss = states.square().mean()
        if not roles.value_reads_policy:
            loss.backward()
            loss = torch.zeros(())
        (loss + (roles.values(sequences, states) - 1).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in roles.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (".default." in name or ".value." in name), name
    assert any(".value." in name for name in before) == (value_model == "separate")
    assert float(roles.value_head.weight.detach().abs().sum()) > 0


def test_sampling_stops_at_the_end_of_a_response_and_is_the_same_for_a_seed(
    prepared: Artifact, trained: Trained
) -> None:
    roles = shared(prepared, trained)
    first, again = (rollouts(prepared, roles, 16) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    eos = load_tokenizer(prepared.directory).eos_token_id
    for tokens, mask in zip(first.responses, first.mask, strict=True):
        real = tokens[mask.bool()].tolist()
        assert eos not in real[:-1]
        assert len(real) == 6 or real[-1] == eos


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"value_model": "policy", "target_kl": 0.1, "kl_estimator": "k3", "nll_weight": 0.3},
    ],
)
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bytes(
    prepared: Artifact,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: dict[str, Any],
) -> None:
    settings: dict[str, Any] = {**section, "max_steps": 3}
    run_stage(ppo_spec(prepared, tmp_path / "straight", trained, **settings))
    spec = ppo_spec(prepared, tmp_path / "killed", trained, **settings)
    whole = ppo.update

    def dies(job: Any, setting: Any, optimizer: Any, state: Any, *rest: Any) -> Any:
        if state.update == 2:
            raise KeyboardInterrupt
        return whole(job, setting, optimizer, state, *rest)

    monkeypatch.setattr(ppo, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        run_stage(spec)
    monkeypatch.setattr(ppo, "update", whole)
    run_stage(spec, attempt=2)
    work = f"work/ppo/{spec.key}"
    for file in (f"output/{ADAPTER}", "checkpoints/checkpoint-3/weights.safetensors"):
        once, twice = (load_file(tmp_path / run / work / file) for run in ("straight", "killed"))
        assert once and all(torch.equal(tensor, twice[name]) for name, tensor in once.items())
    assert any("value" in name for name in once)


def test_a_micro_batch_of_one_gives_the_same_update(
    prepared: Artifact, trained: Trained, tmp_path: Path
) -> None:
    weights = []
    for size in (4, 1):
        compute = {"micro_batch_size": size, "gradient_checkpointing": size == 1}
        spec = ppo_spec(
            prepared, tmp_path / str(size), trained, max_steps=1, compute=compute, nll_weight=0.3
        )
        weights.append(load_file(run_and_publish(spec).directory / ADAPTER))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=2e-5)


def test_a_reward_model_that_cannot_tell_pairs_apart_is_refused(
    prepared: Artifact, trained: Trained, tmp_path: Path
) -> None:
    blind = make_spec(prepared, tmp_path, "reward", sft=trained[0], learning_rate=1e-9, max_steps=1)
    judge = run_and_publish(blind)
    with pytest.raises(DataError, match=r"ranks .* of held-out pairs rightly"):
        run_stage(ppo_spec(prepared, tmp_path, (trained[0], judge), min_reward_accuracy=1.0))


def test_full_tuning_keeps_four_models_and_trains_two(prepared: Artifact, tmp_path: Path) -> None:
    policy = run_and_publish(make_spec(prepared, tmp_path, "sft", mode="full"))
    judge = make_spec(
        prepared, tmp_path, "reward", mode="full", sft=policy, learning_rate=3e-3, max_steps=30
    )
    trained = policy, run_and_publish(judge)
    made = run_and_publish(ppo_spec(prepared, tmp_path, trained, mode="full", max_steps=2))
    old, new = (
        load_file(artifact.directory / "model/model.safetensors") for artifact in (policy, made)
    )
    assert all(not torch.equal(new[name], tensor) for name, tensor in old.items())


@pytest.mark.parametrize(("mode", "dtype"), [("qlora", "float32"), ("lora", "bfloat16")])
def test_ppo_works_on_an_nf4_base_and_in_bfloat16(
    prepared: Artifact, trained: Trained, tmp_path: Path, mode: str, dtype: str
) -> None:
    section = {"nll_weight": 0.1, "max_steps": 2}
    made = run_and_publish(ppo_spec(prepared, tmp_path, trained, mode=mode, dtype=dtype, **section))
    assert made.result.params["quantization"] == ("nf4" if mode == "qlora" else "none")
    old, new = (load_file(artifact.directory / ADAPTER) for artifact in (trained[0], made))
    assert any(not torch.equal(new[name], tensor) for name, tensor in old.items())


def test_scores_and_values_are_computed_in_float32_also_under_autocast() -> None:
    head, states = torch.nn.Linear(64, 1), torch.randn(3, 5, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_values(head, states)
    assert torch.equal(found, head(states.float()).squeeze(-1))


def test_ppo_solves_a_bandit_with_a_reward_function_and_no_reward_model(
    with_prompts: Artifact, tmp_path: Path, exclamations: str
) -> None:
    """Reward 1 for about one first token in six at first.

    With full tuning: the tiny base is random, and no adapter could make its tied head decided.
    """
    spec = ppo_spec(
        with_prompts,
        tmp_path,
        mode="full",
        rewards=[exclamations],
        max_steps=25,
        batch_size=32,
        learning_rate=1e-2,
        kl_coef=0.0,
        missing_eos_penalty=None,
        max_new_tokens=2,
        save_steps=100,
        max_approx_kl=None,
    )
    result = run_stage(spec)
    rewards = logged(spec, "objective/scores")
    assert rewards[0] < 0.5
    assert result.metrics["reward"] == rewards[-1] > 0.9


def test_the_policy_that_does_the_task_best_is_kept_and_ppo_ends_when_it_only_gets_worse(
    with_prompts: Artifact, tmp_path: Path, exclamations: str
) -> None:
    """The metric always says less than before, so the policy that PPO started from is the best."""
    metric = tmp_path / "falls.py"
    metric.write_text(
        "import datasets\n"
        "import evaluate\n\n\n"
        "class Falls(evaluate.Metric):\n"
        "    calls = 0\n\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        assert set(references) == {'!'}\n"
        "        Falls.calls += 1\n"
        "        return {'falls': 1.0 / Falls.calls}\n"
    )
    watch = {"metric": str(metric), "every": 2, "examples": 4, "patience": 2}
    spec = ppo_spec(
        with_prompts,
        tmp_path,
        rewards=[exclamations],
        watch=watch,
        max_steps=12,
        missing_eos_penalty=None,
    )
    result = run_stage(spec)
    assert result.details["watched"] == [[0, 1.0], [2, 0.5], [4, pytest.approx(1 / 3)]]
    assert (result.details["kept_update"], result.details["updates"]) == (0, 4)
    kept = load_file(tmp_path / "work/ppo" / spec.key / "output" / ADAPTER)
    assert all(float(tensor.abs().sum()) == 0 for name, tensor in kept.items() if "lora_B" in name)


def test_sigterm_saves_a_checkpoint_that_the_next_attempt_continues_from(
    with_prompts: Artifact, tmp_path: Path, exclamations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ppo_spec(
        with_prompts, tmp_path, rewards=[exclamations], max_steps=2, save_steps=100, batch_size=4
    )
    whole = ppo.update

    def asked_to_stop(*arguments: Any) -> Any:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    monkeypatch.setattr(ppo, "update", asked_to_stop)
    with pytest.raises(Preempted, match="update 1 of 2"):
        run_stage(spec)
    monkeypatch.setattr(ppo, "update", whole)
    run_stage(spec, attempt=2)
    events = read_events(work_of(spec) / "events.jsonl")
    assert [e["text"] for e in events if e["kind"] == "message"] == ["Continues from update 1."]


def test_the_nll_term_adds_the_gradient_of_the_chosen_responses_times_its_weight(
    prepared: Artifact, trained: Trained
) -> None:
    """Against Transformers' own loss of each response, weighted by its tokens."""
    tokenizer = load_tokenizer(prepared.directory)
    section = PPOSection(nll_weight=0.25)
    rows = [
        Chosen(tokenizer(question(n))["input_ids"], tokenizer("a" * n)["input_ids"])
        for n in (3, 7, 5)
    ]
    roles = shared(prepared, trained)
    found = nll_step(Setting(section, roles, {}, tokenizer, rows, 2, "float32"), rows)
    gradients = {n: p.grad for n, p in roles.model.named_parameters() if p.grad is not None}
    alone = load_policy(
        read_base(prepared.directory), trained[0].directory, dtype="float32", quantization=None
    ).eval()
    for _, parameter in alone.named_parameters():
        parameter.requires_grad_(True)
    whole, total = sum(len(row.response) for row in rows), 0.0
    for row in rows:
        labels = [-100] * len(row.prompt) + row.response
        ids = torch.tensor([row.prompt + row.response])
        loss = alone(input_ids=ids, labels=torch.tensor([labels])).loss * len(row.response) / whole
        (section.nll_weight * loss).backward()
        total += loss.item()
    expected = dict(alone.named_parameters())
    assert found == pytest.approx(total, rel=1e-5)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-4, atol=1e-6)


def test_the_nll_term_makes_chosen_responses_likelier_while_ppo_runs(
    prepared: Artifact, trained: Trained, tmp_path: Path
) -> None:
    spec = ppo_spec(
        prepared,
        tmp_path,
        trained,
        nll_weight=1.0,
        max_steps=6,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    result = run_stage(spec)
    losses = logged(spec, "loss/nll_avg")
    assert losses[-1] < losses[0] - 0.1
    assert result.details["chosen_responses"] > 0


def test_each_pass_draws_every_prompt_once() -> None:
    prompts = [Prompt([n], str(n), None) for n in range(7)]
    drawn = [
        prompt.ids[0] for update in range(7) for prompt in ppo.draw(prompts, 4, update, seed=0)
    ]
    passes = [drawn[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(numbers) == list(range(7)) for numbers in passes)
    assert passes[0] != passes[1]


def test_the_rates_warm_up_and_fall_to_a_tenth() -> None:
    linear = PPOSection(warmup_ratio=0.2, lr_scheduler_type="linear")
    shares = [rate_share(linear, done, 10) for done in range(10)]
    assert shares[:3] == [0.5, pytest.approx(0.91), pytest.approx(0.82)]
    assert shares[-1] == pytest.approx(0.1 + 0.9 * 0.1)
    assert sorted(shares[1:], reverse=True) == shares[1:]
    constant = PPOSection(warmup_ratio=0.2, lr_scheduler_type="constant")
    assert {rate_share(constant, done, 10) for done in range(10)} == {1.0}


def test_steps_on_a_batch_end_early_when_the_policy_has_moved_too_far(
    prepared: Artifact, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = shared(prepared, trained)
    steps: list[int] = []

    def moves(*_: Any) -> dict[str, float]:
        steps.append(len(steps))
        return {"policy/approxkl_avg": 0.04 * len(steps), "val/ratio": 1.0}

    monkeypatch.setattr(ppo_step, "step", moves)
    rollout: Any = SimpleNamespace(logps=torch.zeros(8, 3))
    for limit, expected in ((0.1, 3), (None, 8)):
        section = PPOSection(max_approx_kl=limit, num_ppo_epochs=4, num_mini_batches=2)
        setting = Setting(section, roles, {}, None, [], 4, "float32")
        steps.clear()
        found = ppo_step.optimize(setting, torch.optim.SGD([torch.zeros(1)]), rollout, Random(0))
        assert len(steps) == expected == found["steps"]


def test_a_response_that_does_not_end_scores_minus_the_penalty(
    prepared: Artifact, trained: Trained
) -> None:
    tokenizer = load_tokenizer(prepared.directory)
    prompts = [Prompt(tokenizer(question(n))["input_ids"], question(n), None) for n in range(6)]
    rewards = {"m:f": lambda texts, responses, targets: torch.zeros(len(texts))}
    for penalty, expected in ((3.0, -3.0), (None, 0.0)):
        section = PPOSection.model_validate(
            {"rewards": ["m:f"], "max_new_tokens": 1, "missing_eos_penalty": penalty}
        )
        roles = shared(prepared, trained)
        setting = Setting(section, roles, rewards, tokenizer, [], 4, "float32")
        rollout, _ = roll_out(setting, prompts, kl_coef=0.0, scales=None, seed=0)
        unended = 6 - rollout.metrics["val/num_eos_tokens"]
        assert unended > 0
        assert rollout.metrics["objective/rlhf_reward"] == pytest.approx(expected * unended / 6)


def test_values_that_start_as_scores_start_in_the_scale_that_scores_are_turned_into(
    prepared: Artifact, trained: Trained
) -> None:
    tokenizer = load_tokenizer(prepared.directory)
    prompts = [Prompt(tokenizer(question(n))["input_ids"], question(n), None) for n in range(8)]
    section = PPOSection.model_validate(
        {"rewards": [{"source": "reward_model", "weight": 0.5}], "max_new_tokens": 6}
    )
    roles = shared(prepared, trained)
    plain = head_values(roles.value_head, states := torch.randn(4, roles.value_head.in_features))
    setting = Setting(section, roles, {}, tokenizer, [], 4, "float32")
    first, scales = roll_out(setting, prompts, kl_coef=0.0, scales=None, seed=0)
    scale = scales["reward_model"]
    expected = 0.5 * (plain - scale.mean) / scale.std
    assert torch.allclose(head_values(roles.value_head, states), expected, atol=1e-5)
    again, _ = roll_out(setting, prompts, kl_coef=0.0, scales=scales, seed=0)
    assert torch.allclose(first.values, again.values, atol=1e-5)


def test_a_steep_value_loss_does_not_scale_the_policy_s_gradient_down() -> None:
    policy, value = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    policy.grad, value.grad = torch.tensor([0.3, 0.0]), torch.tensor([0.0, 4.0])
    norms = ppo_step.clip_apart({"policy": [policy], "value": [value]}, 1.0)
    assert norms == {"policy": pytest.approx(0.3), "value": 4.0}
    assert policy.grad.tolist() == pytest.approx([0.3, 0.0])
    assert value.grad.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
