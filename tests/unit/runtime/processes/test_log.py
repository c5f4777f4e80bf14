"""What a deployed process says must be readable by a machine, line by line."""

import json
import logging
import sys

from fedlora.runtime.processes.log import JsonFormatter, pass_on


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


def test_what_another_process_said_is_not_wrapped_twice(caplog):
    """Its own event and facts are told, with whose they are; other text is told as it is."""
    pass_on('{"time": "t", "level": "warning", "event": "no room", "disk": "/a"}', service="gate")
    pass_on("Traceback: x", service="gate")
    pass_on('{"a": 1', service="gate")
    first, second, third = caplog.records
    assert (first.getMessage(), first.facts) == ("no room", {"disk": "/a", "service": "gate"})
    assert (second.getMessage(), second.facts) == ("Traceback: x", {"service": "gate"})
    assert third.getMessage() == '{"a": 1'
