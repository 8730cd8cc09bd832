"""Logging of a server process: one line an event, on standard error."""

from __future__ import annotations

import logging
import os
import sys
import time

__all__ = ["set_up_logging"]


def set_up_logging(name: str) -> None:
    """Log as `name` from the level that STEPD_LOG gives (debug, info, warning, error; default info)."""
    level = logging.getLevelNamesMapping().get(os.environ.get("STEPD_LOG", "").upper(), logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(name))
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    for package in ("stepd", "stepd_server"):
        logging.getLogger(package).setLevel(level)


class OneLine(logging.Formatter):
    """Time, level, who and what in one line; whatever a name or a traceback holds cannot begin another."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def __init__(self, name: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {name}: %(message)s", datefmt=None)
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() else {"\n": " | ", "\t": " "}.get(c, repr(c)[1:-1]) for c in text)
