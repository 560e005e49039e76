"""deploy/prometheus: promtool takes it, each alert fires, and each metric is one that the server has."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from jserve.api.access.limits import Limit, Limits
from tests.api.live_server import LiveServer, StartServer
from tests.deploy.programs import DEPLOY, ROOT, program, replaced, run
from tests.deploy.proxies import free_port, nginx
from tests.patience import PATIENCE_S, wait_until

pytestmark = pytest.mark.deploy

FOLDER = DEPLOY / "prometheus"
OF_OTHERS = {"up": "Prometheus itself", "probe_ssl_earliest_cert_expiry": "the blackbox exporter"}
"""Metrics of the rules that no server of ours has, and who has them."""
WORDS = {"sum", "rate", "increase", "deriv", "histogram_quantile", "time", "and"}
"""What else stands in an expression."""
LIMITED = Limits(default=Limit(requests_per_minute=2))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """The names of metrics in an expression: without labels, ranges, and the words of PromQL."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)", "", expression)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - WORDS


RULES = {rule["alert"]: rule for rule in rules()}
NAMES = sorted({name for rule in RULES.values() for name in metrics_of(rule["expr"])} - OF_OTHERS.keys())


@contextmanager
def busy(start_server: StartServer) -> Iterator[LiveServer]:
    """A server that has answered, failed, and refused a key."""
    live = start_server("--error-token", "5", limits=LIMITED, api_keys=("sk-one",), metrics_without_key=True)
    for prompt in ([4], [5], [4]):
        live.http.post(
            "/v1/completions", json={"prompt": prompt, "max_tokens": 2}, headers={"Authorization": "Bearer sk-one"}
        )
    yield live


def test_promtool_takes_the_configuration() -> None:
    output = run(program("promtool"), "check", "config", str(FOLDER / "prometheus.yml"))
    assert f"{len(RULES)} rules found" in output


def test_each_alert_fires_on_what_it_is_about() -> None:
    assert "SUCCESS" in run(program("promtool"), "test", "rules", str(FOLDER / "alerts_test.yml"))
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case.get("alert_rule_test", []) if check["exp_alerts"]}
    assert fired == RULES.keys()


def test_each_alert_is_explained() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert not [name for name in RULES if f"`{name}`" not in page]


@pytest.mark.parametrize("expression", ['a:b / sum by (x) (rate(c_d{e="f"}[5m])) > 0.01 and time() - g < 14 * 86400'])
def test_names_in_an_expression_are_seen(expression: str) -> None:
    assert metrics_of(expression) == {"a:b", "c_d", "g"}


def routed(**labels: str) -> str:
    """The receiver that amtool says an alert with these labels goes to."""
    command = [program("amtool"), "config", "routes", "test", f"--config.file={FOLDER}/alertmanager.yml"]
    return run(*command, *(f"{name}={value}" for name, value in labels.items())).splitlines()[-1]


def test_amtool_takes_the_routes_and_each_alert_has_one() -> None:
    run(program("amtool"), "check-config", str(FOLDER / "alertmanager.yml"))
    for name, rule in RULES.items():
        assert routed(alertname=name, severity=rule["labels"]["severity"]) == rule["labels"]["severity"]


