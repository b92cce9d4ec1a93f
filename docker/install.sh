#!/bin/sh
# Installs Limn's requirements for one kind of machine: install.sh cpu|cuda [pip options]. The Dockerfile and tests run it as it is.
set -eu
device=${1:?"cpu or cuda"}
shift
cd "$(dirname "$0")/.."
case "$device" in
  cpu) set -- --extra-index-url https://download.pytorch.org/whl/cpu "$@" ;;
  cuda) ;;  # the package index's own build of PyTorch
  *) echo "device '$device': cpu or cuda" >&2; exit 2 ;;
esac
# Without windows OpenCV needs no system libraries.
sed 's/^opencv-python==/opencv-python-headless==/' requirements.txt >"${TMPDIR:-/tmp}/requirements.txt"
${PYTHON:-python} -m pip install --no-cache-dir -r "${TMPDIR:-/tmp}/requirements.txt" "$@"
if [ "$device" = cuda ]; then
  ${PYTHON:-python} -m pip install --no-cache-dir -r requirements-gpu.txt "$@"
fi
