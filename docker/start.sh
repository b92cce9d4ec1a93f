#!/bin/sh
# What the container runs: the page for the whole network, behind the login in LIMN_AUTH (user:password). Further options are handed on.
set -eu
: "${LIMN_AUTH:?give the login as -e LIMN_AUTH=user:password}"
out=${LIMN_OUT:-/data/outputs}
data=${LIMN_DATA:-/data/datasets}
runs=${LIMN_RUNS:-/data/runs}
export HF_HOME="${HF_HOME:-/data/weights}"
export LIMN_MODELS="${LIMN_MODELS:-/data/weights/limn}"
export PYTHONPATH="$(dirname "$0")/.."
exec "${PYTHON:-python}" -m cli ui --listen --port "${LIMN_PORT:-7860}" --out "$out" --data "$data" --runs "$runs" "$@"
