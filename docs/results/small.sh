#!/bin/bash
# The small shops of docs/results.md: small.sh TABLES WORK TARGET...
#
# TABLES holds NAME.interactions.csv.gz and NAME.items.csv.gz of Beauty, Sports, Toys and Games. WORK gets a store and, in
# WORK/TARGET, the comparison of nearest texts with the floor; the floor without words is printed.
# If it is interrupted, the same command continues.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: small.sh TABLES WORK TARGET..." >&2 && exit 2; }
tables=$1 work=$2
shift 2
export ANTPIPE_STORE=$work/store

for target in "$@"; do
    keep=()
    [ "$target" = Games ] && keep=(--keep-without-metadata)
    antpipe ingest table --domain "$target" --interactions "$tables/$target.interactions.csv.gz" \
        --items "$tables/$target.items.csv.gz" --time-unit order ${keep[@]+"${keep[@]}"}
    antpipe embed-text --domains "$target" --encoder packaged/all-MiniLM-L6-v2
    antpipe build-sequences --domains "$target"
    antpipe compare --target "$target" --target-users 500,1000,2000,4000 --arms text-nearest,floor \
        --out "$work/$target"
    for users in 500 1000 2000 4000; do
        domain=$target-$users-users
        antpipe train --stage floor --domains "$domain" --no-words --out "$work/without-words/$domain"
        antpipe evaluate --run "$work/without-words/$domain" --domains "$domain"
    done
done
