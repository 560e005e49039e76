"""All that one server keeps."""

from pathlib import Path

from jserve.api.store.batches import BatchTable
from jserve.api.store.database import Database
from jserve.api.store.files import FileTable
from jserve.api.store.responses import ResponseTable


class Store:
    """Files and batches are kept in a folder only; responses are remembered without one, until the server ends."""

    def __init__(self, folder: Path | None = None, retention_s: float = 30 * 86_400.0) -> None:
        """Raises StartupError where the folder cannot be used."""
        self.database = Database(folder)
        self.files = None if folder is None else FileTable(self.database, folder / "files", retention_s)
        self.batches = BatchTable(self.database)
        self.responses = ResponseTable(self.database)

    def close(self) -> None:
        """Finish what is being written. Blocks meanwhile."""
        self.database.close()
