#!/bin/bash
# What trained vectors add (docs/results.md): curve.sh TABLES WORK TARGET USERS...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports, Toys and Games. Shops of so many random
# users of the target (`whole`: all of them) are trained with and without transfer from the other three tables, which lack
# the target's users. WORK gets a store and a pre-trained run for the target and, in WORK/TARGET-USERS, the comparisons.
# If it is interrupted, the same command continues.
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: curve.sh TABLES WORK TARGET USERS..." >&2 && exit 2; }
tables=$1 work=$2 target=$3
shift 3
common=(--preset strong --modalities text --width 64)

ingest() { # DOMAIN and further flags
    local name=$1
    shift
    [ "$name" = Games ] && set -- --keep-without-metadata "$@"
    antpipe ingest table --domain "$name" --interactions "$tables/$name.interactions.csv.gz" \
        --items "$tables/$name.items.csv.gz" --time-unit order "$@"
}

export ANTPIPE_STORE=$work/to-$target
sources=()
for name in Beauty Sports Toys Games; do [ "$name" = "$target" ] || sources+=("$name"); done
ingest "$target"
for name in "${sources[@]}"; do ingest "$name" --drop-shared-users-from "$target"; done
domains=$(IFS=, && echo "${sources[*]}")
antpipe embed-text --domains "$target,$domains" --encoder packaged/all-MiniLM-L6-v2
antpipe build-sequences --domains "$target,$domains"
antpipe train --stage pretrain --domains "$domains" "${common[@]}" --epochs 6 --lr 0.003 --least-steps 32 \
    --batch-size 1024 --pretrain-drawn 1024 --valid-sample 1000 --out "$work/pretrained-$target"
for users in "$@"; do
    size=(--target-users "$users")
    [ "$users" = whole ] && size=()
    antpipe compare --target "$target" "${size[@]}" --from "$work/pretrained-$target" \
        --arms floor,rerank-scratch,rerank,scratch,finetune,relearn --seeds 3 "${common[@]}" --epochs 6 \
        --out "$work/$target-$users"
done
