"""deploy/grafana: the board is what its table says, Grafana's own types take it, and each expression gives a series."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.api.live_server import LiveServer, StartServer
from tests.deploy.programs import DEPLOY
from tests.deploy.test_prometheus import busy, prometheus, query
from tests.patience import wait_until

FOLDER = DEPLOY / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "jserve.json").read_text())
WITHOUT_SERIES: set[str] = set()
"""Titles of panels that a server under this load has nothing for."""


def expressions() -> dict[str, list[str]]:
    """By panel, with what Grafana puts in the place of its variables."""
    values = {"$job": "jserve", "$instance": ".*", "$__rate_interval": "1m"}
    shown = {}
    for panel in BOARD["panels"]:
        texts = [target["expr"] for target in panel.get("targets", ())]
        for name, value in values.items():
            texts = [text.replace(name, value) for text in texts]
        if texts:
            shown[panel["title"]] = texts
    return shown


def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("board", FOLDER / "board.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_board_is_what_its_table_says() -> None:
    assert table().board() == BOARD, "write it anew: python deploy/grafana/board.py"


def test_no_panel_covers_another_and_each_variable_is_known() -> None:
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    used = set(re.findall(r"\$(\w+)", json.dumps(BOARD["panels"])))
    assert used == {variable["name"] for variable in BOARD["templating"]["list"]} | {"__rate_interval"}


def test_grafanas_own_types_read_the_board_back() -> None:
    types = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    read = types.Dashboard.from_json(BOARD).to_json()
    assert (read["title"], read["uid"], read["schemaVersion"]) == ("jserve", "jserve", 39)
    assert len(read["panels"]) == len(BOARD["panels"])


def test_grafana_is_told_where_the_boards_and_the_measurements_are() -> None:
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"] if "datasource" in panel} == {source["uid"]}
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/jserve.yml").read_text())["providers"]
    assert provider["type"] == "file"


@pytest.mark.deploy
def test_each_expression_gives_a_series_in_a_real_prometheus(start_server: StartServer, tmp_path: Path) -> None:
    assert len(expressions()) > 25
    with busy(start_server) as live, prometheus(tmp_path, live.url) as api:
        _more(live)

        def silent() -> list[str]:
            return [title for title, texts in expressions().items() if not all(query(api, text) for text in texts)]

        wait_until(lambda: set(silent()) <= WITHOUT_SERIES)
    assert not WITHOUT_SERIES - expressions().keys()


def _more(live: LiveServer) -> None:
    """What the load of the rules' tests lacks: a refusal for capacity shows only where there is a limit."""
    live.server.context.metrics.rejected["queued_requests"] += 1