def test_a_server_that_is_down_is_told_of_once(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus-alertmanager"),
        f"--config.file={FOLDER}/alertmanager.yml",
        f"--storage.path={tmp_path}",
    ]
    command += [f"--web.listen-address={address}", "--cluster.listen-address="]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as api:
            wait_until(lambda: process.poll() is not None or is_up(api, "/-/ready"))
            alerts = [
                {"labels": {"alertname": name, "severity": RULES[name]["labels"]["severity"], "instance": instance}}
                for name, instance in (("JserveDown", "a"), ("JserveNotReady", "a"), ("JserveNotReady", "b"))
            ]
            assert api.post("/api/v2/alerts", json=alerts).status_code == 200

            def states() -> dict[tuple[str, str], str]:
                shown = api.get("/api/v2/alerts").json()
                keys = [(each["labels"]["alertname"], each["labels"]["instance"]) for each in shown]
                return {key: each["status"]["state"] for key, each in zip(keys, shown, strict=True)}

            expected = {("JserveDown", "a"): "active", ("JserveNotReady", "a"): "suppressed"}
            wait_until(lambda: states() == {**expected, ("JserveNotReady", "b"): "active"})
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_each_metric_and_label_of_the_rules_is_one_that_the_server_has(start_server: StartServer) -> None:
    with busy(start_server) as live:
        text = live.http.get("/metrics").text
    exported = set(re.findall(r"^([\w:]+)", text, re.MULTILINE))
    assert len(NAMES) > 8
    assert not [name for name in NAMES if name not in exported]
    (refused,) = re.findall(r"^jserve:ratelimit_rejections_total\{(.*)\}", text, re.MULTILINE)
    assert {"key_id", "kind"} <= set(re.findall(r"(\w+)=", refused))
    assert re.search(r'^http_requests_total\{.*status="5..".*\} 1', text, re.MULTILINE)


def test_a_real_prometheus_scrapes_the_server_and_evaluates_every_rule(
    start_server: StartServer, tmp_path: Path
) -> None:
    with busy(start_server) as live, prometheus(tmp_path, live.url) as api:

        def jserve_is_up() -> bool:
            targets = api.get("/api/v1/targets").json()["data"]["activeTargets"]
            return any(t["labels"]["job"] == "jserve" and t["health"] == "up" for t in targets)

        wait_until(jserve_is_up)
        wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated(api)))
        assert {rule["name"]: rule.get("lastError", "") for rule in evaluated(api)} == dict.fromkeys(RULES, "")
        for name in [*NAMES, "up"]:
            assert query(api, name), name
        thresholds = re.compile(r"[<>=]+ [\d.* ]+$")
        for alert in ("JserveDown", "JserveNotReady", "JserveCacheNearlyFull"):
            assert query(api, thresholds.sub("", RULES[alert]["expr"].strip())), alert


def test_the_exporter_that_sees_the_certificate_has_its_metric(server: LiveServer, tmp_path: Path) -> None:
    """With its module that the scrape configuration names, as Debian ships it."""
    exporter, modules = program("prometheus-blackbox-exporter"), tmp_path / "blackbox.yml"
    modules.write_text("modules: {http_2xx: {prober: http}}")
    address = f"127.0.0.1:{free_port()}"
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "certificate"]
    with nginx(tmp_path, server.url) as proxy:
        trusted = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "authority.pem")}
        command = [exporter, f"--config.file={modules}", f"--web.listen-address={address}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=trusted)
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as api:
                wait_until(lambda: process.poll() is not None or is_up(api, "/-/healthy"))
                answer = api.get(job["metrics_path"], params={**job["params"], "target": f"{proxy.url}/ready"})
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert re.search(r"^probe_success 1$", answer.text, re.MULTILINE), answer.text
    assert re.search(r"^probe_ssl_earliest_cert_expiry \S+$", answer.text, re.MULTILINE)


def evaluated(api: httpx.Client) -> list[dict[str, Any]]:
    return [rule for group in api.get("/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]


def query(api: httpx.Client, expression: str) -> list[Any]:
    answer = api.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", json.dumps(answer)
    result: list[Any] = answer["data"]["result"]
    return result


@contextmanager
def prometheus(folder: Path, url: str) -> Iterator[httpx.Client]:
    """Prometheus with the files of deploy/ for one server, scraped each second."""
    text = replaced(
        (FOLDER / "prometheus.yml").read_text(),
        ("127.0.0.1:8000", url.removeprefix("http://")),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
    )
    (folder / "prometheus.yml").write_text(text)
    (folder / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as api:
                wait_until(lambda: process.poll() is not None or is_up(api, "/-/ready"))
                assert process.poll() is None, (folder / "log").read_text()
                yield api
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def is_up(api: httpx.Client, path: str) -> bool:
    try:
        return api.get(path).status_code == 200
    except httpx.TransportError:
        return False
