"""nginx and Caddy with the files of deploy/ in front of jserve: streams, refusals, and what stays closed."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from jserve.api.access.limits import Limit, Limits
from tests.api.live_server import LiveServer, StartServer
from tests.deploy.proxies import Proxy, caddy, nginx
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.deploy

StartProxy = Callable[..., AbstractContextManager[Proxy]]
KEY = {"Authorization": "Bearer sk-one"}
STREAMS = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 3, "stream": True},
    "/v1/messages": {
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": 3,
        "model": "tiny",
        "stream": True,
    },
    "/api/generate": {"model": "tiny", "prompt": "abc", "raw": True, "options": {"num_predict": 3}},
}
BODY = {"prompt": "abc", "max_tokens": 3}


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def start_proxy(request: pytest.FixtureRequest) -> StartProxy:
    start: StartProxy = request.param
    return start


def token_of(letter: str) -> str:
    return str(3 + sorted(map(chr, range(33, 127))).index(letter))


@pytest.mark.parametrize("path", STREAMS)
def test_tokens_pass_while_the_answer_is_unfinished(
    start_server: StartServer, start_proxy: StartProxy, tmp_path: Path, path: str
) -> None:
    """The engine stands still before the last token; the first has arrived. A chat's answer begins as its template."""
    (hold := tmp_path / "hold").touch()
    letter = token_of("s" if path == "/v1/messages" else "c")
    live = start_server("--stall-token", letter, "--stall-held-by", str(hold))
    with start_proxy(tmp_path, live.url) as proxy, proxy.client.stream("POST", path, json=STREAMS[path]) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(("text/event-stream", "application/x-ndjson"))
        lines = response.iter_lines()
        assert any('"a"' in line or '"u"' in line for line in lines)
        assert live.server.context.generator.num_open == 1
        hold.unlink()
        rest = [line for line in lines if line]
    assert rest


def test_a_client_that_leaves_ends_its_request(
    start_server: StartServer, start_proxy: StartProxy, tmp_path: Path
) -> None:
    live = start_server("--step-ms", "20", max_model_len=4096)
    body = STREAMS["/v1/completions"] | {"max_tokens": 4000, "ignore_eos": True}
    with start_proxy(tmp_path, live.url) as proxy:
        with proxy.client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        live.wait_for(lambda: live.server.context.generator.num_open == 0)
    assert live.metric("jserve:aborted_requests_total") == 1


def test_refusals_arrive_with_their_headers(start_server: StartServer, start_proxy: StartProxy, tmp_path: Path) -> None:
    live = start_server(
        api_keys=("sk-one",), limits=Limits(default=Limit(requests_per_minute=1)), max_request_bytes=1000
    )
    with start_proxy(tmp_path, live.url) as proxy:
        missing = proxy.client.post("/v1/completions", json=BODY)
        assert missing.status_code == 401
        assert missing.headers["www-authenticate"] == "Bearer"
        large = proxy.client.post("/v1/completions", json=BODY | {"user": "x" * 2000}, headers=KEY)
        assert large.status_code == 413
        assert "1000" in large.json()["error"]["message"]
        answers = [proxy.client.post("/v1/completions", json=BODY, headers=KEY) for _ in range(2)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) > 0
        assert answers[-1].headers["x-ratelimit-limit-requests"] == "1"
        assert all(answer.headers["x-request-id"] for answer in (missing, large, *answers))


def test_503_arrives_with_its_headers(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--load-held-by", str(hold), wait=False)
    with nginx(tmp_path, live.url) as proxy:
        live.wait_for(lambda: "weights 1 of 4" in live.http.get("/ready").text)
        loading = proxy.client.post("/v1/completions", json=BODY)
        assert loading.status_code == 503
        assert loading.headers["retry-after"] == "5"
        assert "weights 1 of 4" in loading.json()["error"]["message"]
        hold.unlink()
        live.wait_until_ready()


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/v1/../metrics", "/metrics?x=1", "/METRICS//"]
)
def test_metrics_are_closed_to_the_world(
    server: LiveServer, start_proxy: StartProxy, tmp_path: Path, path: str
) -> None:
    with start_proxy(tmp_path, server.url) as proxy:
        answer = proxy.client.get("/", extensions={"target": path.encode()})  # httpx would tidy it.
        assert answer.status_code == 403
        assert "vllm" not in answer.text


def test_metrics_are_open_on_the_machine_itself(server: LiveServer, tmp_path: Path) -> None:
    with nginx(tmp_path, server.url) as proxy, proxy.client_from("127.0.0.1") as client:
        assert "vllm:num_requests_running" in client.get("/metrics").text


