"""Tokens/s with and without n-gram drafts: one stream, the same engine, turn about.

    python -m benchmarks.speculation MODEL [--rounds 3] [--tokens 192]

The prompts have a passage of text or code and ask for it again, or for something new. Prints a line for each prompt,
and stops where an answer differs.
"""

import argparse
import statistics
import time

from jserve.config.speculation import SpeculativeConfig
from jserve.engine.core import EngineCore
from jserve.llm import LLM
from jserve.protocol import Request, SamplingParams

_CODE = """def area(shapes):
    total = 0.0
    for shape in shapes:
        if shape.kind == "circle":
            total += 3.14159 * shape.radius * shape.radius
        elif shape.kind == "rectangle":
            total += shape.width * shape.height
        elif shape.kind == "triangle":
            total += 0.5 * shape.base * shape.height
    return total
"""
_TEXT = (
    "The lighthouse was built in 1871 on a rock two miles off the coast. Its lamp burned colza oil until 1904, when it "
    "was changed to paraffin. The last keeper left in 1986, and the light has been worked from the mainland since."
)
_TASKS = {
    "copied code": f"Repeat this code exactly, without a comment:\n```python\n{_CODE}```",
    "copied text": f"Repeat this text exactly:\n{_TEXT}",
    "edited code": f"Rename `area` to `surface` and write the whole code again:\n```python\n{_CODE}```",
    "a story": "Tell a story of a fox who learns to sail.",
}
_DRAFTS = SpeculativeConfig(num_speculative_tokens=7, prompt_lookup_min=2, prompt_lookup_max=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=192)
    options = parser.parse_args()
    llm = LLM(options.model, wait_for_compile=True, max_num_seqs=8, max_num_batched_tokens=256, max_model_len=1024)
    print(f"pages of {llm.started.shape.page_size} tokens; up to {_DRAFTS.num_speculative_tokens} drafted")
    for name, task in _TASKS.items():
        text = llm.chat_template.render([{"role": "user", "content": task}])
        prompt = llm.tokenizer.encode(text, add_special_tokens=False)
        _compare(llm, name, prompt, options.rounds, options.tokens)


def _compare(llm: LLM, name: str, prompt: list[int], rounds: int, count: int) -> None:
    speeds: dict[bool, list[float]] = {False: [], True: []}
    answers = set()
    stats = None
    for _ in range(rounds):
        for drafts in (False, True):
            core = EngineCore(llm.started, enable_prefix_caching=False, speculation=_DRAFTS if drafts else None)
            tokens, seconds = _answer(core, prompt, count)
            speeds[drafts].append((len(tokens) - 1) / seconds)
            answers.add(tuple(tokens))
            stats = core.stats()
    if len(answers) != 1 or stats is None:
        raise SystemExit(f"{name}: the answers with and without drafts differ")
    off, on = (statistics.median(speeds[drafts]) for drafts in (False, True))
    print(
        f"{name}: {len(answers.pop())} tokens, {off:.1f} tokens/s without, {on:.1f} with ({on / off:.2f} times); "
        f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} drafted tokens accepted",
        flush=True,
    )


def _answer(core: EngineCore, prompt: list[int], count: int) -> tuple[list[int], float]:
    """The greedy tokens and the seconds from the first of them to the last."""
    core.add(Request("one", prompt, SamplingParams(max_tokens=count, temperature=0.0)))
    tokens: list[int] = []
    first = 0.0
    while not core.is_idle:
        for delta in core.step():
            tokens += delta.token_ids
            first = first or time.perf_counter()
    return tokens, time.perf_counter() - first


if __name__ == "__main__":
    main()
