#!/bin/bash
# The experiment of docs/results.md: run.sh TABLES WORK SETTING ROWS TARGET...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports, Toys and Games. Each target is a shop of
# the first ROWS rows of its table (0: all of them). The sources are the other three tables, without the users of the
# target. WORK gets one store per target and, in WORK/SETTING-ROWS/TARGET, the comparison. SETTING is strong or ant.
# If it is interrupted, the same command continues.
set -euo pipefail
[ $# -ge 5 ] || { echo "usage: run.sh TABLES WORK SETTING ROWS TARGET..." >&2 && exit 2; }
tables=$1 work=$2 setting=$3 rows=$4
shift 4
for target in "$@"; do
    case $target in
    Beauty | Sports | Toys | Games) ;;
    *) echo "TARGET $target: Beauty, Sports, Toys or Games" >&2 && exit 2 ;;
    esac
done

case $setting in
strong) flags=(--preset strong --epochs 14 --pretrain-epochs 7 --pretrain-batch-size 2048) ;;
ant) flags=(--preset ant --epochs 30 --pretrain-epochs 10 --patience 5) ;;
*) echo "SETTING $setting: strong or ant" >&2 && exit 2 ;;
esac
few=()
[ "$rows" = 0 ] || few=(--limit "$rows" --min-item 3)

ingest() { # DOMAIN and further flags
    local name=$1
    shift
    antpipe ingest table --domain "$name" --interactions "$tables/$name.interactions.csv.gz" \
        --items "$tables/$name.items.csv.gz" --time-unit order "$@"
}

joined() { # words, with commas between
    local IFS=,
    echo "$*"
}

for target in "$@"; do
    export ANTPIPE_STORE=$work/to-$target-$rows
    sources=()
    for name in Beauty Sports Toys Games; do [ "$name" = "$target" ] || sources+=("$name"); done
    ingest "$target" ${few[@]+"${few[@]}"} # an empty array is unset for bash before 4.4
    for name in "${sources[@]}"; do ingest "$name" --drop-shared-users-from "$target"; done
    antpipe embed-text --domains "$(joined "$target" "${sources[@]}")" --encoder packaged/all-MiniLM-L6-v2
    antpipe build-sequences --domains "$(joined "$target" "${sources[@]}")"
    antpipe stats
    antpipe compare --target "$target" --sources "$(joined "${sources[@]}")" --modalities text --seeds 3 \
        --arms scratch,finetune,relearn,auto,sasrec,popularity,item-knn,markov,text-nearest \
        --valid-sample 10000 --save-every 3600 --out "$work/$setting-$rows/$target" "${flags[@]}"
done
