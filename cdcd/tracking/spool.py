"""What a run recorded while MLflow could not take it: files under data/spool, sent by `cdcd sync`.

A spooled run is a folder: `run.json` (stage, dataset, tags, the id of the MLflow run if there is
one), `records.jsonl` (parameters, metrics, tags, inputs, children and artifacts in the order they
came) and `artifacts/`. Nothing here imports MLflow.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcd.data.files import write_json

_NOTED = {"stage", "dataset", "tags", "run_id"}
ENDED = "end"
"""Kind of the record that says how a run ended; without it the run is still at work, or died."""


@dataclass(frozen=True)
class Record:
    """One thing that was recorded.

    Attributes:
        kind: params, metrics, tags, inputs, child, artifact or end.
        content: of an artifact [path below `artifacts/`, folder in the run]; of the others what
            `cdcd.tracking.records` sends.
    """

    kind: str
    content: Any


class Spool:
    """One run's folder, written as it goes; every record is on disk before the call returns.

    Args:
        folder: of the run; `Spool.new` makes one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(
        cls,
        root: Path,
        stage: str,
        dataset: str,
        tags: Mapping[str, str],
        run_id: str | None,
        started: int | None = None,
    ) -> Spool:
        """Make the folder of a run.

        Args:
            root: of all spooled runs.
            stage: the stage's name.
            dataset: the experiment.
            tags: of the run.
            run_id: of the MLflow run that this belongs to, None where none could be made.
            started: when the run began, in milliseconds since the epoch; None: now.

        Raises:
            OSError: the folder cannot be made.
            StorageError: its disk is full.
        """
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        folder = root / f"{stamp}-{stage}-{dataset}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        about = {
            "stage": stage,
            "dataset": dataset,
            "tags": dict(tags),
            "run_id": run_id,
            "started": int(time.time() * 1000) if started is None else started,
            "pid": os.getpid(),
        }
        try:
            write_json(folder / "run.json", about)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder)

    def add(self, kind: str, content: Any) -> None:
        """Append a record.

        Raises:
            OSError: it could not be written; no part of it stays.
        """
        line = (json.dumps([kind, content]) + "\n").encode()
        with (self.folder / "records.jsonl").open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                # A full disk may have taken a part, and the next record would continue its line.
                file.truncate(before)
                raise

    def add_artifact(self, path: Path, folder: str | None) -> None:
        """Keep a copy of a file or of a folder's content.

        Args:
            path: what to copy.
            folder: where in the run's artifacts it belongs; None for their top.
        """
        name = uuid.uuid4().hex
        kept = self.folder / "artifacts" / name
        kept.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept, dirs_exist_ok=True)
        else:
            shutil.copy2(path, kept / path.name)
        self.add("artifact", [name, folder])

    def about(self) -> dict[str, Any]:
        """What `new` noted.

        Raises:
            ValueError: the note is missing or damaged.
        """
        try:
            found = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not set(found) >= _NOTED:
            raise ValueError(
                f"{self.folder} must hold a run.json of a spooled run: got none that can be read; "
                "remove the folder, or bring the file back"
            )
        return found

    def belongs_to(self, run_id: str) -> None:
        """Note the MLflow run that was made for this, so that no second one is."""
        write_json(self.folder / "run.json", self.about() | {"run_id": run_id})

    def records(self) -> Iterator[Record]:
        """All records in order; a last line that was cut short by a kill is left out."""
        path = self.folder / "records.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    kind, content = json.loads(line)
                except ValueError:
                    continue
                yield Record(kind, content)

    def is_at_work(self) -> bool:
        """Whether its process still runs and has not ended the run."""
        if any(record.kind == ENDED for record in self.records()):
            return False
        pid = self.about().get("pid")
        return isinstance(pid, int) and Path(f"/proc/{pid}").is_dir()

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.folder)


def spools(root: Path) -> list[Spool]:
    """All spooled runs below a folder, oldest first."""
    if not root.is_dir():
        return []
    return [Spool(path) for path in sorted(root.iterdir()) if (path / "run.json").is_file()]
