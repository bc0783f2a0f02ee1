"""How models are judged: responses, metrics, intervals, and the stage around them."""
