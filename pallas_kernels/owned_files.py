"""Files that hold code are read only where no other user could have written them."""

import os
import stat
from pathlib import Path

__all__ = ["check_folder", "read_owned"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_folder(folder: Path) -> None:
    """Raise PermissionError, with the remedy, where others than this user and root can change what a folder holds.
    One that is not there is nobody's.
    """
    try:
        _check(folder, folder.stat())
    except (FileNotFoundError, NotADirectoryError):
        return


def read_owned(path: Path) -> bytes:
    """A file's bytes. Raises PermissionError where others than this user and root can change it, and OSError where it
    cannot be read, or is a link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _check(path, os.fstat(descriptor))
        return file.read()


def _check(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(
            f"{path} belongs to user {status.st_uid}, who could change the code in it; "
            f"make it this user's ({os.geteuid()}) or root's, or name another folder"
        )
    if status.st_mode & _OTHERS_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"{path} can be written by other users (mode {mode:o}); run chmod go-w {path}")
