"""``python -m fedlora`` is the command ``fedlora``."""

from fedlora.cli import main

main()
