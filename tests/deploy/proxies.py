"""nginx and Caddy with the files of deploy/, on free ports in front of servers of a test."""

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import trustme

from tests.deploy.programs import DEPLOY, program, replaced, run
from tests.patience import PATIENCE_S, wait_until

NAME = "llm.example.com"
WORLD = "127.0.0.2"
"""An address of this machine that is not the one which may read /metrics."""


class Proxy:
    """A proxy that runs. `client` speaks to it as the world does."""

    def __init__(self, url: str, verify: ssl.SSLContext | bool) -> None:
        self.url = url
        self._verify = verify
        self.client = self.client_from(WORLD)

    def client_from(self, address: str, **headers: str) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=address, verify=self._verify)
        return httpx.Client(base_url=self.url, transport=transport, headers=headers, timeout=PATIENCE_S)

    def status(self, path: str) -> int:
        """The status of a GET, 0 where nobody listens."""
        with contextlib.suppress(httpx.TransportError):
            return self.client.get(path).status_code
        return 0


@contextmanager
def nginx(folder: Path, *servers: str, changes: Sequence[tuple[str, str]] = ()) -> Iterator[Proxy]:
    """nginx with deploy/nginx/jserve.conf for servers at these URLs; `changes` are (old, new) in its text."""
    path = program("nginx")
    port, plain_port = free_port(), free_port()
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    for part in made.cert_chain_pems:
        part.write_to_path(str(folder / "certificate.pem"), append=True)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    site = (DEPLOY / "nginx" / "jserve.conf").read_text()
    site = replaced(site, *_nginx_changes(folder, port, plain_port, servers), *changes)
    (folder / "jserve.conf").write_text(site)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr warn;\nevents {{}}\n"
        f"http {{ access_log off;\n{temporary}include {folder}/jserve.conf; }}\n"
    )
    command = [path, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    run(*command, "-t")
    verify = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    with _running(command, Proxy(f"https://127.0.0.1:{port}", verify), folder) as proxy:
        yield proxy


def _nginx_changes(folder: Path, port: int, plain_port: int, servers: tuple[str, ...]) -> list[tuple[str, str]]:
    """What a reader of the file changes: names, files and servers; and the ports.

    The servers' own hint against buffering is ignored, so that what streams is due to the file.
    """
    rest = "max_fails=3 fail_timeout=5s;"
    lines = "\n    ".join(f"server {url.removeprefix('http://')} {rest}" for url in servers)
    live = f"/etc/letsencrypt/live/{NAME}"
    return [
        (f"server 127.0.0.1:8000 {rest}", lines),
        (f"{live}/fullchain.pem", str(folder / "certificate.pem")),
        (f"{live}/privkey.pem", str(folder / "key.pem")),
        ("listen [::]:80;", ""),
        ("listen [::]:443 ssl http2;", ""),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("gzip off;", "gzip off; proxy_ignore_headers X-Accel-Buffering;"),
    ]


@contextmanager
def caddy(folder: Path, *servers: str) -> Iterator[Proxy]:
    """Caddy with deploy/Caddyfile for servers at these URLs, without TLS: nobody can have its name's certificate."""
    path, port = program("caddy"), free_port()
    text = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        (f"\n{NAME} {{", f"\nhttp://127.0.0.1:{port} {{"),
        ("reverse_proxy 127.0.0.1:8000", "reverse_proxy " + " ".join(url.removeprefix("http://") for url in servers)),
    )
    file = folder / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tstorage file_system " + str(folder) + "\n}\n" + text)
    command = [path, "run", "--adapter", "caddyfile", "--config", str(file)]
    with _running(command, Proxy(f"http://127.0.0.1:{port}", True), folder) as proxy:
        yield proxy


@contextmanager
def _running(command: list[str], proxy: Proxy, folder: Path) -> Iterator[Proxy]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or proxy.status("/health") == 200)
            assert process.poll() is None, (folder / "log").read_text()
            yield proxy
        finally:
            proxy.client.close()
            process.terminate()
            process.wait(PATIENCE_S)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
