"""The command line and the file of `--config`."""

import re
from pathlib import Path

import pytest

from jserve.api.settings import ServerSettings
from jserve.commands import foreign_flags
from jserve.commands.inspect import parse_inspect
from jserve.commands.options import build_parser, parse
from jserve.commands.sizes import parse_size
from jserve.config import EngineConfig
from jserve.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("512M", 512_000_000),
        ("2GiB", 2 * 2**30),
        ("2gib", 2 * 2**30),
        ("1.5K", 1500),
        ("1kb", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_every_flag_reaches_its_place() -> None:
    flags = """
        --model m --dtype bfloat16 --load-format dummy --served-model-name a b --max-model-len 100
        --max-num-seqs 3 --max-num-batched-tokens 64 --block-size 32 --gpu-memory-utilization 0.5
        --kv-cache-memory-bytes 1GiB --no-enable-prefix-caching -tp 2 --expert-parallel-size 2
        --host 0.0.0.0 --port 9 --api-key x
        --api-key y --shutdown-timeout 3 --compile-cache-dir c --generation-config vllm --kv-cache-dtype int8
    """
    config, settings = parse(flags.split())
    assert (config.model, config.dtype, config.load_format) == ("m", "bfloat16", "dummy")
    assert (config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens) == (100, 3, 64)
    assert (config.page_size, config.kv_cache_memory_bytes) == (32, 2**30)
    assert (config.gpu_memory_utilization, config.tensor_parallel_size) == (0.5, 2)
    assert config.expert_parallel_size == 2
    assert config.kv_cache_dtype == "int8"
    assert not config.enable_prefix_caching
    assert config.compile_cache_dir == "c"
    assert settings.model_names == ("a", "b")
    assert (settings.host, settings.port, settings.api_keys) == ("0.0.0.0", 9, ("x", "y"))
    assert (settings.shutdown_timeout_s, settings.generation_config) == (3.0, "vllm")


@pytest.mark.parametrize(
    ("spelling", "meant"),
    [("fp8_e4m3", "fp8"), ("fp8_per_token_head", "fp8"), ("int8_per_token_head", "int8"), ("auto", "auto")],
)
def test_types_of_the_kv_cache_may_be_spelled_as_for_vllm(spelling: str, meant: str) -> None:
    assert parse(["m", "--kv-cache-dtype", spelling])[0].kv_cache_dtype == meant
    assert parse_inspect(["m", "--kv-cache-dtype", spelling]).config.kv_cache_dtype == meant


@pytest.mark.parametrize("argv", [["--model", "m"], ["m"], ["serve", "m"], ["serve", "--model", "m"]])
def test_model_can_be_given_in_every_usual_way(argv: list[str]) -> None:
    config, settings = parse(argv)
    assert config.model == settings.model == "m"
    assert settings.model_names == ("m",)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "which model?"),
        (["--model", "m", "--port", "x"], "--port: invalid int value: 'x'"),
        (["--model", "m", "--dtype", "int3"], "--dtype"),
        (["--model", "m", "--no-such"], "--no-such"),
        (["m", "--kv-cache-dtype", "fp8_e5m2"], "'fp8_e5m2' (choose from"),
        (["--model", "m", "--kv-cache-memory-bytes", "much"], "'much' is not a size"),
        (["a", "--model", "m"], "two models"),
    ],
)
def test_bad_flag_is_one_line_and_code_two(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(argv)
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert text in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("argv", [["--page-size", "12"], ["--port", "70000"], ["--gpu-memory-utilization", "2"]])
def test_impossible_value_names_the_flag(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        parse(["--model", "m", *argv])


def test_every_option_is_a_field_of_the_engine_or_of_the_server() -> None:
    fields = {*EngineConfig.__struct_fields__, *ServerSettings.__struct_fields__}
    elsewhere = {"help", "version", "config", "model_path", "enable_auto_tool_choice"}
    assert {action.dest for action in build_parser()._actions} - fields == elsewhere


def test_defaults_of_the_command_line_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JSERVE_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert parse(["m"]) == (EngineConfig(model="m"), ServerSettings(model="m"))


def test_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "old")
    assert parse(["m"])[1].api_keys == ("old",)
    monkeypatch.setenv("JSERVE_API_KEY", "new")
    assert parse(["m"])[1].api_keys == ("new",)
    assert parse(["m", "--api-key", "flag"])[1].api_keys == ("flag",)


def _write(folder: Path, text: str) -> list[str]:
    path = folder / "preset.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_file_sets_options_and_flags_win(tmp_path: Path) -> None:
    preset = _write(
        tmp_path,
        "model: m\nmax-model-len: 100\nmax_num_seqs: 5\nserved-model-name: [a, b]\napi-key: k\n"
        "kv-cache-memory-bytes: 1GiB\nenable-prefix-caching: false\n"
        "enable-prompt-tokens-details: true\nport: 9\n",
    )
    config, settings = parse(preset)
    assert (config.model, config.max_model_len, config.max_num_seqs) == ("m", 100, 5)
    assert (config.kv_cache_memory_bytes, config.enable_prefix_caching) == (2**30, False)
    assert (settings.model_names, settings.api_keys, settings.port) == (("a", "b"), ("k",), 9)
    assert settings.enable_prompt_tokens_details
    config, settings = parse([*preset, "--max-model-len", "7", "--served-model-name", "c", "--enable-prefix-caching"])
    assert (config.max_model_len, config.enable_prefix_caching) == (7, True)
    assert settings.model_names == ("c",)
    assert parse(["serve", "other", *preset])[0].model == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-modl-len: 3", "unknown option 'max-modl-len': did you mean --max-model-len?"),
        ("enforce_eager: true", "unknown option 'enforce_eager': leave it out: nothing is captured"),
        ("config: x", "unknown option 'config'"),
        ("enable-prefix-caching: 3", "must be true or false"),
        ("- a\n- b", "must hold `name: value` lines"),
        ("a: [", "cannot be read"),
        ("port: {a: 1}", "single value"),
    ],
)
def test_file_with_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse([*_write(tmp_path, text), "--model", "m"])
    assert message in str(raised.value)


