"""Many prompts at once without a server: the same engine in a script. Usage: python offline_batch.py MODEL"""

import sys

from jserve import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], max_model_len=512)
    prompts = [f"A fact about the number {number}:" for number in range(8)]
    for prompt, output in zip(prompts, llm.generate(prompts, SamplingParams(max_tokens=24)), strict=True):
        print(prompt, output.outputs[0].text.strip())
