"""The speed tables of README.md and docs/performance.md are what the committed result files give."""

import json
import tomllib
from pathlib import Path

import pytest

from benchmarks.speed_table import (
    BEGIN,
    END,
    PERFORMANCE,
    README,
    README_ROWS,
    RESULTS,
    TARGETS,
    Reached,
    cells,
    find,
    pages,
    row_of,
    small_table,
    with_table,
)

DATA = {
    "summary": {"c=1": {"jserve": {"rate": 120.0, "ratio_to": {"vllm": 1.5}}, "jserve-bf16": {"rate": 150.0}}},
    "points": [{"rows": 8, "kind": "a", "us": 150}, {"rows": 256, "kind": "a", "us": 900}],
    "seconds": {"jserve": 3.0, "vllm": 60.0},
}


@pytest.mark.parametrize("page", [README, PERFORMANCE], ids=lambda path: path.name)
def test_page_says_what_the_committed_results_give(page: Path) -> None:
    assert page.read_text() == pages()[page], "run `python -m benchmarks.speed_table`"


def test_readme_has_rows_of_speed_and_no_more_than_fit_on_its_screen() -> None:
    table = small_table().splitlines()[2:]
    assert 0 < len(table) <= README_ROWS


def test_no_committed_result_is_a_trial() -> None:
    for path in RESULTS.glob("*.json"):
        assert not json.loads(path.read_text()).get("tiny"), path.name


def test_some_figure_of_every_committed_file_is_found() -> None:
    targets = tomllib.loads(TARGETS.read_text())["target"]
    for name in {target["file"] for target in targets if (RESULTS / target["file"]).exists()}:
        data = {name: json.loads((RESULTS / name).read_text())}
        assert any(row_of(target, data).met is not None for target in targets if target["file"] == name), name


def test_path_goes_through_keys_and_picks_list_entries_by_their_fields() -> None:
    assert find(DATA, "summary/c=1/jserve/rate") == 120
    assert find(DATA, "points/kind=a,rows=256/us") == 900
    assert find(DATA, "points/rows=64/us") is None
    assert find(DATA, "summary/c=8/jserve/rate") is None


def row(**target: object) -> tuple[str, str, str]:
    return cells(row_of({"group": "g", "text": "t", "file": "f", **target}, {"f": DATA}))


def test_variant_named_first_decides_and_the_others_stand_in_brackets() -> None:
    path = "summary/c=1/{variant}/rate"
    shown = row(variants=["jserve", "jserve-bf16"], value=path, value_at_least=130, unit="tokens/s")
    assert shown == ("120 tokens/s (jserve-bf16: 150)", "", "no")


def test_ratio_comes_from_value_and_peer_and_all_limits_count() -> None:
    start = {"value": "seconds/jserve", "peer": "seconds/vllm", "unit": "s"}
    assert row(**start, ratio_at_most=0.2, value_at_most=10) == ("3 s", "0.05 x", "yes")
    assert row(**start, ratio_at_most=0.2, value_at_most=2) == ("3 s", "0.05 x", "no")


def test_missing_file_or_figure_reads_not_measured() -> None:
    missing = row_of({"group": "g", "text": "t", "file": "none", "value": "a", "value_at_least": 1}, {})
    assert cells(missing) == ("not measured", "", "")
    assert missing.met is None
    assert row(value="seconds/jserve", ratio="no/such", ratio_at_least=1)[2] == ""
    assert row_of({"group": "g", "text": "t", "file": "f", "value": "seconds/jserve"}, {"f": DATA}).reached == (
        Reached("", 3.0, None),
    )


def test_table_replaces_only_what_stands_between_the_markers() -> None:
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="once each"):
        with_table("no markers", "new")


def test_targets_are_named_once() -> None:
    texts = [target["text"] for target in tomllib.loads(Path(TARGETS).read_text())["target"]]
    assert len(texts) == len(set(texts))
