"""The command line. Heavy imports are inside the commands, so that help is instant."""

from fedlora.cli.main import main

__all__ = ["main"]
