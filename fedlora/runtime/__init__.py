"""What carries a run: Flower apps, their messages, the engines, and the run folder.

With ``server/`` and ``client/`` the only importer of Flower.
"""

import os

# Before Flower is imported: it neither phones home nor installs packages behind our back.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
