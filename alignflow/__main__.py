"""`python -m alignflow`: the command line."""

from alignflow.commands.cli import main

if __name__ == "__main__":
    main()
