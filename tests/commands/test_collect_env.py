"""`jserve collect-env` says what a report needs, and no secret."""

import json

import pytest

from jserve.cli import main
from jserve.version import __version__


def test_it_names_versions_and_devices_and_no_secret(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_dontshow")
    monkeypatch.setenv("JSERVE_API_KEY", "sk-dontshow")
    main(["collect-env", "--json"])
    text = capsys.readouterr().out
    facts = json.loads(text)
    assert facts["jserve"][0] == __version__
    assert facts["packages"]["jax"]
    assert "cpu" in facts["devices"][0].lower()
    assert facts["environment"]["HF_TOKEN"] == facts["environment"]["JSERVE_API_KEY"] == "(set)"
    assert "dontshow" not in text
