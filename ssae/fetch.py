"""Get a data set: download it, check that it is the right file, unpack it safely, install it whole or not at
all.

Neither the network nor the archive is trusted. A download that breaks off goes on where it stopped, mirrors
are tried in order, and the SHA-256 sum decides what is accepted. Of an archive only plain files and folders
inside its own folder are taken: absolute paths, ``..``, links and devices are refused, as are too many files
or bytes.

While it works, everything lies in ``DIR.download`` and ``DIR.unpacking`` beside the folder ``DIR`` asked for;
``DIR`` itself appears in one step at the end. Explained in the back matter of the book.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

__all__ = ["KNOWN", "DataSet", "FetchError", "Limits", "download", "fetch", "unpack"]

CHUNK = 1 << 18


class FetchError(ValueError):
    """A data set cannot be fetched; the message names the address or the file, the reason and the mend."""


@dataclass(frozen=True)
class DataSet:
    """What there is to say about a data set before it is fetched.

    Attributes
    ----------
    title
        Its name in prose.
    licence
        What one may do with it.
    page
        Page of its authors, where it is offered.
    """

    title: str
    licence: str
    page: str


#: Data sets that the package knows. Their authors want their terms to be read first, so no address is built
#: in: give the file you downloaded, or the address that you were given.
KNOWN = {
    "mvtec_ad": DataSet(
        "MVTec AD",
        "CC BY-NC-SA 4.0: attribution, no commercial use, share alike",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
    ),
}


@dataclass(frozen=True)
class Limits:
    """What a download or an archive may cost.

    Parameters
    ----------
    bytes
        Size of the archive, and of everything in it, each.
    files
        Number of files and folders in the archive.
    timeout
        Seconds to wait for a server that says nothing.
    slow_bytes, slow_seconds
        A mirror that sends less than ``slow_bytes`` a second for ``slow_seconds`` is left for the next one.
    tries
        Attempts on each mirror, as long as each brings the download forward.
    """

    bytes: int = 20 * 10**9
    files: int = 200_000
    timeout: float = 30.0
    slow_bytes: int = 10_000
    slow_seconds: float = 30.0
    tries: int = 5


def fetch(
    name: str,
    out: str | os.PathLike[str],
    urls: Sequence[str] = (),
    archive: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Install a data set in the MVTec AD layout from addresses or from an archive on this machine.

    Parameters
    ----------
    name
        A key of ``KNOWN``, or any name for a data set of your own.
    out
        Folder to install to; must not hold anything yet.
    urls
        Addresses of one and the same archive, tried in order.
    archive
        A ``.zip`` or ``.tar`` (also ``.gz``, ``.bz2``, ``.xz``) that is already here, instead of ``urls``.
    sha256
        SHA-256 sum that the archive must have, 64 hex digits. Without it a download that broke off starts
        anew, since nothing else tells whether the pieces belong together.
    limits
        See :class:`Limits`.
    say
        Where the licence and the outcome are told.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    FetchError
        If there is nothing to fetch from, no mirror delivers, the sum differs, or the archive is refused.
    OSError
        If ``out`` cannot be written.
    """
    limits = limits or Limits()
    out = Path(os.path.abspath(out))
    known = KNOWN.get(name)
    say(f"{known.title}, licence {known.licence}; see {known.page}" if known else f"{name}: {_NO_LICENCE}")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise FetchError(f"{out} is there already, and nothing is overwritten; choose another folder")
    if bool(urls) == (archive is not None):
        raise FetchError(_how_to_get(name, known) if not urls else "give either --url or --archive, not both")
    sha256 = _checked_sum(sha256)
    out.parent.mkdir(parents=True, exist_ok=True)
    here = _beside(out, "download")
    if archive is not None:
        here = Path(archive)
        if not here.is_file():
            raise FetchError(f"{here} is not a file; give the archive that you downloaded")
        _check_sum(here, sha256)
    else:
        download(urls, here, sha256, limits)
    if sha256 is None:
        say(f"not verified, since no --sha256 was given; the archive has {_sum_of(here)}")
    _install(here, out, limits)
    if archive is None:
        here.unlink()
    say(f"wrote {out} ({', '.join(_categories(out))}); now: ssae data check {out}")
    return out


_NO_LICENCE = "licence unknown to this program; see where it comes from"


def _how_to_get(name: str, known: DataSet | None) -> str:
    give = f"ssae data fetch {name} --archive FILE --out DIR"
    if known is None:
        return f"where is {name} to come from? Give --url ADDRESS --sha256 SUM, or --archive FILE"
    return (
        f"{known.title} is not downloaded without you: its authors want you to read its terms. "
        f"Get the archive from {known.page}, then run: {give}"
    )


