"""TRL 1.12.0's PPOTrainer on the base of `benchmarks/ppo.py`; run in an environment with that TRL.

    python ppo_trl.py BASE ROWS SETTINGS      (SETTINGS is JSON: batch, minibatches, passes, updates,
                                               tokens, threads)

Prints JSON: the seconds of all updates, and the process's peak memory in MiB.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    base, rows, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    assert trl.__version__ == "1.12.0", trl.__version__
    theirs = importlib.import_module("trl.experimental.ppo")
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    ids = [
        tokenizer(json.loads(line)["prompt"])["input_ids"] for line in rows.read_text().splitlines()
    ]
    scorer = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    scorer.config.pad_token_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as output:
        arguments: Any = theirs.PPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            gradient_checkpointing=False,
            learning_rate=1e-4,
            num_sample_generations=0,
            per_device_train_batch_size=settings["batch"] // settings["minibatches"],
            gradient_accumulation_steps=settings["minibatches"],
            num_mini_batches=settings["minibatches"],
            num_ppo_epochs=settings["passes"],
            total_episodes=settings["batch"] * settings["updates"],
            local_rollout_forward_batch_size=settings["batch"],
            response_length=settings["tokens"],
            stop_token="eos",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = theirs.PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            ref_model=None,
            reward_model=scorer,
            value_model=copy.deepcopy(scorer),
            train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
            eval_dataset=Dataset.from_list([{"input_ids": row} for row in ids[:2]]),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