def test_nginx_refuses_in_the_form_of_the_api(start_server: StartServer, tmp_path: Path) -> None:
    live = start_server()
    changes = [
        ("client_max_body_size 32m", "client_max_body_size 1k"),
        ("rate=20r/s", "rate=1r/m"),
        ("burst=40", "burst=1"),
    ]
    with nginx(tmp_path, live.url, changes=changes) as proxy:
        large = proxy.client.post("/v1/completions", json=BODY | {"user": "x" * 2000})
        assert large.status_code == 413
        assert large.json()["error"]["code"] == "request_too_large"
        answers = [proxy.client.get("/v1/models", headers=KEY) for _ in range(3)]
        assert [answers[0].status_code, answers[-1].status_code] == [200, 429]
        assert answers[-1].headers["retry-after"] == "1"
        assert answers[-1].json()["error"]["type"] == "rate_limit_error"
        with proxy.client_from("127.0.0.3", **KEY) as elsewhere:
            assert elsewhere.get("/v1/models").status_code == 429, "the key is counted wherever it is used"
        with proxy.client_from("127.0.0.3") as elsewhere:
            assert elsewhere.get("/v1/models").status_code == 200
        assert proxy.client.get("/ready").status_code == 200


def test_open_requests_of_an_address_are_counted(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--stall-token", token_of("b"), "--stall-held-by", str(hold))
    changes = [("jserve_address_open 128", "jserve_address_open 1")]
    body = STREAMS["/v1/completions"]
    with nginx(tmp_path, live.url, changes=changes) as proxy:
        with proxy.client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert proxy.client.get("/v1/models").status_code == 429
            with proxy.client_from("127.0.0.3") as elsewhere:
                assert elsewhere.get("/v1/models").status_code == 200
            hold.unlink()
            assert [*lines][-2:] == ["data: [DONE]", ""]
        assert proxy.client.get("/v1/models").status_code == 200


def test_a_server_that_is_not_ready_is_passed_over(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    loading, ready = start_server("--load-held-by", str(hold), wait=False), start_server()
    with nginx(tmp_path, loading.url, ready.url) as proxy:
        loading.wait_for(lambda: loading.status("/health") == 200)
        assert [proxy.client.post("/v1/completions", json=BODY).status_code for _ in range(6)] == [200] * 6
    hold.unlink()


def test_an_engine_that_is_killed_loses_no_request_that_had_not_begun_to_stream(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The answer has no token yet, so nginx asks the other server."""
    holds = [tmp_path / "hold-0", tmp_path / "hold-1"]
    for hold in holds:
        hold.touch()
    servers = [start_server("--steps-held-by", str(hold)) for hold in holds]
    answers: list[tuple[int, str]] = []
    with nginx(tmp_path, *(live.url for live in servers)) as proxy:

        def ask() -> None:
            answer = proxy.client.post("/v1/completions", json=STREAMS["/v1/completions"])
            answers.append((answer.status_code, answer.text))

        thread = threading.Thread(target=ask)
        thread.start()
        servers[0].wait_for(lambda: any(live.server.context.generator.num_open for live in servers))
        held = next(live for live in servers if live.server.context.generator.num_open)
        holds[1 - servers.index(held)].unlink()
        assert held.engine_pid is not None
        os.kill(held.engine_pid, signal.SIGKILL)
        thread.join(PATIENCE_S)
    status, text = answers[0]
    assert status == 200
    assert text.endswith("data: [DONE]\n\n")
    for hold in holds:
        hold.unlink(missing_ok=True)


def test_a_server_that_drains_ends_its_streams_and_the_other_takes_what_comes(
    start_server: StartServer, tmp_path: Path
) -> None:
    """As in a rolling restart: eight streams on two servers stand still after a token, and one is told to stop."""
    steps, stall = tmp_path / "steps", tmp_path / "stall"
    steps.touch()
    stall.touch()
    options = ("--steps-held-by", str(steps), "--stall-token", token_of("b"), "--stall-held-by", str(stall))
    leaving, staying = servers = [start_server(*options, shutdown_timeout_s=PATIENCE_S) for _ in range(2)]
    streams: list[list[str]] = [[] for _ in range(8)]
    statuses: list[int] = []
    with nginx(tmp_path, leaving.url, staying.url) as proxy:

        def read(lines: list[str]) -> None:
            body = {"prompt": "aaab", "max_tokens": 4, "stream": True}
            with proxy.client.stream("POST", "/v1/completions", json=body) as response:
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        lines.append(line)

        def ask() -> None:
            statuses.append(proxy.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code)

        threads = [threading.Thread(target=read, args=(lines,)) for lines in streams]
        for thread in threads:
            thread.start()
        leaving.wait_for(lambda: [live.server.context.generator.num_open for live in servers] == [4, 4])
        steps.unlink()
        leaving.wait_for(lambda: all(streams))
        leaving.begin_stop()
        leaving.wait_for(lambda: leaving.server.context.generator.is_draining)
        threads += [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads[8:]:
            thread.start()
        staying.wait_for(lambda: staying.server.context.generator.num_open == 8)
        stall.unlink()
        for thread in threads:
            thread.join(PATIENCE_S)
        leaving.join()
    assert [lines[-1] for lines in streams] == ["data: [DONE]"] * 8
    assert statuses == [200] * 4


def test_where_nobody_answers_clients_are_told_to_come_again(start_server: StartServer, tmp_path: Path) -> None:
    live = start_server()
    with nginx(tmp_path, live.url) as proxy:
        live.stop()
        answer = proxy.client.post("/v1/completions", json=BODY)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["error"]["type"] == "ServiceUnavailableError"
