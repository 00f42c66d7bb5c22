"""What a GPU run has found so far, always on disk, and how much time a part of it has left."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console


class Budget:
    """Seconds from now on."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class Finished:
    """A command that ended, or that was ended."""

    code: int | None  # None: its time was up
    output: str


def run(command: list[str], seconds: float, **environment: str) -> Finished:
    """Runs a command, whose output is kept even if its time is up."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            return Finished(process.returncode, output)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compilers that it has started, too
            output, _ = process.communicate()
            return Finished(None, output)


class Results:
    """A JSON file that is whole at any moment, however the run ends."""

    def __init__(self, path: Path, console: Console, seconds: float):
        self.path, self.console, self.whole = path, console, Budget(seconds)
        self.data: dict = {"finished": False, "parts": {}, "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.data, indent=1))
        os.replace(unfinished, self.path)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def part(self, name: str, seconds: float) -> Iterator[tuple[dict, Budget]]:
        """The part's record, and its share of the time. A failure is recorded, and the run goes on without the part."""
        record = self.data["parts"].setdefault(name, {})
        budget, start = Budget(min(seconds, self.whole.left)), time.monotonic()
        self.say(f"== {name} (at most {budget.left:.0f} s)")
        try:
            yield record, budget
        except Exception as error:
            record["failed"] = f"{type(error).__name__}: {error}"
            self.say(f"   failed: {record['failed']}")
        finally:
            record["seconds"] = time.monotonic() - start
            self.save()

    def skip(self, record: dict, what: str, why: str) -> None:
        record.setdefault("skipped", {})[what] = why
        self.say(f"   skipped {what}: {why}")
