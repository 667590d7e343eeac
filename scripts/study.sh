#!/bin/bash
# A small but complete study of the GPT and the HydraNet on a dojo-tray: collectives, scaling, what-if, tuning.
# Usage: scripts/study.sh [FOLDER]; MESHEMU names the command (default: python -m meshemu of the first python in PATH).
set -euo pipefail
out=${1:-results/study}
meshemu=${MESHEMU:-python -m meshemu}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
tray=system.preset=dojo-tray
mkdir -p "$out"

$meshemu collectives --system dojo-tray --sizes 1KiB 32KiB 1MiB 32MiB --kinds all_reduce -o "$out/collectives"
$meshemu scale configs/gpt.toml --devices 25 50 100 150 300 --set data.batch_size=600 -o "$out/scale-gpt"
for model in gpt hydranet; do
    $meshemu tune "configs/$model.toml" --set $tray --trials 12 -o "$out/tune-$model"
    # The best plan is run (timed only) and asked what would help it most.
    $meshemu run "$out/tune-$model/tuned.toml" --no-execute --steps 1 -o "$out/$model.h5" --overwrite
    $meshemu whatif "$out/$model.h5" --pairs -o "$out/whatif-$model"
done
