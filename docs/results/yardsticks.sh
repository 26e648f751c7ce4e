#!/bin/bash
# The yardsticks of docs/results.md: yardsticks.sh TABLES WORK TARGET...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports and Toys. WORK gets a store and, in
# WORK/TARGET, the comparison. --device cuda is used if there is a GPU. If it is interrupted, the same command continues.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: yardsticks.sh TABLES WORK TARGET..." >&2 && exit 2; }
tables=$1 work=$2
shift 2
export ANTPIPE_STORE=$work/store

for target in "$@"; do
    antpipe ingest table --domain "$target" --interactions "$tables/$target.interactions.csv.gz" \
        --items "$tables/$target.items.csv.gz" --time-unit order
    antpipe embed-text --domains "$target" --encoder packaged/all-MiniLM-L6-v2
    antpipe build-sequences --domains "$target"
    common=(--target "$target" --seeds 3 --epochs 20 --valid-sample 10000 --save-every 3600 --preset strong --no-words)
    # SASRec has a search of its own, so it is trained with settings of its own.
    antpipe compare --arms sasrec --modalities text --layers 2 --hidden-dropout 0.5 --attention-dropout 0.5 \
        --smallest-batch 0 --least-steps 0 --out "$work/$target-sasrec" "${common[@]}"
    antpipe compare --arms scratch,floor,tgh,markov,text-nearest --modalities text --out "$work/$target" "${common[@]}"
done
