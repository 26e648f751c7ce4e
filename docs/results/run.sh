#!/bin/bash
# The experiment of docs/results.md: run.sh TABLES WORK SETTING TARGET...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports, Toys and Games. WORK gets a store for
# each target, whose sources leave out the users of the target, and WORK/SETTING/TARGET, the comparison. SETTING is
# strong or ant. Stopped anywhere, the same command goes on.
set -euo pipefail
tables=$1 work=$2 setting=$3
shift 3
all=(Beauty Sports Toys Games)

case $setting in
strong) flags=(--preset strong --width 64 --epochs 14 --pretrain-epochs 7) ;;
ant) flags=(--preset ant --width 64 --epochs 30 --pretrain-epochs 10 --patience 5 --stride 25) ;;
*) echo "SETTING $setting: strong or ant" >&2 && exit 2 ;;
esac

ingest() { # DOMAIN and further flags
    antpipe ingest table --domain "$1" --interactions "$tables/$1.interactions.csv.gz" \
        --items "$tables/$1.items.csv.gz" --time-unit order "${@:2}"
}

for target in "$@"; do
    export ANTPIPE_STORE=$work/to-$target
    sources=()
    for name in "${all[@]}"; do [ "$name" = "$target" ] || sources+=("$name"); done
    domains=$(IFS=, && echo "$target,${sources[*]}")
    ingest "$target"
    for name in "${sources[@]}"; do ingest "$name" --drop-shared-users-from "$target"; done
    antpipe embed-text --domains "$domains" --encoder packaged/all-MiniLM-L6-v2
    antpipe build-sequences --domains "$domains"
    antpipe compare --target "$target" --sources "$(IFS=, && echo "${sources[*]}")" --modalities text \
        --arms scratch,finetune,relearn,auto,popularity,item-knn,markov,text-nearest --seeds 3 \
        --valid-sample 10000 --save-every 3600 --out "$work/$setting/$target" "${flags[@]}"
done
