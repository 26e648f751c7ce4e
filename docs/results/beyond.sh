#!/bin/bash
# The methods beyond ANT of docs/results.md, on the Amazon reviews of 2018: beyond.sh REVIEWS WORK
#
# REVIEWS holds the reviews and metadata of Gift_Cards and Magazine_Subscriptions (docs/real-run.md). WORK gets a store and
# three comparisons. If it is interrupted, the same command continues.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: beyond.sh REVIEWS WORK" >&2 && exit 2; }
work=$2
export ANTPIPE_STORE=$work/store ANTPIPE_EMBED_TEXT_PRECISION=fp32 ANTPIPE_TRAIN_PRECISION=fp32

antpipe ingest amazon --source "$1" --domains Gift_Cards,Magazine_Subscriptions
antpipe embed-text --domains Gift_Cards,Magazine_Subscriptions --encoder packaged/all-MiniLM-L6-v2
antpipe quantize-price --domains Gift_Cards
antpipe build-sequences --domains Gift_Cards,Magazine_Subscriptions
common=(--target Gift_Cards --seeds 5 --epochs 20 --batch-size 256)
antpipe compare "${common[@]}" --sources Magazine_Subscriptions --peer-candidates 50 --out "$work/transfer" \
    --arms scratch,finetune,relearn,relearn+consensus,relearn+distil,relearn+behaviour,fork-merge \
    --unverified-weight 1 --unverified-gate 1
antpipe compare "${common[@]}" --sources Magazine_Subscriptions --modalities text --out "$work/verified" \
    --arms scratch,relearn,relearn+behaviour
antpipe compare "${common[@]}" --modalities text,price --out "$work/price" --arms scratch,scratch+balance