# Downloads


def download(
    urls: Sequence[str], path: Path, sha256: str | None = None, limits: Limits | None = None
) -> None:
    """Download one file from the first of several mirrors that delivers it whole.

    Parameters
    ----------
    urls
        Mirrors of the same file, ``http`` or ``https``.
    path
        Where to write. What an earlier attempt has left there is continued, if ``sha256`` is given.
    sha256
        Sum that the file must have.
    limits
        See :class:`Limits`.

    Raises
    ------
    FetchError
        If no mirror delivers; the message says of each why. What has arrived stays for the next attempt.
    """
    limits = limits or Limits()
    for url in urls:
        try:
            parts = urlsplit(url)
            url.encode("ascii")
            (parts.hostname or "").encode("idna")
        except UnicodeEncodeError as error:
            raise FetchError(
                f"{url} is no address: write what is not ASCII in its path as %XX, and in its host as xn--"
            ) from error
        except ValueError as error:
            raise FetchError(f"{url} is no address ({error})") from error
        if parts.scheme not in ("http", "https"):
            raise FetchError(f"{url} is no http or https address")
    reasons = []
    for url in urls:
        if sha256 is None:
            path.unlink(missing_ok=True)
        try:
            return _from_mirror(url, path, sha256, limits)
        except FetchError as error:
            reasons.append(str(error))
    advice = "the same command goes on with what has arrived" if _size(path) else "try again later"
    raise FetchError("\n  ".join(["no mirror delivered:", *reasons, advice]))


def _from_mirror(url: str, path: Path, sha256: str | None, limits: Limits) -> None:
    for attempt in range(limits.tries):
        before = _size(path)
        try:
            _transfer(url, path, limits)
            _check_sum(path, sha256, url)
            return
        except _WrongSum as error:
            # Nothing of a wrong file may stay. Pieces of two versions are tried once more from the start.
            path.unlink()
            if before == 0 or attempt + 1 == limits.tries:
                raise FetchError(str(error)) from error
        except _BrokeOff as error:
            if sha256 is None:
                path.unlink(missing_ok=True)
            if _size(path) <= before or attempt + 1 == limits.tries:
                raise FetchError(str(error)) from error


class _BrokeOff(FetchError):
    """The connection ended too early; the rest may still come."""


class _WrongSum(FetchError):
    """The file is whole, and another one."""


