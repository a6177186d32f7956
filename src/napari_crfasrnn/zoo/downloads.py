"""Published models on this computer: accepted licences, downloads, hashes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from napari_crfasrnn.checkpoint import CheckpointError
from napari_crfasrnn.importing import file_format
from napari_crfasrnn.progress import Cancel, Progress
from napari_crfasrnn.zoo.fetching import DownloadError, ResumingDownloader
from napari_crfasrnn.zoo.places import published_dir
from napari_crfasrnn.zoo.published import Licence, Published, published_model

MIRROR_VARIABLE = "NAPARI_CRFASRNN_MIRROR"
"""Environment variable that names another server: the address of a folder with the published files."""

_RECORDS = "records.json"

AcceptLicence = bool | Callable[[Licence], bool]


class LicenceNotAcceptedError(ValueError):
    """A download that needs a licence accepted first."""


@dataclass(frozen=True)
class Download:
    """A published model that is on this computer."""

    name: str
    path: Path
    hash: str
    """"algorithm:digest" of the file."""
    is_published_hash: bool
    """Whether the authors publish this hash; otherwise it is the one of the first download."""


def download_path(model: Published) -> Path:
    """Return where the file of a published model is, or will be."""
    return published_dir() / model.file_name


def is_accepted(licence: Licence) -> bool:
    """Return whether somebody has accepted the licence on this account."""
    return licence.key in _records()["licences"]


def download_model(
    name: str,
    *,
    accept_licence: AcceptLicence = False,
    source: str | Path | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    wait: Callable[[int], float] = float,
) -> Download:
    """Bring a published model to this computer, or find it there.

    Parameters
    ----------
    name
        Such as "crfrnn-caffe"; see `list_models` with ``downloadable=True``.
    accept_licence
        True says that you accept the licence of the weights; or a function that is shown the `Licence` and
        says whether it is accepted. Asked once for each licence: the answer is remembered.
    source
        Instead of the authors' servers: a file on this computer; the address of the file; or, ending in a
        slash, of a folder that holds it under its usual name. If None, the environment variable
        ``NAPARI_CRFASRNN_MIRROR`` may name such a folder.
    progress
        Called as ``progress(done, total)`` in bytes; the total is 0 where the server does not say.
    cancel
        Asked now and then. A cancelled download goes on where it stopped when it is asked for again.
    wait
        Seconds to wait before the next attempt, by the number of those that failed in a row.

    Raises
    ------
    ValueError
        If there is no such model.
    LicenceNotAcceptedError
        If the licence was not accepted.
    DownloadError
        If no server gives the file, or what came is not the published one.
    Cancelled
        If ``cancel`` said so.
    """
    model = published_model(name)
    _ask(model, accept_licence)
    path = download_path(model)
    if not path.exists():
        source = source or os.environ.get(MIRROR_VARIABLE) or None
        path.parent.mkdir(parents=True, exist_ok=True)
        downloader = ResumingDownloader(path.with_name(path.name + ".part"), progress, cancel, wait)
        if isinstance(source, Path) or (source and "://" not in source):
            _copy(model, Path(source), path)
        else:
            _fetch(model, _addresses(model, source), path, downloader)
        _check_kind(model, path)
    return verify_download(name)


def verify_download(name: str) -> Download:
    """Check the file of a published model against its hash: the authors', or that of the first download.

    Raises
    ------
    ValueError
        If there is no such model.
    FileNotFoundError
        If it is not on this computer.
    DownloadError
        If the hash is another.
    """
    import pooch

    model = published_model(name)
    path = download_path(model)
    if not path.exists():
        raise FileNotFoundError(not_here(model))
    expected = _expected_hash(model)
    algorithm = (expected or "sha256:").partition(":")[0]
    found = f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"
    if expected is not None and found != expected:
        whose = "the published one" if model.known_hash else "that of the first download"
        raise DownloadError(
            f"the hash of {path} is {found}, but {whose} is {expected}: delete the file and get it again"
        )
    if expected is None:
        records = _records()
        records["hashes"][model.file_name] = found
        _write_records(records)
    return Download(name, path, found, model.known_hash is not None)


def not_here(model: Published) -> str:
    """Return a sentence that says how to get a model."""
    return (
        f"the model {model.name!r} is not on this computer yet: run napari-crfasrnn models download "
        f"{model.name}; without a network put {model.file_name} into {published_dir()}"
    )


def _ask(model: Published, accept: AcceptLicence) -> None:
    licence = model.licence
    if is_accepted(licence):
        return
    if not (accept(licence) if callable(accept) else accept):
        raise LicenceNotAcceptedError(
            f"the weights of {model.name!r} may be downloaded only if you accept their licence "
            f"(accept_licence=True, or --accept-licence): {licence.text}"
        )
    records = _records()
    records["licences"][licence.key] = datetime.now(UTC).isoformat(timespec="seconds")
    _write_records(records)


def _addresses(model: Published, source: str | None) -> tuple[str, ...]:
    if source is None:
        return model.urls
    return (source + model.file_name,) if source.endswith("/") else (source,)


def _fetch(model: Published, urls: tuple[str, ...], path: Path, downloader: ResumingDownloader) -> None:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)  # its remarks on hashes and places are ours to make
    problems = []
    for url in urls:
        try:
            pooch.retrieve(
                url,
                known_hash=_expected_hash(model),
                fname=path.name,
                path=path.parent,
                downloader=downloader,
            )
            return
        except DownloadError as error:
            problems.append(str(error))
        except ValueError:  # how pooch says that the hash is another
            problems.append(f"{url} gives a file with another hash than {_expected_hash(model)}")
    raise DownloadError(
        f"{model.file_name} could not be downloaded: {'; '.join(problems)}; try again later, it goes on "
        "where it stopped, or get the file in another way and run "
        f"napari-crfasrnn models download {model.name} --from FILE"
    )


def _copy(model: Published, source: Path, path: Path) -> None:
    import pooch

    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    expected = _expected_hash(model)
    if expected is not None:
        algorithm, _, digest = expected.partition(":")
        found = pooch.file_hash(str(source), alg=algorithm)
        if found != digest:
            raise DownloadError(
                f"{source} is not {model.file_name}: its hash is {algorithm}:{found}, not {expected}"
            )
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        pass
    try:
        shutil.copyfile(source, temporary.name)
        os.replace(temporary.name, path)
    finally:
        Path(temporary.name).unlink(missing_ok=True)


def _check_kind(model: Published, path: Path) -> None:
    """Refuse what is no model at all, before its hash is remembered as the right one."""
    try:
        file_format(path)
    except CheckpointError as error:
        path.unlink()
        raise DownloadError(f"what came for {model.file_name} is no model: {error}") from None


def _expected_hash(model: Published) -> str | None:
    return model.known_hash or _records()["hashes"].get(model.file_name)


def _records() -> dict[str, dict[str, Any]]:
    """Return what is remembered: licences accepted, hashes of first downloads."""
    records: dict[str, dict[str, Any]] = {"licences": {}, "hashes": {}}
    try:
        stored = json.loads((published_dir() / _RECORDS).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return records
    for kind, entries in records.items():
        if isinstance(stored, dict) and isinstance(stored.get(kind), dict):
            entries.update(stored[kind])
    return records


def _write_records(records: dict[str, dict[str, Any]]) -> None:
    folder = published_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        json.dump(records, file, indent=2)
    os.replace(file.name, folder / _RECORDS)
