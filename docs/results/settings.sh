#!/bin/bash
# What each setting of --preset strong is worth on validation: settings.sh WORK TARGET...
#
# WORK holds the stores that run.sh made with 75,000 rows. Trains scratch with the preset at width 64, and again with one
# thing changed at a time, one seed each; prints validation Recall@10 and NDCG@10. If it is interrupted, the same command
# continues.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: settings.sh WORK TARGET..." >&2 && exit 2; }
work=$1
shift

for target in "$@"; do
    export ANTPIPE_STORE=$work/to-$target-75000
    antpipe whiten --domains "$target" --modality text > /dev/null
    while IFS='|' read -r name changed; do
        run=$work/settings/$target/$name
        # shellcheck disable=SC2086 # several words
        antpipe train --stage scratch --domains "$target" --out "$run" --preset strong --modalities text --width 64 \
            --epochs 14 --save-every 3600 $([ -f "$run/state.safetensors" ] && echo --resume) $changed > /dev/null < /dev/null
        python - "$target" "$name" "$run/checkpoint.json" <<'PYTHON'
import json, sys
target, name, path = sys.argv[1:]
found = json.load(open(path, encoding="utf-8"))
recall, ndcg = (found["metrics"][key] for key in ("recall@10", "ndcg@10"))
print(f"{target:8} {name:16} {recall:.4f} {ndcg:.4f}  best epoch {found['best_epoch']} of {found['epochs']}")
PYTHON
    done <<'SETTINGS'
preset|
no-history-score|--no-history-score
no-ids|--no-transductive
whitened|--whitened text
experts-8|--experts 8
dropout-0.5|--hidden-dropout 0.5 --attention-dropout 0.5
lr-0.001|--lr 0.001
temperature-0.07|--temperature 0.07
width-128|--width 128
width-256|--width 256
SETTINGS
done
