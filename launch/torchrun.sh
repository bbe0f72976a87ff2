#!/usr/bin/env bash
# Every GPU of this node:  launch/torchrun.sh RUN.yaml [key=value ...]
# Several nodes, the same line on each:  NODES=4 HEAD=node-0:29500 launch/torchrun.sh RUN.yaml
set -euo pipefail
: "${1:?usage: launch/torchrun.sh RUN.yaml [key=value ...]}"
rendezvous=(--standalone)
[ "${NODES:-1}" = 1 ] || rendezvous=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?HEAD=host:port of one node}")
exec torchrun "${rendezvous[@]}" --nproc-per-node "${GPUS:-gpu}" -m llmtrain.train "$@"