def _transfer(url: str, path: Path, limits: Limits) -> None:
    """Append to ``path`` what it lacks of the file at ``url``."""
    have = _size(path)
    request = urllib.request.Request(url, headers={"User-Agent": "ssae", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with _network(url):
            answer = _OPENER.open(request, timeout=limits.timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # nothing beyond what is here; the sum will tell whether it is the file
        raise FetchError(f"{url}: the server answered {error.code} {error.reason}") from error
    with answer:
        start, total = _extent(answer, have, url)
        if max(total or 0, start) > limits.bytes:
            raise FetchError(f"{url} is larger than {limits.bytes} bytes")
        with open(path, "r+b" if start else "wb") as file:
            file.seek(start)
            _copy_answer(answer, file, start, total, url, limits)


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Around what is done with the network, and nothing else: every error in it is a connection lost.

    A route that is gone (``EHOSTUNREACH``) has no exception of its own that would tell it from a full disk.
    """
    try:
        yield
    except urllib.error.HTTPError:
        raise  # an answer
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise _BrokeOff(f"{url}: {reason}") from error


def _extent(answer: http.client.HTTPResponse, have: int, url: str) -> tuple[int, int | None]:
    """Where the answer starts in the file, and the size of the whole file if the server says it."""
    if answer.status == 206:
        unit, _, span = answer.headers.get("Content-Range", "").partition(" ")
        first, _, rest = span.partition("-")
        _, _, whole = rest.partition("/")
        if unit != "bytes" or first != str(have):
            raise FetchError(f"{url}: the server sent another part than was asked for")
        return have, int(whole) if whole.isdecimal() else None
    # A server without ranges sends the file from its beginning.
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _copy_answer(
    answer: IO[bytes], file: IO[bytes], start: int, total: int | None, url: str, limits: Limits
) -> None:
    file.truncate()
    done, mark, since = start, start, time.monotonic()
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=urlsplit(url).netloc, disable=None)
    with bar:
        while True:
            # read1 gives what is there, so that a slow server is noticed between two pieces.
            with _network(url):
                piece = answer.read1(CHUNK)  # type: ignore[attr-defined]
            if not piece:
                break
            file.write(piece)
            done += len(piece)
            bar.update(len(piece))
            if done > limits.bytes:
                raise FetchError(f"{url} is larger than {limits.bytes} bytes")
            now = time.monotonic()
            if now - since > limits.slow_seconds:
                if done - mark < limits.slow_bytes * (now - since):
                    raise FetchError(
                        f"{url} is too slow ({(done - mark) / (now - since):.0f} bytes a second)"
                    )
                mark, since = done, now
    if total is not None and done != total:
        raise _BrokeOff(f"{url}: broke off after {done} of {total} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only: a redirection must not lead to a file of this machine."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


_OPENER = _opener()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _checked_sum(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    plain = sha256.strip().lower()
    if len(plain) != 64 or set(plain) - set("0123456789abcdef"):
        raise FetchError(f"{sha256!r} is no SHA-256 sum; it has 64 hexadecimal digits")
    return plain


def _check_sum(path: Path, sha256: str | None, source: str | None = None) -> None:
    if sha256 is not None and (there := _sum_of(path)) != sha256:
        raise _WrongSum(f"{source or path} is not the file wanted: its SHA-256 sum is {there}, not {sha256}")


# Archives


def unpack(archive: str | os.PathLike[str], folder: Path, limits: Limits | None = None) -> None:
    """Unpack a ``.zip`` or ``.tar`` archive into a folder that is there and empty.

    Stricter than ``tarfile``'s data filter, which makes some bad names good: here they are refused. Modes,
    owners and times are not taken over.

    Raises
    ------
    FetchError
        If the archive is damaged, encrypted, too large, or holds anything but files and folders of its own.
        ``folder`` is then to be thrown away.
    """
    limits = limits or Limits()
    archive = Path(archive)
    seen: dict[str, str] = {}
    total = 0
    try:
        for count, member in enumerate(_members(archive), 1):
            _judge(archive, member, seen)
            total += member.size
            # A folder may be named again and again, and a file implies folders that are not named at all.
            if max(count, len(seen)) > limits.files:
                raise FetchError(f"{archive} holds more than {limits.files} files")
            if total > limits.bytes:
                raise FetchError(f"{archive} unpacks to more than {limits.bytes} bytes")
            target = folder.joinpath(*member.parts)
            if member.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_member(archive, member, target)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        # What gzip and bzip2 say of damaged data is an OSError too, but not one of the system's.
        if isinstance(error, FetchError) or getattr(error, "errno", None) is not None:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FetchError(f"{archive} is damaged or of no known kind ({reason}); download it again") from error


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str  # "file", "folder", or what is refused
    open: Callable[[], IO[bytes]]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in PurePosixPath(self.name).parts if part != ".")


#: Members of a tar that only say more about the next one, or about all: ``tarfile`` holds them in memory.
_EXTENDING = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_EXTENDING_BYTES = 1 << 20  # some hundred times the longest path that a system allows


class _Entry(tarfile.TarInfo):
    """Member of a tar that is refused before ``tarfile`` takes what belongs to its header into memory.

    ``tarfile`` says that subclasses may override what it calls once it has a bare header. Its public
    ``frombuf`` would come earlier, but newer versions of Python do not go through it any more.
    """

    def _proc_member(self, tarred: _Tar) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarred.refused("a sparse file")
        extends = self.size if self.type in _EXTENDING else 0
        tarred.extending += extends
        if extends < 0:  # tarfile would read all that there is
            raise tarred.refused("a header of negative size")
        if tarred.extending > _EXTENDING_BYTES:
            raise tarred.refused(f"more than {_EXTENDING_BYTES} bytes of headers for one member")
        # The call handles the next header as well, if this one extends it.
        entry = super()._proc_member(tarred)  # type: ignore[misc]
        if self.type != tarfile.XGLTYPE:
            tarred.extending -= extends
        return entry

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, headers: dict[str, str], tarred: _Tar) -> None:
        raise tarred.refused("a sparse file")


class _Tar(tarfile.TarFile):
    tarinfo = _Entry
    extending = 0  # bytes of the headers that are in memory now

    def refused(self, what: str) -> FetchError:
        return FetchError(f"{self.name!s} is refused: it has {what}")


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                yield _Member(info.filename, info.file_size, _kind_in_zip(info), partial(zipped.open, info))
        return
    with _Tar.open(archive, "r:*") as tarred:
        while (entry := tarred.next()) is not None:
            tarred.members.clear()  # type: ignore[attr-defined]  # or all headers stay in memory
            yield _Member(entry.name, entry.size, _kind_in_tar(entry), partial(_in_tar, tarred, entry))
        # tarfile takes a file that breaks off between two members for a whole one.
        tarred.fileobj.seek(tarred.offset)
        if tarred.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends without the mark of its end")


def _in_tar(tarred: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tarred.extractfile(entry)
    assert file is not None
    return file


def _kind_in_tar(entry: tarfile.TarInfo) -> str:
    if entry.isdir():
        return "folder"
    if entry.isreg() and not entry.issparse():
        return "file"
    return "link" if entry.issym() or entry.islnk() else "device or special file"


def _kind_in_zip(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted file"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "device or special file"
    # is_dir() fails on an empty name.
    return "folder" if info.filename.endswith("/") else "file"


#: What common file systems allow in a part of a path; and half of what they allow in a path, which also has
#: to hold the folder that is installed to.
_PART_BYTES, _NAME_BYTES = 255, 2048


def _judge(archive: Path, member: _Member, seen: dict[str, str]) -> None:
    def refuse(reason: str) -> FetchError:
        shown = ascii(member.name)
        shown = shown if len(shown) <= 100 else shown[:100] + "..."
        return FetchError(f"{archive} is refused: its member {shown} {reason}")

    if member.kind not in ("file", "folder"):
        raise refuse(f"is a {member.kind}")
    if member.size < 0:
        raise refuse("has a negative size")
    # On Windows a colon makes a drive of any part of a path, or a hidden stream of a file.
    if member.name.startswith("/") or "\\" in member.name or ":" in member.name:
        raise refuse("has an absolute path or one of another system")
    if ".." in member.parts:
        raise refuse("leads out of its folder")
    if not all(part.isprintable() for part in member.parts):
        raise refuse("has control characters in its name")
    sizes = [len(part.encode()) for part in member.parts]
    if max(sizes, default=0) > _PART_BYTES or sum(sizes) + len(sizes) > _NAME_BYTES:
        raise refuse("has a name too long for a file system")
    if member.kind == "file" and not sizes:
        raise refuse("is a file without a name")
    # Some file systems ignore case: there, one of two such files would overwrite the other.
    parts = [part.casefold() for part in member.parts]
    for end in range(1, len(parts)):
        if seen.setdefault("/".join(parts[:end]), "folder") != "folder":
            raise refuse("lies in a file")
    key = "/".join(parts)
    if key in seen and "file" in (seen[key], member.kind):
        raise refuse("is there twice")
    seen[key] = member.kind


def _write_member(archive: Path, member: _Member, target: Path) -> None:
    with member.open() as source, open(target, "xb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        if file.tell() != member.size:
            raise FetchError(f"{archive} is damaged: {member.name!a} is cut short; download it again")


def _install(archive: Path, out: Path, limits: Limits) -> None:
    """Unpack beside ``out`` and rename: whatever happens, ``out`` is complete or not there."""
    work = _beside(out, "unpacking")
    if work.exists():
        shutil.rmtree(work)  # of an earlier attempt that was killed
    work.mkdir()
    try:
        unpack(archive, work, limits)
        root = _root(work, archive)
        if out.is_dir():  # empty: Windows replaces no folder, nor does Linux the one that it works in
            out.rmdir()
        os.replace(root, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _root(folder: Path, archive: Path) -> Path:
    """The folder of categories: ``folder``, or the one folder in it that many archives begin with, to which
    the files beside it (a licence, a note) are moved.
    """
    if _categories(folder):
        return folder
    inside = sorted(folder.iterdir())
    roots = [path for path in inside if path.is_dir() and _categories(path)]
    if not roots:
        raise FetchError(f"{archive} holds no category of the MVTec AD layout (CATEGORY/train/good)")
    if len(roots) > 1:
        names = ", ".join(path.name for path in roots)
        raise FetchError(f"{archive} holds several data sets ({names}); unpack it and give one of them")
    for path in inside:
        if path.is_file() and not (roots[0] / path.name).exists():
            os.replace(path, roots[0] / path.name)
    return roots[0]


def _categories(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if (path / "train" / "good").is_dir())


def _beside(out: Path, role: str) -> Path:
    out = Path(os.path.abspath(out))
    return out.with_name(f"{out.name}.{role}")


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``ssae data fetch``."""
    parser.add_argument("name", metavar="NAME", help=f"data set: {', '.join(KNOWN)}, or a name of your own")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to install to")
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of the archive; may be given several times, mirrors are tried in order",
    )
    parser.add_argument("--archive", metavar="FILE", help="archive that is already on this machine")
    parser.add_argument("--sha256", metavar="SUM", help="SHA-256 sum that the archive must have")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """``ssae data fetch``."""
    fetch(options.name, options.out, options.url, options.archive, options.sha256)
    return 0
