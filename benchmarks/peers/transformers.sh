#!/usr/bin/env bash
# transformers.sh MODEL_DIR PORT [transformers serve args]
# `transformers serve` with continuous batching in bfloat16 on the CPU. INSTALL_ONLY=1 stops after installing.
# It refuses `ignore_eos` and calls the model by the path it was started with.
set -eu
. "$(dirname "$0")/peer_env.sh"
model=$(realpath "$1") port=$2
shift 2
if ! make_venv transformers; then
  install_torch 2.13.0
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" "transformers[serving]==5.23.0" "torch==2.13.0" gguf
  touch "$venv/ok"
fi
[ -n "${INSTALL_ONLY:-}" ] && exit 0
exec "$venv/bin/transformers" serve "$model" --host 127.0.0.1 --port "$port" \
  --continuous-batching --device cpu --dtype bfloat16 "$@"
