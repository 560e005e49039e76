"""HTTPS with a certificate of one's own."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from jserve.commands.options import parse
from jserve.errors import ConfigError
from tests.api.live_server import StartServer


def certify(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of 127.0.0.1; `authority.pem` beside them vouches for it."""
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made.private_key_pem.write_to_path(str(key))
    certificate.unlink(missing_ok=True)
    for part in made.cert_chain_pems:
        part.write_to_path(str(certificate), append=True)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return key, certificate


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return certify(tmp_path)


def test_answers_over_https_only(start_server: StartServer, files: tuple[Path, Path]) -> None:
    key, certificate = files
    live = start_server(wait=False, ssl_keyfile=key, ssl_certfile=certificate)
    url = live.url.replace("http:", "https:")
    assert live.server.url == url
    with httpx.Client(
        base_url=url, verify=ssl.create_default_context(cafile=str(certificate.with_name("authority.pem")))
    ) as client:
        live.wait_for(lambda: client.get("/ready").status_code == 200)
        body = {"prompt": "abc", "max_tokens": 5, "stream": True}
        assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
    assert live.status("/health") == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_files_that_do_not_serve_are_told_at_once(tmp_path: Path, files: tuple[Path, Path]) -> None:
    key, certificate = map(str, files)
    flags = ["--model", "m", "--ssl-certfile"]
    with pytest.raises(ConfigError, match="belong together"):
        parse([*flags, certificate])
    with pytest.raises(ConfigError, match="No such file"):
        parse([*flags, certificate, "--ssl-keyfile", str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        parse([*flags, key, "--ssl-keyfile", certificate])
    parse([*flags, certificate, "--ssl-keyfile", key])
