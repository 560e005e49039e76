"""Keeps what a run has measured so far in one archive of a few files, so that a run that is killed loses one case.

All logs become one file, and all JSON files another. The archive is written again whenever a file of the folder has
changed, beside the old one, and takes its place whole.
"""

import io
import json
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["MAX_FILES", "Archive"]

MAX_FILES = 8
INTERVAL_S = 2.0
LOGS, RESULTS = "logs.txt", "results.json"


class Archive:
    """A context: while it is open a thread keeps `path` like `folder`, and leaving it does so a last time."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self._path = folder, path
        self._state: list[tuple[str, int, int]] = []
        self._is_over = threading.Event()
        self._saving = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="archive", daemon=True)

    def __enter__(self) -> "Archive":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.save()

    def save(self) -> None:
        """Write the archive where something has changed."""
        with self._saving:
            state = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in self._files()]
            if state == self._state:
                return
            self._write()
            self._state = state

    def _keep(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            self.save()

    def _files(self) -> list[Path]:
        """The folder's own; what lies deeper is for the run alone."""
        return [path for path in sorted(self._folder.iterdir()) if path.is_file()]

    def _write(self) -> None:
        files = self._files()
        logs = "".join(f"===== {p.name}\n{p.read_text(errors='replace')}\n" for p in files if p.suffix == ".log")
        results = {path.stem: _parsed(path.read_text()) for path in files if path.suffix == ".json"}
        others = [path for path in files if path.suffix not in (".log", ".json")]
        part = self._path.with_name(f"{self._path.name}.part")
        with tarfile.open(part, "w:gz") as archive:
            for name, text in ((RESULTS, json.dumps(results, indent=1)), (LOGS, logs)):
                body = text.encode()
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(body), int(time.time())
                archive.addfile(info, io.BytesIO(body))
            for path in others[: MAX_FILES - 2]:
                archive.add(path, path.name)
        os.replace(part, self._path)


def _parsed(text: str) -> Any:
    """None where a file is just being written."""
    try:
        return json.loads(text)
    except ValueError:
        return None
