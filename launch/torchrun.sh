#!/usr/bin/env bash
# Every GPU of this node:  launch/torchrun.sh RUN.yaml [key=value ...]
# Several nodes, the same line on each:  NODES=4 HEAD=node-0:29500 launch/torchrun.sh RUN.yaml
# Nodes that come and go while it trains:  NODES=1:4 HEAD=node-0:29500 RESTARTS=100 launch/torchrun.sh RUN.yaml
set -euo pipefail
: "${1:?usage: launch/torchrun.sh RUN.yaml [key=value ...]}"
rendezvous=(--standalone)
if [ "${NODES:-1}" != 1 ]; then
  rendezvous=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?HEAD=host:port of one node}"
    --max-restarts "${RESTARTS:-0}")
  # torch 2.13: with a shared store a node that joins later is never told the address, and all give up
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
export PYTHONSAFEPATH=1  # files of this folder are no modules
exec torchrun "${rendezvous[@]}" --nproc-per-node "${GPUS:-gpu}" --no-python llmtrain train "$@"
