"""`python -m segmint` is the command."""

from segmint.pipeline.commands.cli import main

if __name__ == "__main__":
    main()
