"""The names of commands, and the words of others that are none here."""

COMMANDS = {
    "bench": "jserve.commands.bench.command",
    "chat": "jserve.commands.client.chat",
    "collect-env": "jserve.commands.collect_env",
    "completion": "jserve.commands.completion",
    "compile": "jserve.commands.compile",
    "complete": "jserve.commands.client.complete",
    "convert": "jserve.commands.convert",
    "inspect": "jserve.commands.inspect",
    "key": "jserve.commands.key",
    "list": "jserve.commands.list",
    "ls": "jserve.commands.list",
    "perplexity": "jserve.commands.perplexity",
    "ps": "jserve.commands.client.ps",
    "pull": "jserve.commands.pull",
    "quantize": "jserve.commands.quantize.command",
    "record": "jserve.commands.workload.record",
    "report": "jserve.commands.workload.report",
    "rm": "jserve.commands.rm",
    "run": "jserve.commands.client.run",
    "run-batch": "jserve.commands.run_batch",
    "show": "jserve.commands.inspect",
    "stop": "jserve.commands.client.stop",
}
"""Each module has a `run(argv)`. It is imported only when it is asked for: a start must not wait for the others."""

FOREIGN_COMMANDS = {
    "cp": "give one model several names with --served-model-name",
    "create": "give a template, a folder of default sampling and a name with --chat-template, --generation-config and "
    "--served-model-name",
    "push": "jserve publishes nothing; use `hf upload`",
    "signin": "set HF_TOKEN for models that need an account",
    "signout": "unset HF_TOKEN",
    "launch": "start a server, then the program with its URL",
    "generate": "`jserve run MODEL PROMPT`, or `jserve complete` with a running server",
}
"""Words of Ollama's and vLLM's command lines that are no commands here, and what to do instead."""
