"""Fetching data from servers that break off, lie or dawdle, and from archives that mean harm."""

from __future__ import annotations

import errno
import hashlib
import http.client
import http.server
import io
import random
import stat
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae import fetch as module
from ssae.cli import main
from ssae.fetch import KNOWN, FetchError, Limits, download, fetch, unpack

BYTES = random.Random(0).randbytes
FILES = {
    "set/part/train/good/000.png": BYTES(3000),
    "set/part/train/good/001.png": BYTES(3000),
    "set/part/test/good/000.png": BYTES(3000),
    "set/license.txt": b"read me",
}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tarred(
    files: dict[str, bytes] = FILES,
    mode: str = "w:gz",
    extra: Callable[[tarfile.TarFile], None] = lambda tar: None,
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        extra(tar)
    return buffer.getvalue()


def zipped(
    files: dict[str, bytes] = FILES, extra: Callable[[zipfile.ZipFile], None] = lambda zip: None
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        extra(archive)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


INSTALLED = {name.removeprefix("set/"): content for name, content in FILES.items()}


# A server that can be told to misbehave


@dataclass
class Manners:
    """How the server answers; ``asked`` collects the Range header of each request."""

    content: bytes = b""
    ranges: bool = True
    breaks_after: list[int] = field(default_factory=list)  # bytes sent before each of the next answers ends
    delay: float = 0.0  # seconds before each small piece
    status: int = 200
    redirect: str | None = None
    wrong_range: bool = False
    asked: list[str | None] = field(default_factory=list)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    manners: Manners

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        manners = self.server.manners
        span = self.headers.get("Range")
        manners.asked.append(span)
        if manners.redirect:
            self.send_response(302)
            self.send_header("Location", manners.redirect)
            self.end_headers()
            return
        if manners.status != 200:
            self.send_error(manners.status)
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and manners.ranges else 0
        if start >= len(manners.content) > 0 and span:
            self.send_error(416)
            return
        body = manners.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            said = 0 if manners.wrong_range else start
            last = len(manners.content) - 1
            self.send_header("Content-Range", f"bytes {said}-{last}/{len(manners.content)}")
        self.end_headers()
        if manners.breaks_after:
            body = body[: manners.breaks_after.pop(0)]
        with suppress(OSError):
            if manners.delay:
                for index in range(len(body)):
                    time.sleep(manners.delay)
                    self.wfile.write(body[index : index + 1])
            else:
                self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(content: bytes, **manners: object) -> Server:
        started = Server(("127.0.0.1", 0), Handler)
        started.manners = Manners(content, **manners)
        threading.Thread(target=started.serve_forever, args=(0.05,), daemon=True).start()
        running.append(started)
        return started

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


# What works


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz", "w:bz2", "zip"])
def test_an_archive_is_downloaded_verified_and_installed(
    tmp_path: Path, server: Callable[..., Server], kind: str
) -> None:
    content = zipped() if kind == "zip" else tarred(mode=kind)
    said: list[str] = []
    out = fetch("own", tmp_path / "a/out", [server(content).url], sha256=sha(content), say=said.append)
    assert tree(out) == INSTALLED
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"], "nothing is left beside it"
    assert "licence" in said[0], "before anything else"
    assert "ssae data check" in said[-1]


def test_a_local_archive_is_installed_and_kept(tmp_path: Path) -> None:
    archive = tmp_path / "mvtec.tar.xz"
    archive.write_bytes(tarred(mode="w:xz"))
    said: list[str] = []
    out = fetch("mvtec_ad", tmp_path / "out", archive=archive, say=said.append)
    assert tree(out) == INSTALLED
    assert archive.exists()
    assert "CC BY-NC-SA 4.0" in said[0]
    assert any(sha(archive.read_bytes()) in line and "not verified" in line for line in said)


def test_categories_at_the_top_of_an_archive_are_found_too(tmp_path: Path) -> None:
    archive = tmp_path / "part.zip"
    archive.write_bytes(zipped(INSTALLED))
    assert tree(fetch("own", tmp_path / "out", archive=archive, say=lambda text: None)) == INSTALLED


def test_several_data_sets_in_one_archive_are_not_halved(tmp_path: Path) -> None:
    archive = tmp_path / "two.zip"
    two = {f"{part}/{name}": content for part in ("part1", "part2") for name, content in INSTALLED.items()}
    archive.write_bytes(zipped(two))
    with pytest.raises(FetchError, match=r"several data sets \(part1, part2\)"):
        fetch("own", tmp_path / "out", archive=archive, say=lambda text: None)
    assert not (tmp_path / "out").exists()


def test_the_licence_beside_the_one_folder_comes_along(tmp_path: Path) -> None:
    archive = tmp_path / "one.zip"
    inside = {f"mvtec/{name}": content for name, content in INSTALLED.items()}
    archive.write_bytes(zipped({**inside, "terms.txt": b"of theirs"}))
    out = fetch("own", tmp_path / "out", archive=archive, say=lambda text: None)
    assert tree(out) == {**INSTALLED, "terms.txt": b"of theirs"}


def test_the_folder_one_works_in_may_be_installed_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(zipped())
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    out = fetch("own", ".", archive=tmp_path / "x.zip", say=lambda text: None)
    monkeypatch.chdir(tmp_path)
    assert tree(out) == INSTALLED


@pytest.mark.parametrize(
    "url", ["http://host/Pr\u00fcfteile.zip", "http://[::1/x.zip", "http://" + 80 * "a" + ".de/x"]
)
def test_what_is_no_address_is_said_so(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError, match="is no address"):
        fetch("own", tmp_path / "out", [url], say=lambda text: None)


def test_an_empty_folder_may_be_installed_to(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped())
    (tmp_path / "out").mkdir()
    assert (
        tree(fetch("own", tmp_path / "out", archive=tmp_path / "x.zip", say=lambda text: None)) == INSTALLED
    )


# The network


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    content = tarred()
    flaky = server(content, breaks_after=[1000, 2000, 500])
    fetch("own", tmp_path / "out", [flaky.url], sha256=sha(content), say=lambda text: None)
    assert flaky.manners.asked == [None, "bytes=1000-", "bytes=3000-", "bytes=3500-"]
    assert tree(tmp_path / "out") == INSTALLED


def test_what_has_arrived_is_continued_by_the_next_command(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    content = tarred()
    flaky = server(content, breaks_after=[1000, 0, 0])
    arguments = ("own", tmp_path / "out", [flaky.url])
    with pytest.raises(
        FetchError, match=r"broke off after 1000 of \d+ bytes(.|\n)*goes on with what has arrived"
    ):
        fetch(*arguments, sha256=sha(content), say=lambda text: None)
    assert not (tmp_path / "out").exists()
    flaky.manners.breaks_after.clear()
    flaky.manners.asked.clear()
    fetch(*arguments, sha256=sha(content), say=lambda text: None)
    assert flaky.manners.asked == ["bytes=1000-"]
    assert tree(tmp_path / "out") == INSTALLED
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_server_without_ranges_is_asked_again_for_all(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    content = tarred()
    simple = server(content, ranges=False, breaks_after=[1000])
    download([simple.url], tmp_path / "x", sha(content))
    assert simple.manners.asked == [None, "bytes=1000-"]
    assert (tmp_path / "x").read_bytes() == content


def test_without_a_sum_no_pieces_are_put_together(tmp_path: Path, server: Callable[..., Server]) -> None:
    content = tarred()
    flaky, good = server(content, breaks_after=[1000]), server(content)
    download([flaky.url, good.url], tmp_path / "x")
    assert good.manners.asked == [None]
    assert (tmp_path / "x").read_bytes() == content


def test_mirrors_are_tried_in_order_and_share_what_arrived(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    content = tarred()
    missing = server(content, status=404)
    broken = server(content, breaks_after=[1000, 0])
    good, unused = server(content), server(content)
    download([m.url for m in (missing, broken, good, unused)], tmp_path / "x", sha(content))
    assert good.manners.asked == ["bytes=1000-"]
    assert unused.manners.asked == []
    assert (tmp_path / "x").read_bytes() == content


def test_a_slow_mirror_is_left_for_the_next(tmp_path: Path, server: Callable[..., Server]) -> None:
    content = tarred()
    slow, good = server(content, delay=0.02), server(content)
    limits = Limits(slow_bytes=5000, slow_seconds=0.3)
    download([slow.url, good.url], tmp_path / "x", sha(content), limits)
    assert (tmp_path / "x").read_bytes() == content
    assert good.manners.asked[0] is not None


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, server: Callable[..., Server]) -> None:
    silent = server(tarred(), delay=30)
    with pytest.raises(FetchError, match="timed out"):
        download([silent.url], tmp_path / "x", limits=Limits(timeout=0.2))


@pytest.mark.parametrize("code", [errno.EHOSTUNREACH, errno.ENETUNREACH])
@pytest.mark.parametrize("while_reading", [True, False])
def test_a_route_that_is_lost_is_a_connection_lost(
    tmp_path: Path,
    server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    while_reading: bool,
    code: int,
) -> None:
    """The system has no exception of its own for it: it is a plain OSError."""
    content = tarred()
    first, second = server(content), server(content)
    opens, calls = module._OPENER.open, []

    def gone(size: int) -> bytes:
        raise OSError(code, "no route")

    def opened(request: object, timeout: float) -> http.client.HTTPResponse:
        calls.append(request)
        if len(calls) > (2 if while_reading else 1):
            return opens(request, timeout=timeout)
        if not while_reading:
            gone(0)
        answer = opens(request, timeout=timeout)
        pieces = iter([answer.read(1000)] if len(calls) == 1 else [])
        answer.read1 = lambda size: next(pieces, None) or gone(size)
        return answer

    monkeypatch.setattr(module._OPENER, "open", opened)
    download([first.url, second.url], tmp_path / "x", sha(content))
    assert (tmp_path / "x").read_bytes() == content
    if while_reading:  # what had arrived is worth another try; the second brought nothing
        assert first.manners.asked == [None, "bytes=1000-"]
        assert second.manners.asked == ["bytes=1000-"]
    else:
        assert first.manners.asked == []
    monkeypatch.setattr(module._OPENER, "open", lambda request, timeout: gone(0))
    with pytest.raises(FetchError, match=rf"no mirror delivered:\n  {first.url}: .*no route"):
        download([first.url], tmp_path / "x", sha(content))


def test_a_full_disk_is_no_connection_lost(
    tmp_path: Path, server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, piece: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "open", Full, raising=False)
    first, second = server(tarred()), server(tarred())
    with pytest.raises(OSError, match="No space"):
        download([first.url, second.url], tmp_path / "x")
    assert len(first.manners.asked) == 1
    assert second.manners.asked == []


def test_a_wrong_file_is_refused_and_thrown_away(tmp_path: Path, server: Callable[..., Server]) -> None:
    wrong = server(tarred({"set/part/train/good/000.png": b"other"}))
    with pytest.raises(
        FetchError, match=rf"SHA-256 sum is {sha(wrong.manners.content)}, not {sha(tarred())}"
    ):
        fetch("own", tmp_path / "out", [wrong.url], sha256=sha(tarred()), say=lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_another_file_do_not_spoil_the_download(
    tmp_path: Path, server: Callable[..., Server]
) -> None:
    content = tarred()
    for old in (b"x" * 100, b"x" * len(content), b"x" * (len(content) + 5)):
        (tmp_path / "x").write_bytes(old)
        download([server(content).url], tmp_path / "x", sha(content))
        assert (tmp_path / "x").read_bytes() == content


def test_a_server_that_sends_another_part_is_refused(tmp_path: Path, server: Callable[..., Server]) -> None:
    content = tarred()
    (tmp_path / "x").write_bytes(content[:10])
    with pytest.raises(FetchError, match="another part"):
        download([server(content, wrong_range=True).url], tmp_path / "x", sha(content))


def test_more_than_allowed_is_not_downloaded(tmp_path: Path, server: Callable[..., Server]) -> None:
    with pytest.raises(FetchError, match="larger than 2000 bytes"):
        download([server(tarred()).url], tmp_path / "x", limits=Limits(bytes=2000))
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_no_redirection_leads_away_from_http(
    tmp_path: Path, server: Callable[..., Server], target: str
) -> None:
    with pytest.raises(FetchError):
        download([server(b"", redirect=target).url], tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(FetchError, match="no http"):
        download([target], tmp_path / "x")


def test_every_mirror_that_failed_is_named(tmp_path: Path, server: Callable[..., Server]) -> None:
    one, two = server(b"", status=500), server(b"", status=403)
    with pytest.raises(FetchError, match=rf"{one.url}.*500(.|\n)*{two.url}.*403"):
        download([one.url, two.url], tmp_path / "x")


# Archives that mean harm


def special(name: str, kind: bytes, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)

    return add


def negative(name: str, kind: bytes, layout: int) -> Callable[[tarfile.TarFile], None]:
    """A member of size -1000000: in its header (GNU) or in a record before it (PAX)."""

    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, -1_000_000
        tar.fileobj.write(info.tobuf(layout))
        tar.offset = tar.fileobj.tell()

    return add


def header(kind: bytes, *sizes: int, name: str = "set/last.txt") -> Callable[[tarfile.TarFile], None]:
    """Headers that announce long names for the next member, all of them at once."""

    def add(tar: tarfile.TarFile) -> None:
        for size in sizes:
            info = tarfile.TarInfo("long")
            info.type, info.size = kind, size
            record = b"%d comment=" % size  # one record of PAX; as a name of GNU it is as good as any
            tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
            tar.fileobj.write(
                (record + b"x" * (size - len(record) - 1) + b"\n").ljust(-(-size // 512) * 512, b"\0")
            )
        info = tarfile.TarInfo(name)
        tar.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT))
        tar.offset = tar.fileobj.tell()

    return add


def sparse(minor: str | None) -> Callable[[tarfile.TarFile], None]:
    """A sparse file, by GNU's old header or by records of PAX; its map is never to be read."""

    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("set/sparse")
        if minor is None:
            info.type = tarfile.GNUTYPE_SPARSE
        else:
            info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": minor}
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT if minor is None else tarfile.PAX_FORMAT))
        tar.fileobj.write(b"9" * 512)
        tar.offset = tar.fileobj.tell()

    return add


def unix_mode(name: str, mode: int, content: str = "/etc/passwd") -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, content)

    return add


def encrypted() -> bytes:
    content = bytearray(zipped())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    return bytes(content)


HARM = {
    "absolute path": (tarred(FILES | {"/tmp/escaped": b"x"}), "absolute path"),
    "absolute path in a zip": (zipped(FILES | {"/tmp/escaped": b"x"}), "absolute path"),
    "drive": (zipped(FILES | {"C:/escaped": b"x"}), "absolute path"),
    "backslashes": (tarred(FILES | {"..\\escaped": b"x"}), "another system"),
    "parent": (tarred(FILES | {"../escaped": b"x"}), "leads out"),
    "parent in the middle": (tarred(FILES | {"set/a/../../../escaped": b"x"}), "leads out"),
    "parent in a zip": (zipped(FILES | {"../escaped": b"x"}), "leads out"),
    "symbolic link": (tarred(extra=special("set/link", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
    "link to a folder": (tarred(extra=special("set/part/up", tarfile.SYMTYPE, "..")), "is a link"),
    "hard link": (tarred(extra=special("set/link", tarfile.LNKTYPE, "/etc/passwd")), "is a link"),
    "link in a zip": (zipped(extra=unix_mode("set/link", stat.S_IFLNK | 0o777)), "is a link"),
    "device": (tarred(extra=special("set/null", tarfile.CHRTYPE)), "device"),
    "block device": (tarred(extra=special("set/disk", tarfile.BLKTYPE)), "device"),
    "named pipe": (tarred(extra=special("set/pipe", tarfile.FIFOTYPE)), "device"),
    "device in a zip": (zipped(extra=unix_mode("set/null", stat.S_IFCHR | 0o666)), "device"),
    "encrypted": (encrypted(), "encrypted"),
    "twice": (tarred(extra=lambda tar: tar.addfile(tarfile.TarInfo("set/license.txt"))), "twice"),
    "twice but for case": (tarred(FILES | {"set/LICENSE.txt": b"x"}), "twice"),
    "file where a folder is": (tarred(FILES | {"set/part": b"x"}), "twice"),
    "folder where a file is": (tarred(FILES | {"set/license.txt/x": b"x"}), "lies in a file"),
    "control characters": (tarred(FILES | {"set/\x1b[31m": b"x"}), "control characters"),
    "drive in the middle": (tarred(FILES | {"set/C:/escaped": b"x"}), "absolute path"),
    "drive in the middle of a zip": (zipped(FILES | {"set/C:/escaped": b"x"}), "absolute path"),
    "hidden stream": (tarred(FILES | {"set/license.txt:x": b"x"}), "another system"),
    "folder of negative size": (
        tarred(extra=negative("set/void", tarfile.DIRTYPE, tarfile.GNU_FORMAT)),
        "negative size",
    ),
    "folder of negative size in a record": (
        tarred(extra=negative("set/void", tarfile.DIRTYPE, tarfile.PAX_FORMAT)),
        "negative size",
    ),
    # Newer versions of Python refuse it themselves, and it reads as damaged.
    "file of negative size": (
        tarred(extra=negative("set/void", tarfile.REGTYPE, tarfile.GNU_FORMAT)),
        "negative size|damaged",
    ),
    "name of negative size": (
        tarred(extra=negative("set/void", tarfile.GNUTYPE_LONGNAME, tarfile.GNU_FORMAT)),
        "header of negative size",
    ),
    "record of negative size": (
        tarred(extra=negative("set/void", tarfile.XHDTYPE, tarfile.GNU_FORMAT)),
        "header of negative size",
    ),
    "file that is its folder": (tarred(FILES | {".": b"x"}), "without a name"),
    "file that is its folder in a zip": (zipped(FILES | {"./": b"", ".": b"x"}), "without a name"),
    "file without a name": (
        zipped(FILES | {"NAMELESS": b"x"}).replace(b"NAMELESS", bytes(8)),
        "without a name",
    ),
    "long part of a name": (tarred(FILES | {f"set/{'x' * 256}": b"x"}), "too long"),
    "long part of a name in letters of two bytes": (zipped(FILES | {f"set/{'ö' * 128}": b"x"}), "too long"),
    "long name": (tarred(FILES | {"set/" + "x/" * 1100: b"x"}), "too long"),
    "name of a megabyte": (tarred(FILES | {"set/" + "x" * 1_000_000: b"x"}), "too long"),
    "records too long": (tarred(extra=header(tarfile.XHDTYPE, 2**20 + 1)), "of headers"),
    "records for all too long": (tarred(extra=header(tarfile.XGLTYPE, 2**20 + 1)), "of headers"),
    "records of Solaris too long": (tarred(extra=header(tarfile.SOLARIS_XHDTYPE, 2**20 + 1)), "of headers"),
    "header of a name too long": (tarred(extra=header(tarfile.GNUTYPE_LONGNAME, 2**20 + 1)), "of headers"),
    "header of a link too long": (tarred(extra=header(tarfile.GNUTYPE_LONGLINK, 2**20 + 1)), "of headers"),
    "many records": (tarred(extra=header(tarfile.XHDTYPE, *[300_000] * 4)), "of headers"),
    "sparse": (tarred(extra=sparse(None)), "sparse"),
    "sparse by records": (tarred(extra=sparse("0")), "sparse"),
    "member that begins nowhere": (
        zipped(extra=lambda zip: setattr(zip.infolist()[0], "header_offset", 1 << 63)),
        "damaged",
    ),
    "no category": (tarred({"readme.txt": b"x"}), "no category"),
    "empty": (tarred({}), "no category"),
    "no archive": (b"<html>please log in</html>", "damaged"),
    "nothing": (b"", "damaged"),
    "truncated": (tarred()[:-2000], "damaged"),
    "truncated tar": (tarred(mode="w")[:4000], "damaged"),
    "truncated zip": (zipped()[:-30], "damaged"),
    "bit flipped in a zip": (
        zipped().replace(FILES["set/part/test/good/000.png"][:50], bytes(50)),
        "damaged",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_harmful_archive_is_refused_and_nothing_is_left(tmp_path: Path, harm: str) -> None:
    content, reason = HARM[harm]
    archive = tmp_path / "in" / "archive"
    archive.parent.mkdir()
    archive.write_bytes(content)
    with pytest.raises(FetchError, match=reason) as refusal:
        fetch("own", tmp_path / "here" / "out", archive=archive, say=lambda text: None)
    assert str(archive) in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert list((tmp_path / "here").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"in", "here"}
    assert not Path("/tmp/escaped").exists()


def test_the_tar_of_harm_would_do_harm() -> None:
    """The table means something only if the members it names arrive in the archives as they are written."""
    with tarfile.open(fileobj=io.BytesIO(HARM["parent"][0])) as tar:
        assert "../escaped" in tar.getnames()
    assert HARM["bit flipped in a zip"][0] != zipped()
    for harm in ("folder of negative size", "folder of negative size in a record"):
        with tarfile.open(fileobj=io.BytesIO(HARM[harm][0])) as tar:
            assert tar.getmembers()[-1].size == -1_000_000
    for drive in ("drive", "drive in the middle of a zip"):
        name = zipfile.ZipFile(io.BytesIO(HARM[drive][0])).namelist()[-1]
        assert PureWindowsPath("D:/data").joinpath(*name.split("/")) == PureWindowsPath("C:escaped")
    assert "/tmp/escaped" in zipfile.ZipFile(io.BytesIO(HARM["absolute path in a zip"][0])).namelist()


def test_a_bomb_is_stopped_by_its_size_and_its_count(tmp_path: Path) -> None:
    archive = tmp_path / "bomb"
    limits = Limits(bytes=10**6, files=100)
    for content, reason in (
        (zipped({"set/part/train/good/0.png": bytes(10**7)}), "1000000 bytes"),
        (tarred({f"set/part/train/good/{i}.png": b"x" for i in range(200)}), "100 files"),
        (
            tarred(extra=lambda tar: [special("set/part", tarfile.DIRTYPE)(tar) for _ in range(200)]),
            "100 files",
        ),
        (tarred({f"set/{'x/' * 200}0.png": b"x"}), "100 files"),
    ):
        archive.write_bytes(content)
        assert len(content) < 50_000
        with pytest.raises(FetchError, match=reason):
            fetch("own", tmp_path / "out", archive=archive, limits=limits, say=lambda text: None)
        assert [path.name for path in tmp_path.iterdir()] == ["bomb"]


def test_headers_of_a_tar_do_not_fill_the_memory(tmp_path: Path) -> None:
    """What ``tarfile`` reads before there is a member to judge, and what it keeps of those it has passed."""
    mib = 1 << 20

    def all_apart(tar: tarfile.TarFile) -> None:
        for i in range(64):
            header(tarfile.XHDTYPE, mib // 2, name=f"set/{i}.txt")(tar)

    for number, (add, refused) in enumerate(
        [
            (header(tarfile.XHDTYPE, 32 * mib), True),
            (header(tarfile.GNUTYPE_LONGNAME, *[mib // 2] * 64), True),
            (all_apart, False),
        ]
    ):
        (tmp_path / "x").write_bytes(tarred(extra=add))
        (to := tmp_path / str(number)).mkdir()
        tracemalloc.start()
        try:
            with pytest.raises(FetchError, match="of headers") if refused else nullcontext():
                unpack(tmp_path / "x", to)
            assert tracemalloc.get_traced_memory()[1] < 8 * mib
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_installed(tmp_path: Path, layout: int) -> None:
    files = INSTALLED | {f"{'folder ' * 30}/{'ö' * 125}/{i:0200}.txt": b"x" for i in range(3)}

    def add(tar: tarfile.TarFile) -> None:
        tar.format = layout
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.pax_headers = len(content), {"comment": "x" * 10_000}
            tar.addfile(info, io.BytesIO(content))

    (tmp_path / "x").write_bytes(tarred({}, extra=add))
    assert tree(fetch("own", tmp_path / "out", archive=tmp_path / "x", say=lambda text: None)) == files


def test_a_zip_that_lies_about_sizes_writes_no_more_than_it_says(tmp_path: Path) -> None:
    content = zipped({"set/part/train/good/0.png": bytes(10**6)})
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content = content[:at] + struct.pack("<I", 10) + content[at + 4 :]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FetchError, match="damaged"):
        fetch("own", tmp_path / "out", archive=tmp_path / "x", say=lambda text: None)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_archive_escapes_or_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from([tarred(mode="w"), tarred(), zipped()]))
    start = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=40))
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "archive").write_bytes(whole[:start] + junk + whole[start + len(junk) :])
    (folder / "to").mkdir()
    with suppress(FetchError):
        unpack(folder / "archive", folder / "to")
    assert {path.name for path in folder.iterdir()} == {"archive", "to"}


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_damaged_data_in_a_compressed_archive_is_a_damaged_archive(tmp_path: Path, kind: str) -> None:
    content = bytearray(tarred(mode=f"w:{kind}"))
    refused = 0
    for place in range(20, len(content), 7):
        (tmp_path / "archive").write_bytes(
            content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        )
        (to := tmp_path / str(place)).mkdir()
        with suppress(FetchError):
            unpack(tmp_path / "archive", to)
            continue
        refused += 1
    assert refused > 100  # what comes after the end of the archive is not looked at


# Never half there


def test_a_failure_while_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(zipped())
    written = []

    def full(archive: Path, member: object, target: Path) -> None:
        written.append(target)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(target))
        target.write_bytes(b"x")

    monkeypatch.setattr(module, "_write_member", full)
    with pytest.raises(OSError, match="No space"):
        fetch("own", tmp_path / "out", archive=tmp_path / "x.zip", say=lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_what_a_killed_installation_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped())
    (tmp_path / "out.unpacking" / "half").mkdir(parents=True)
    assert (
        tree(fetch("own", tmp_path / "out", archive=tmp_path / "x.zip", say=lambda text: None)) == INSTALLED
    )
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "out"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FetchError, match="nothing is overwritten"):
        fetch("own", tmp_path / "out", archive=tmp_path / "x.zip", say=lambda text: None)
    assert tree(tmp_path / "out") == {"mine": b"x"}


# The command


def test_the_command_installs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.zip").write_bytes(zipped())
    command = [
        "data",
        "fetch",
        "mvtec_ad",
        "--archive",
        str(tmp_path / "x.zip"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert KNOWN["mvtec_ad"].licence in capsys.readouterr().out
    assert main(command) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mvtec_ad"], KNOWN["mvtec_ad"].page),
        (["own"], "--url ADDRESS"),
        (["own", "--url", "http://127.0.0.1:1/x", "--archive", "x"], "not both"),
        (["own", "--url", "http://127.0.0.1:1/x"], "no mirror delivered"),
        (["own", "--url", "ftp://127.0.0.1/x"], "no http or https"),
        (["own", "--archive", "nowhere.zip"], "nowhere.zip is not a file"),
        (["own", "--archive", "x.zip", "--sha256", "12"], "64 hexadecimal"),
        (["own", "--archive", "x.zip", "--sha256", "0" * 64], "is not the file wanted"),
    ],
)
def test_the_command_explains_what_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.zip").write_bytes(zipped())
    assert main(["data", "fetch", *arguments, "--out", "out"]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
