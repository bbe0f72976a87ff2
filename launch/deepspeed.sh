#!/usr/bin/env bash
# Every GPU of this node:            launch/deepspeed.sh RUN.yaml [key=value ...]
# Some of them:              GPUS=4  launch/deepspeed.sh RUN.yaml
# Every node of a host file: HOSTFILE=launch/hostfile launch/deepspeed.sh RUN.yaml   (needs ssh between the nodes)
set -euo pipefail
: "${1:?usage: launch/deepspeed.sh RUN.yaml [key=value ...]}"
export PYTHONSAFEPATH=1  # files of this folder are no modules (Python 3.11 and later)
exec deepspeed ${HOSTFILE:+--hostfile "$HOSTFILE"} ${GPUS:+--num_gpus "$GPUS"} --module llmtrain.train "$@"
