"""What a stage is told and returns, its artifact, and the process that runs it."""