def test_absent_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        parse(["--config", "/nowhere.yaml", "--model", "m"])


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--enforce-eager"], "unknown flag --enforce-eager: leave it out: nothing is captured"),
        (["--max-logprobs=5"], "the most that a request may ask for is 20"),
        (["--max-num-queued-reqs", "5"], "use --max-queued-requests"),
        (["--spec-method=ngram"], "use --speculative-config"),
        (["-pp", "2"], "layers are not spread over GPUs; use --tensor-parallel-size"),
        (["--data-parallel-size-local", "2"], "run one server per replica"),
        (["--limit-mm-per-prompt", "{}"], "messages are text"),
        (["--max-modle-len", "64"], "did you mean --max-model-len?"),
        (["--frobnicate"], "unknown flag --frobnicate; see jserve --help"),
    ],
)
def test_unknown_flag_says_what_to_do_instead(flags: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["--model", "x", *flags])
    assert left.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "tokens"), [("8192", 8192), ("8k", 8000), ("8K", 8192), ("1.5K", 1536), ("1M", 2**20), ("auto", None)]
)
def test_lengths_are_written_as_for_vllm(text: str, tokens: int | None) -> None:
    config, _ = parse(["--model", "m", "--max-model-len", text, "--max-num-batched-tokens", text])
    assert config.max_model_len == config.max_num_batched_tokens == tokens


def test_a_length_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--max-model-len", "long"])
    assert "'long' is not a number of tokens; write it like 8192, 8k or 8K" in capsys.readouterr().err


def test_names_of_types_and_levels_as_vllm_writes_them() -> None:
    config, settings = parse(["--model", "m", "--dtype", "half", "--log-level", "WARNING"])
    assert (config.dtype, settings.log_level) == ("float16", "warning")
    assert parse(["--model", "m", "--dtype", "float"])[0].dtype == "float32"


def test_flags_that_exist_have_no_hint_for_their_absence() -> None:
    known = set(build_parser()._option_string_actions)
    assert not set(foreign_flags._FLAGS) & known
    assert not [flag for flag in known if flag.startswith(tuple(foreign_flags._FAMILIES))]


def test_flags_that_a_hint_names_exist() -> None:
    known = set(build_parser()._option_string_actions)
    for hint in (*foreign_flags._FLAGS.values(), *foreign_flags._FAMILIES.values()):
        assert set(re.findall(r"--[a-z-]+", hint)) <= known


def test_flags_of_access_and_logs_reach_their_place() -> None:
    flags = """
        --model m --metrics-without-key --cache-isolation none --max-queued-requests 0 --max-queued-tokens 9
        --root-path /a/ --log-level debug --log-format json --enable-log-requests --otlp-traces-endpoint http://c:4318
    """
    config, settings = parse(flags.split())
    assert (settings.metrics_without_key, settings.cache_isolation, settings.root_path) == (True, "none", "/a")
    assert (settings.max_queued_requests, settings.max_queued_tokens) == (0, 9)
    assert (settings.log_level, settings.log_format) == (config.log_level, config.log_format) == ("debug", "json")
    assert (settings.enable_log_requests, settings.otlp_traces_endpoint) == (True, "http://c:4318")
    defaults = parse(["--model", "m"])[1]
    assert (defaults.cache_isolation, defaults.max_queued_requests, defaults.max_queued_tokens) == ("key", None, None)
    for flag, value in (("--max-queued-requests", "-1"), ("--max-queued-tokens", "0")):
        with pytest.raises(ConfigError, match=f"{flag} is {value} but must be at least"):
            parse(["--model", "m", flag, value])


def test_parsers_are_named_and_unknown_names_are_refused() -> None:
    _, settings = parse(["--model", "m", "--tool-call-parser", "qwen3_xml", "--enable-auto-tool-choice"])
    assert settings.tool_call_parser == "qwen3_xml"
    with pytest.raises(ConfigError, match="choose one of auto, hermes"):
        parse(["--model", "m", "--tool-call-parser", "absent"])
    with pytest.raises(ConfigError, match="choose one of auto, none"):
        parse(["--model", "m", "--reasoning-parser", "absent"])
