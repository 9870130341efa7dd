"""Logging to stderr: lines to read on a terminal, one JSON object per line elsewhere.

Messages are "text key=value"; the JSON form carries the pairs as fields of their own too.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time

PAIR = re.compile(r"(?:^|\s)([a-z_]+)=(\"[^\"]*\"|'[^']*'|\S+)")
OWN = frozenset({"time", "level", "logger", "message", "exception"})


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        entry: dict[str, str] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        for key, value in PAIR.findall(message):
            if key not in OWN:
                entry[key] = value.strip("\"'")
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TerminalFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace(" protego_cli.", " ", 1)


def configure_logging(level: str) -> None:
    """Send the log to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TerminalFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
