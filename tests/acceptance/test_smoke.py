"""The shortest path a stranger takes, in the default run: the real model, the real server, the real client."""

from pathlib import Path

from openai import OpenAI

from jserve import LLM, SamplingParams
from tests.acceptance.conftest import StartServer

SMALL = ("--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len", "512")


def test_the_real_model_answers_the_openai_client_in_english(start_server: StartServer) -> None:
    server = start_server(*SMALL, "--kv-cache-memory-bytes", "128MiB")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    assert model == "SmolLM2-135M-Instruct.Q4_1"
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=30)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    assert whole.choices[0].finish_reason == "stop"
    parts = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=30, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert server.metric("jserve:recompiles_after_ready_total") == 0


def test_the_offline_api_continues_a_sentence(real_gguf: Path, executables: str) -> None:
    llm = LLM(
        str(real_gguf),
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=512,
        kv_cache_memory_bytes=128 << 20,
        compile_cache_dir=executables,
    )
    greedy = SamplingParams(temperature=0, max_tokens=12, stop=(".",))
    first, second = llm.generate(["The capital of France is", "Two plus two is"], greedy, use_tqdm=False)
    assert "Paris" in first.outputs[0].text
    assert first.outputs[0].finish_reason == "stop"
    assert "." not in second.outputs[0].text
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], greedy, use_tqdm=False)
    assert answer[0].outputs[0].text == "The capital of France is Paris"
