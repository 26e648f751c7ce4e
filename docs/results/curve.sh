#!/bin/bash
# What trained vectors add (docs/results.md): curve.sh TABLES WORK TARGET...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports, Toys and Games. Shops of 4,000 and 8,000
# users of each target are trained with and without transfer from the other three tables, which lack the target's users.
# WORK gets a store and a pre-trained run per target and, in WORK/TARGET-4000 and WORK/TARGET-8000, the comparisons. If it
# is interrupted, the same command continues.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: curve.sh TABLES WORK TARGET..." >&2 && exit 2; }
tables=$1 work=$2
shift 2
common=(--preset strong --modalities text --width 64)

ingest() { # DOMAIN and further flags
    local name=$1
    shift
    [ "$name" = Games ] && set -- --keep-without-metadata "$@"
    antpipe ingest table --domain "$name" --interactions "$tables/$name.interactions.csv.gz" \
        --items "$tables/$name.items.csv.gz" --time-unit order "$@"
}

for target in "$@"; do
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
    compare() { # USERS and how long to train
        antpipe compare --target "$target" --target-users "$1" --from "$work/pretrained-$target" \
            --arms floor,rerank-scratch,rerank,scratch,finetune,relearn --seeds 3 "${common[@]}" "${@:2}" \
            --out "$work/$target-$1"
    }
    compare 4000 --least-steps 32 --epochs 10
    compare 8000 --epochs 6
done
