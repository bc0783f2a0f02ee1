"""The commands of `alignflow`, a file each. They alone, with `cli.py`, may import `flows`."""
