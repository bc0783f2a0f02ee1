"""The planned model on the disk: PEFT's arithmetic in bounded memory, streamed, hashed, resumable."""
