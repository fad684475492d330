#!/bin/bash
# Trains on a Spot TPU slice, and creates another one after each preemption. Run it where gcloud is:
#   NAME=cutmix ZONE=us-central2-b TYPE=v4-16 VERSION=tpu-ubuntu2204-base \
#     SETUP='...' WORKDIR=gs://bucket/resnet50 bash scripts/spot_tpu.sh --config configs/imagenet.py
# SETUP runs on every host of a new slice. It installs the repository into ~/cutmix_jax, and mounts
# the folder of WORKDIR if that is not in a bucket.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${SETUP:?}" "${WORKDIR:?}"
tpus=(gcloud compute tpus)

state() {
  "${tpus[@]}" queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'
}
on_all_hosts() {
  "${tpus[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

train=$(printf ' %q' python3 main.py --workdir="$WORKDIR" --distributed "$@")
results=$(printf %q "$WORKDIR/results.json")
case "$WORKDIR" in
  gs://*) finished="gcloud storage ls $results" ;;
  *) finished="test -f $results" ;;
esac
for ((attempt = 1; attempt <= ${ATTEMPTS:-100}; attempt++)); do
  "${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet || true
  "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case "$now" in FAILED | SUSPENDED) continue 2 ;; esac # it will not become active any more
    sleep "${WAIT:-30}"
  done
  # A preempted host ends the connection with an error. An interrupted run has no results.
  if on_all_hosts "$SETUP" && on_all_hosts "cd cutmix_jax &&$train && $finished"; then
    "${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    exit 0
  fi
done
"${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet || true
echo "Not finished after ${ATTEMPTS:-100} attempts." >&2
exit 1
