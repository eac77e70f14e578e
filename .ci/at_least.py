"""Fails when fewer tests ran than should exist: `at_least.py report.xml=120 …`; skipped ones do not count."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def ran(report: Path) -> int:
    """Counts the test cases of a JUnit file that ran and were not skipped."""
    cases = ET.parse(report).getroot().iter("testcase")
    return sum(case.find("skipped") is None for case in cases)


def main(arguments: list[str]) -> int:
    """Prints one line a report and returns how many reports fall short."""
    short = 0
    for argument in arguments:
        path, _, least = argument.rpartition("=")
        count = ran(Path(path)) if Path(path).exists() else 0
        verdict = "ok" if count >= int(least) else "TOO FEW: did tests vanish or get skipped?"
        print(f"{path}: {count} tests ran, at least {least} expected: {verdict}")
        short += count < int(least)
    return short


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
