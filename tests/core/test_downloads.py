"""Published models: licence, download from a server that misbehaves, hashes, and what is said offline."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from foreign_files import pytorch_state, random_weights, write_pytorch
from typer.testing import CliRunner

from napari_crfasrnn.cli import app
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.zoo import (
    MODELS_VARIABLE,
    PUBLISHED,
    DownloadError,
    Licence,
    LicenceNotAcceptedError,
    download_model,
    list_models,
    load_model,
    published_dir,
    verify_download,
)
from napari_crfasrnn.zoo.downloads import MIRROR_VARIABLE

NAME, FILE = "crfrnn-pytorch", "crfasrnn_weights.pth"


def at_once(_failures: int) -> float:
    return 0.0


@dataclass
class Server:
    """What a server does, and what it was asked."""

    content: bytes
    url: str = ""
    version: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    """After how many bytes of each of the next answers the connection breaks off."""
    statuses: list[int] = field(default_factory=list)
    """With what the next requests are refused."""
    knows_ranges: bool = True
    says_length: bool = True
    content_type: str = "application/octet-stream"
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_pytorch(tmp_path / "weights.pth", random_weights(n_labels=3, width=1 / 64))
    state = Server((tmp_path / "weights.pth").read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            first = 0
            if wanted and state.knows_ranges and self.headers.get("If-Range") == state.version:
                first = int(wanted.removeprefix("bytes=").rstrip("-"))
                if first >= len(state.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(state.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                last = len(state.content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(state.content)}")
            else:
                self.send_response(200)
            body = state.content[first:]
            self.send_header("Content-Type", state.content_type)
            if state.version:
                self.send_header("ETag", state.version)
            if state.says_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr("napari_crfasrnn.zoo.fetching.CHUNK", 100)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "models" / "published"


def publish(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let a published model be another."""
    others = tuple(replace(m, **changes) if m.name == NAME else m for m in PUBLISHED)  # type: ignore[arg-type]
    monkeypatch.setattr("napari_crfasrnn.zoo.published.PUBLISHED", others)
    monkeypatch.setattr("napari_crfasrnn.zoo.catalogue.PUBLISHED", others)


def get(server: Server, **arguments: object) -> Path:
    options = {"accept_licence": True, "source": server.url, "wait": at_once} | arguments
    return download_model(NAME, **options).path  # type: ignore[arg-type]


class TestFacts:
    def test_hashes_and_sizes_are_those_of_the_facts(self) -> None:
        """CRFRNN.md section 2; nothing is there that is not known."""
        by_name = {m.name: m for m in PUBLISHED}
        assert by_name["crfrnn-caffe"].known_hash == "sha1:bfda5c5149d566aa56695789fa9a08e7a7f3070a"
        assert by_name["crfrnn-caffe"].size == 537_968_303
        assert by_name["fcn8s-matconvnet"].known_hash == "md5:b0f7bd5833b555c6241dd0c05897ca41"
        assert by_name["crfrnn-pytorch"].known_hash is by_name["crfrnn-keras"].known_hash is None
        assert all("non-commercial" in m.licence.text for m in PUBLISHED)

    def test_they_are_listed_on_request_and_not_loaded_before_they_are_here(self, folder: Path) -> None:
        assert all(e.shipped for e in list_models())
        entries = {e.name: e for e in list_models(downloadable=True)}
        assert set(entries) == {*(e.name for e in list_models()), *(m.name for m in PUBLISHED)}
        assert not entries[NAME].is_here
        assert entries[NAME].licence == "Non-commercial use only"
        message = f"'{NAME}' is not on this computer yet: run napari-crfasrnn models download {NAME}; without"
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load_model(NAME)
        assert str(folder) in str(caught.value)


class TestLicence:
    def test_it_has_to_be_accepted(self, server: Server) -> None:
        with pytest.raises(LicenceNotAcceptedError, match="non-commercial purposes only"):
            get(server, accept_licence=False)
        with pytest.raises(LicenceNotAcceptedError):
            get(server, accept_licence=lambda licence: False)
        assert server.requests == []

    def test_it_is_asked_once(self, server: Server) -> None:
        asked: list[Licence] = []

        def accept(licence: Licence) -> bool:
            asked.append(licence)
            return True

        get(server, accept_licence=accept).unlink()
        get(server, accept_licence=accept).unlink()
        get(server, accept_licence=False)
        assert [licence.title for licence in asked] == ["Non-commercial use only"]


