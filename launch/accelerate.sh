#!/usr/bin/env bash
# launch/accelerate.sh launch/accelerate/zero3.yaml RUN.yaml [key=value ...]
# PROCESSES=16 overrides num_processes of the accelerate file.
set -euo pipefail
: "${2:?usage: launch/accelerate.sh ACCELERATE.yaml RUN.yaml [key=value ...]}"
file=$1; shift
export PYTHONSAFEPATH=1  # files of this folder are no modules (Python 3.11 and later)
exec accelerate launch --config_file "$file" ${PROCESSES:+--num_processes "$PROCESSES"} -m llmtrain.train "$@"
