#!/bin/bash
# A study of built-in models on a dojo-tray: collectives, scaling, tuning, and what would help the tuned ones most.
# Usage: scripts/study.sh [FOLDER]; MESHEMU names the command (default: python -m meshemu of the first python in PATH),
# JOBS how many models are tuned at a time (default: one per core).
set -euo pipefail
export out=${1:-results/study} meshemu=${MESHEMU:-python -m meshemu} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$out"

# MODEL TRIALS: its fastest plan is run (timed only) and asked what would help it most.
of_model() {
    set -e
    $meshemu tune "configs/$1.toml" --set system.preset=dojo-tray --trials "$2" -o "$out/tune-$1" >"$out/tune-$1.log"
    $meshemu run "$out/tune-$1/tuned.toml" --no-execute --steps 1 -o "$out/$1.h5" --overwrite
    $meshemu whatif "$out/$1.h5" --pairs --jobs 1 -o "$out/whatif-$1" >"$out/whatif-$1.log"
    echo "$1: $(sed -n 2,3p "$out/tune-$1.log" | paste -sd, - | tr -s ' ')"
}
export -f of_model

$meshemu collectives --system dojo-tray --sizes 1KiB 32KiB 1MiB 32MiB --kinds all_reduce -o "$out/collectives"
$meshemu scale configs/gpt.toml --devices 25 50 100 150 300 --set data.batch_size=600 -o "$out/scale-gpt"
printf '%s\n' "resnet50 16" "hydranet 16" "occupancy 16" "gpt 24" |
    xargs -P "${JOBS:-$(nproc)}" -L 1 bash -c 'of_model "$@"' of_model
