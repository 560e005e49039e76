#!/usr/bin/env bash
# llama_cpp.sh MODEL.gguf PORT [--parallel 32] [--context 1024] [--threads N]
# llama.cpp's own HTTP server out of the wheel `xllamacpp` (an AVX2 build: a native one is faster, so say which
# you used). INSTALL_ONLY=1 stops after installing.
set -eu
. "$(dirname "$0")/peer_env.sh"
here=$(dirname "$0")
if ! make_venv llama-cpp; then
  "$venv/bin/pip" install -q xllamacpp gguf
  touch "$venv/ok"
fi
[ -n "${INSTALL_ONLY:-}" ] && exit 0
exec "$venv/bin/python" "$here/llama_cpp.py" "$@"
