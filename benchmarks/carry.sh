#!/usr/bin/env bash
# Makes the folder `carried/` (which git ignores): what `python3 -m benchmarks.gpu` needs on a machine with a GPU that
# has no network, beside the packages that such an image has. Unpacked, so that nothing is installed; under 60 MiB.
#   benchmarks/carry.sh                   for Python 3.12 on Linux, x86_64
#   PYTHON_VERSION=3.13 benchmarks/carry.sh
set -euo pipefail
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
cd "$(dirname "$0")/.."
LIMIT_MIB=60
PACKAGES=(
  annotated-types fastapi flax gguf httptools llguidance msgspec opentelemetry-api pydantic pydantic-core starlette
  typing-extensions typing-inspection uvicorn
  distro httpcore2 httpx2 jiter openai sniffio truststore # for `transformers serve`
)
part=$(mktemp -d carried.XXXX)
trap 'rm -rf "$part"' EXIT
# pydantic fits one version of its core.
core=$("${PYTHON:-python3}" -m pip download --quiet --no-deps --dest "$part/w" pydantic >/dev/null &&
  unzip -p "$part"/w/pydantic-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==\([0-9.]*\).*/\1/p')
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${name}_x86_64")
done
# Downloaded and unpacked, because `pip install` takes the versions of the Python that it runs in for good enough.
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --dest "$part/wheels" \
  --python-version "$PYTHON_VERSION" "${platforms[@]}" "${PACKAGES[@]/#pydantic-core/pydantic-core==$core}"
for wheel in "$part"/wheels/*.whl; do
  unzip -q -o "$wheel" -d "$part/carried"
done
"${PYTHON:-python3}" - "$part/carried" tests/benchmarks/visit_machine.txt <<'CHECK'
import pathlib, re, sys

folder, machine = map(pathlib.Path, sys.argv[1:])
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
there = set(machine.read_text().split()) | {normal(d.name.split("-")[0]) for d in folder.glob("*.dist-info")}
for info in sorted(folder.glob("*.dist-info")):
    lines = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)", (info / "METADATA").read_text(), re.MULTILINE)
    for name, rest in lines:
        if "extra ==" not in rest and "emscripten' and" not in rest and normal(name) not in there:
            sys.exit(f"{info.name} needs {name}, which is neither carried nor on the machine")
CHECK
size=$(du -sm "$part/carried" | cut -f1)
[ "$size" -lt "$LIMIT_MIB" ] || { echo "carried/ has $size MiB, over $LIMIT_MIB" >&2; exit 1; }
echo "$PYTHON_VERSION" > "$part/carried/python-version"
rm -rf carried
mv "$part/carried" carried
echo "carried/ has $size MiB: $(ls carried | grep -c dist-info) packages"
