from .reward_gate import weakness as weakness
