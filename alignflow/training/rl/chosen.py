"""PPO's NLL term, which keeps the chosen responses of preference pairs likely.

    loss = PPO's loss + nll_weight * NLL of chosen responses, mean over their tokens

A policy learns by PPO only from what it happens to sample; this term shows it what it should. Source:
PPO-ptx, Ouyang et al. 2022, arXiv:2203.02155, eq. 2, where the text is that of pretraining.
"""

from __future__ import annotations

from alignflow.recipe import PPOSection
from alignflow.training.engine import Job, pair_rows, token_statistics
from alignflow.training.rl.roles import Sequences
from alignflow.training.rl.rollouts import Chosen, Setting


def chosen_responses(job: Job[PPOSection]) -> list[Chosen]:
    """Those of the training pairs that fit max_length; none where the section has no NLL term."""
    if not job.section.nll_weight:
        return []
    return [Chosen(row["prompt_ids"], row["chosen_ids"]) for row in pair_rows(job, "train")]


def nll_step(setting: Setting, rows: list[Chosen]) -> float:
    """Adds the gradients of the weighted term; returns the NLL in nats per token."""
    roles = setting.roles
    sequences = Sequences.of(
        [row.prompt for row in rows],
        [row.response for row in rows],
        pad=setting.tokenizer.pad_token_id,
        device=roles.model.device,
    )
    whole, total = sequences.mask.sum(), 0.0
    for chosen in sequences.by_length(range(len(rows)), setting.micro_batch_size):
        part = sequences.rows(chosen)
        with setting.precision():
            states = roles.policy_states(part)
            own = token_statistics(
                roles.policy_head, states, part.responses, part.mask, temperature=1.0
            )
        loss = -(own.logps * part.mask).sum() / whole
        (setting.section.nll_weight * loss).backward()
        total += loss.item()
    return total
