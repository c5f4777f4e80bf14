"""What a deployed process says must be readable by a machine, line by line."""

import json
import logging
import sys

from fedlora.runtime.log import JsonFormatter


def test_an_event_is_one_line_of_json():
    """Newlines stay inside, facts are keys of their own, and none of them can pose as the event."""
    facts = {"facts": {"site": "a\nb", "event": "forged"}}
    record = logging.makeLogRecord({"msg": "site %s", "args": ("x\ny",), "levelname": "INFO"})
    record.__dict__ |= facts
    line = JsonFormatter("front").format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert (said["process"], said["level"], said["event"]) == ("front", "info", "site x\ny")
    assert said["site"] == "a\nb"


def test_an_error_carries_its_traceback():
    """What went wrong is on the same line."""
    record = logging.makeLogRecord({"msg": "failed"})
    try:
        int("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    said = json.loads(JsonFormatter("front").format(record))
    assert "ValueError: invalid literal" in said["traceback"]
