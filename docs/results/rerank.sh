#!/bin/bash
# What other shops teach a small one of ranking (docs/results.md): rerank.sh TABLES WORK TARGET...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports, Toys and Games. The re-ranker of each
# target is taught by the other three tables, which lack the target's users, and then by the target. WORK gets a store and
# a pre-trained run per target and, in WORK/TARGET, the comparison. If it is interrupted, the same command continues.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: rerank.sh TABLES WORK TARGET..." >&2 && exit 2; }
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
    antpipe compare --target "$target" --target-users 500,1000,2000 --from "$work/pretrained-$target" \
        --arms floor,rerank-scratch,rerank,scratch,finetune,relearn --seeds 3 "${common[@]}" --least-steps 32 --epochs 10 \
        --out "$work/$target"
done
