"""Whether a candidate is better than the champion, and harms nothing."""
