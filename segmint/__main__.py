"""Entry point of `python -m segmint`, which runs the command line."""

from segmint.pipeline.commands.cli import main

if __name__ == "__main__":
    main()