class TestDownload:
    def test_the_model_comes_and_is_loaded_by_name(self, server: Server, folder: Path) -> None:
        seen: list[tuple[int, int]] = []
        path = get(server, progress=lambda done, total: seen.append((done, total)))
        assert path == folder / FILE
        assert path.read_bytes() == server.content
        assert server.requests == [(f"/{FILE}", None)]
        assert seen[-1] == (len(server.content), len(server.content))
        model = load_model(NAME)
        assert model.n_labels == 3
        assert model.provenance["title"].startswith("CRF-RNN, PASCAL VOC")
        assert model.provenance["licence"] == "Non-commercial use only"
        assert NAME in [e.name for e in list_models()]
        assert sorted(p.name for p in folder.iterdir()) == [FILE, "records.json"]

    def test_what_is_here_is_not_fetched_again(self, server: Server) -> None:
        get(server)
        get(server)
        assert len(server.requests) == 1

    def test_a_cut_connection_goes_on_where_it_stopped(self, server: Server) -> None:
        server.cuts = [1000, 500, 100]
        assert get(server).read_bytes() == server.content
        assert [r for _, r in server.requests] == [None, "bytes=1000-", "bytes=1500-", "bytes=1600-"]

    def test_so_does_the_next_call(self, server: Server, folder: Path) -> None:
        server.cuts = [1000] + [0] * 10
        with pytest.raises(DownloadError, match=r"breaks off .*; try again later, it goes on where"):
            get(server)
        assert (folder / f"{FILE}.part").stat().st_size == 1000
        server.cuts, server.requests = [], []
        assert get(server).read_bytes() == server.content
        assert server.requests == [(f"/{FILE}", "bytes=1000-")]
        assert not (folder / f"{FILE}.part").exists()

    def test_attempts_count_only_if_they_bring_nothing(self, server: Server) -> None:
        server.cuts = [100] * 12
        assert get(server).read_bytes() == server.content

    def test_two_versions_are_never_joined(self, server: Server, folder: Path) -> None:
        server.cuts = [1000] + [0] * 10
        with pytest.raises(DownloadError):
            get(server)
        server.cuts, server.version = [], '"two"'
        server.content = server.content[:-1] + b"\x01"
        assert get(server).read_bytes() == server.content
        assert server.requests[-1][1] == "bytes=1000-"  # asked for the rest, and given the whole

    @pytest.mark.parametrize("version", [None, 'W/"weak"'])
    def test_without_a_strong_version_it_starts_again(self, server: Server, version: str | None) -> None:
        server.version, server.cuts = version, [1000]
        assert get(server).read_bytes() == server.content
        assert [r for _, r in server.requests] == [None, None]

    def test_a_server_without_ranges(self, server: Server) -> None:
        server.knows_ranges, server.cuts = False, [1000, 700]
        assert get(server).read_bytes() == server.content

    def test_a_part_that_is_already_whole(self, server: Server, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / f"{FILE}.part").write_bytes(server.content)
        (folder / f"{FILE}.part.version").write_text('"one"')
        assert get(server).read_bytes() == server.content
        assert server.requests == [(f"/{FILE}", f"bytes={len(server.content)}-")]

    def test_a_part_that_is_too_long(self, server: Server, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / f"{FILE}.part").write_bytes(server.content + b"more")
        (folder / f"{FILE}.part.version").write_text('"one"')
        assert get(server).read_bytes() == server.content

    def test_a_server_that_does_not_say_how_much(self, server: Server) -> None:
        server.says_length = False
        seen: list[tuple[int, int]] = []
        assert get(server, progress=lambda *step: seen.append(step)).read_bytes() == server.content
        assert seen[-1] == (len(server.content), 0)

    def test_a_busy_server_is_asked_again_a_refusing_one_is_not(self, server: Server) -> None:
        server.statuses = [503, 500]
        assert get(server).read_bytes() == server.content
        get(server).unlink()
        server.statuses, server.requests = [404], []
        with pytest.raises(DownloadError, match="answers with status 404"):
            get(server)
        assert len(server.requests) == 1

    def test_a_page_is_no_model(self, server: Server, folder: Path) -> None:
        server.content_type = "text/html; charset=utf-8"
        with pytest.raises(DownloadError, match="answers with a page instead of a file"):
            get(server)
        server.content_type, server.content = "application/octet-stream", b"<!DOCTYPE html>moved"
        with pytest.raises(DownloadError, match=r"what came for .*\.pth is no model"):
            get(server)
        assert not (folder / FILE).exists()
        assert json.loads((folder / "records.json").read_text())["hashes"] == {}

    def test_cancel_and_go_on(self, server: Server, folder: Path) -> None:
        done: list[int] = []
        with pytest.raises(Cancelled):
            get(server, progress=lambda d, _: done.append(d), cancel=lambda: bool(done) and done[-1] >= 4000)
        assert (folder / f"{FILE}.part").stat().st_size == 4000
        assert not (folder / FILE).exists()
        assert get(server).read_bytes() == server.content
        assert server.requests[-1][1] == "bytes=4000-"

    def test_the_next_address_is_tried(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, urls=(f"{server.url}gone", f"{server.url}there"))
        server.statuses = [404]
        assert get(server, source=None).read_bytes() == server.content
        assert [path for path, _ in server.requests] == ["/gone", "/there"]

    def test_offline_says_what_to_do(self, server: Server) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        with pytest.raises(DownloadError) as caught:
            get(server, source=url)
        said = str(caught.value)
        assert said.startswith(f"{FILE} could not be downloaded: {url}{FILE} cannot be reached")
        assert said.endswith(f"run napari-crfasrnn models download {NAME} --from FILE")
        assert "\n" not in said
        with pytest.raises(DownloadError, match="is no address of a file"):
            get(server, source="nothing://here")


