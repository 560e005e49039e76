# Sourced by the scripts beside it: where peers live, and how their Python is made.
# PEERS_DIR  a folder outside the repository (default ~/.cache/jserve-peers); each peer has its own venv there.
# PEERS_PYTHON  the interpreter the venvs are made from (default python3.11: every peer has wheels for it).
peers_dir=${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/jserve-peers}
peers_python=${PEERS_PYTHON:-python3.11}
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 VLLM_NO_USAGE_STATS=1

# make_venv NAME: sets $venv, and returns 0 if it is ready, 1 if the caller has to fill it and then `touch $venv/ok`.
make_venv() {
  venv=$peers_dir/$1
  [ -e "$venv/ok" ] && return 0
  echo "installing $1 into $venv (once)" >&2
  mkdir -p "$peers_dir"
  "$peers_python" -m venv --clear "$venv"
  "$venv/bin/pip" install -q uv
  return 1
}

# install_torch VERSION: the CPU wheel, because PyPI's x86 build brings gigabytes of CUDA.
# pip, not uv, so that a find-links in pip's own configuration counts; what torch needs comes with the peer.
install_torch() {
  "$venv/bin/pip" install -q --no-deps --retries 1 \
    --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$1"
}
