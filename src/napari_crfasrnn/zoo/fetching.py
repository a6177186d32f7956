"""A downloader for pooch that goes on where it stopped, tells how far it is, and can be cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_crfasrnn.progress import Cancel, Progress, raise_if_cancelled

CHUNK = 1 << 16  # bytes between two looks at the cancel button; also what a cut connection may lose
TIMEOUT = 30.0  # seconds without an answer, or without a byte
ATTEMPTS = 4  # in a row that bring nothing


class DownloadError(OSError):
    """A download that did not succeed; the message says why and what to do."""


class ResumingDownloader:
    """Fetch a file over HTTP into ``part``, from where an earlier attempt stopped.

    What was fetched stays in ``part`` when the connection is cut, the program killed or the work cancelled.
    The server's mark of the file's version is kept beside it and sent with the request for the rest, so that
    two versions are never joined; without such a mark the file is fetched from its start.

    Parameters
    ----------
    part
        The file for what is there so far.
    progress
        Called as ``progress(done, total)`` in bytes; the total is 0 where the server does not say.
    cancel
        Asked after every piece.
    wait
        How long to wait before the next attempt, in seconds, by the number of those that failed in a row.
    """

    def __init__(
        self,
        part: Path,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        wait: Callable[[int], float] = float,
    ) -> None:
        self._part = part
        self._mark = part.with_name(part.name + ".version")
        self._progress = progress
        self._cancel = cancel
        self._wait = wait

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Fetch ``url`` to ``output_file``, as pooch wants it.

        Raises
        ------
        DownloadError
            If the server refuses, sends a page instead of a file, or sends nothing in several attempts.
        Cancelled
            If the work was cancelled.
        """
        import requests

        failures = 0
        while True:
            raise_if_cancelled(self._cancel)
            before = self._done()
            try:
                self._fetch(url)
                break
            except requests.HTTPError as error:
                status = error.response.status_code
                if status < 500:
                    raise DownloadError(f"{url} answers with status {status}") from None
                problem = f"status {status}"
            except requests.RequestException as error:
                if isinstance(error, ValueError):
                    raise DownloadError(f"{url} is no address of a file") from None
                problem = type(error).__name__
            failures = 1 if self._done() > before else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(f"{url} cannot be reached or breaks off ({problem})") from None
            time.sleep(self._wait(failures))
        self._mark.unlink(missing_ok=True)
        self._part.replace(output_file)

    def _done(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _fetch(self, url: str) -> None:
        import requests

        # bytes as they are: of compressed ones no part could be asked for
        headers = {"Accept-Encoding": "identity"}
        done = self._done()
        if done and self._mark.exists():
            headers |= {"Range": f"bytes={done}-", "If-Range": self._mark.read_text(encoding="ascii")}
        else:
            done = 0
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{done}":
                    return  # all of it was there already
                self._part.unlink()
                raise requests.ConnectionError("the part that is here does not fit the file that is there")
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise DownloadError(f"{url} answers with a page instead of a file")
            if response.status_code != requests.codes.partial_content:
                done = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise DownloadError(f"{url} answers with another part than was asked for")
            version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            if version and not version.startswith("W/"):  # a weak one does not promise the same bytes
                self._mark.write_text(version, encoding="ascii", errors="ignore")
            else:
                self._mark.unlink(missing_ok=True)
            length = int(response.headers.get("Content-Length", 0))
            self._receive(response, done, done + length if length else 0)

    def _receive(self, response: Any, done: int, total: int) -> None:
        import requests

        with self._part.open("r+b" if done else "wb") as file:
            file.truncate(done)
            file.seek(done)
            for piece in response.iter_content(CHUNK):
                file.write(piece)
                done += len(piece)
                if self._progress is not None:
                    self._progress(done, total)
                raise_if_cancelled(self._cancel)
        if total and done < total:
            raise requests.ConnectionError(f"{done} of {total} bytes came")