class TestSources:
    def test_a_mirror_of_the_environment(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MIRROR_VARIABLE, f"{server.url}mirror/")
        get(server, source=None)
        assert server.requests == [(f"/mirror/{FILE}", None)]

    def test_the_address_of_the_file(self, server: Server) -> None:
        get(server, source=f"{server.url}some/other.name")
        assert server.requests == [("/some/other.name", None)]

    @pytest.mark.parametrize("as_text", [True, False])
    def test_a_local_file(self, server: Server, tmp_path: Path, as_text: bool) -> None:
        local = tmp_path / "weights.pth"
        assert get(server, source=str(local) if as_text else local).read_bytes() == server.content
        assert server.requests == []
        assert local.exists()

    def test_a_local_file_that_is_another(
        self, server: Server, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(monkeypatch, known_hash="md5:" + "0" * 32)
        with pytest.raises(DownloadError, match=r"weights\.pth is not crfasrnn_weights\.pth: its hash is"):
            get(server, source=tmp_path / "weights.pth")
        with pytest.raises(FileNotFoundError, match="there is no file"):
            get(server, source=tmp_path / "nothing.pth")
        assert [p.name for p in folder.iterdir()] == ["records.json"]


class TestHashes:
    def test_a_published_hash_is_checked(
        self, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(monkeypatch, known_hash="sha1:" + hashlib.sha1(server.content).hexdigest())
        server.content = server.content[:-1] + b"\x01"
        with pytest.raises(DownloadError, match="gives a file with another hash than sha1:"):
            get(server)
        assert not (folder / FILE).exists()

    def test_else_the_first_is_remembered(self, server: Server, folder: Path) -> None:
        first = download_model(NAME, accept_licence=True, source=server.url)
        digest = hashlib.sha256(server.content).hexdigest()
        assert (first.hash, first.is_published_hash) == (f"sha256:{digest}", False)
        first.path.unlink()
        server.content = server.content[:-1] + b"\x01"
        with pytest.raises(DownloadError, match=f"another hash than sha256:{digest}"):
            get(server)

    def test_verify(self, server: Server, folder: Path) -> None:
        with pytest.raises(FileNotFoundError, match="not on this computer yet"):
            verify_download(NAME)
        get(server)
        assert verify_download(NAME).path == folder / FILE
        (folder / FILE).write_bytes(b"something else")
        with pytest.raises(DownloadError, match=r"but that of the first download is .*: delete the file"):
            verify_download(NAME)

    def test_damaged_records_are_begun_again(self, server: Server, folder: Path) -> None:
        get(server)
        (folder / "records.json").write_text("{")
        assert verify_download(NAME).hash.startswith("sha256:")
        assert NAME in [e.name for e in list_models()]


class TestCommand:
    def run(self, *arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["models", *arguments])
        return done.exit_code, done.stdout, done.stderr

    def test_download_list_verify(self, server: Server, folder: Path) -> None:
        code, out, _ = self.run("list")
        assert code == 0
        assert f"  not here yet: napari-crfasrnn models download {NAME}" in out
        code, out, err = self.run("download", NAME, "--from", server.url)
        assert code == 2
        assert err.startswith("Error: the weights of 'crfrnn-pytorch' may be downloaded only if you accept")
        code, out, err = self.run("download", NAME, "--from", server.url, "--accept-licence")
        assert (code, err) == (0, "")
        assert f"{NAME}: {folder / FILE}" in out
        assert f"sha256:{hashlib.sha256(server.content).hexdigest()} (no hash is published; this" in out
        code, out, _ = self.run("list", "--json")
        assert {e["name"]: e["here"] for e in json.loads(out)}[NAME] is True
        code, out, err = self.run("verify", NAME, "starter")
        assert (code, err) == (0, "")
        assert "starter: loads" in out
        (folder / FILE).write_bytes(b"no")
        code, out, err = self.run("verify", "--json")
        assert code == 2
        works = {e["name"]: e["ok"] for e in json.loads(out)}
        assert works == {**{e.name: True for e in list_models() if e.shipped}, NAME: False}

    def test_json_of_a_download(self, server: Server) -> None:
        code, out, _ = self.run("download", NAME, "--from", server.url, "--accept-licence", "--json")
        assert code == 0
        assert json.loads(out)["hash_is_published"] is False

    def test_bad_names_and_servers_are_one_sentence(self, server: Server) -> None:
        code, _, err = self.run("download", "nothing", "--accept-licence")
        assert code == 2
        assert "got 'nothing'; there are: crfrnn-caffe, crfrnn-pytorch" in err
        server.statuses = [404]
        code, _, err = self.run("download", NAME, "--from", server.url, "--accept-licence")
        assert code == 2
        assert err.count("\n") == 1


def test_weights_in_place_by_hand_are_taken(folder: Path) -> None:
    """Without a network: the file under its usual name in the folder that the message names."""
    assert folder == published_dir()
    folder.mkdir(parents=True)
    torch.save(pytorch_state(random_weights(n_labels=3, width=1 / 64)), folder / FILE)
    assert load_model(NAME).n_labels == 3
