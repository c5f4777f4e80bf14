"""What a deployed process says: one JSON object a line, on standard error.

Every line has ``time`` (UTC), ``level``, ``process``, ``event`` and what the event is about.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_LOG = logging.getLogger("fedlora")
_OWN = frozenset({"time", "level", "process"})
"""Keys that each process writes itself."""
_FACTS = "facts"
"""Attribute of a log record that holds what an event is about."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON, whoever made it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": record.getMessage(),
        }
        facts: Mapping[str, Any] = getattr(record, _FACTS, {})
        line |= {key: value for key, value in facts.items() if key not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start(process: str) -> None:
    """Let all that this process logs go to standard error as JSON.

    Args:
        process: What the lines call it, such as ``front``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for chatty in ("httpx", "httpcore", "uvicorn"):  # each request, each start and stop
        logging.getLogger(chatty).setLevel(logging.WARNING)


def say(event: str, /, **facts: object) -> None:
    """Log an event and what it is about. Never a key, a token, or data."""
    _LOG.info("%s", event, extra={_FACTS: facts})


def warn(event: str, /, **facts: object) -> None:
    """Log an event that an operator should look at."""
    _LOG.warning("%s", event, extra={_FACTS: facts})


def pass_on(text: str, /, **facts: object) -> None:
    """Log as a warning what another process said: if that is a line of JSON of ours, its event."""
    event, said = text, dict[str, object]()
    with suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict) and "event" in line:
            event = str(line.pop("event"))
            said = {key: value for key, value in line.items() if key not in _OWN}
    warn(event, **{**said, **facts})
