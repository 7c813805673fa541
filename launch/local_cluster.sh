#!/usr/bin/env bash
# Runs N processes on this machine's CPU as one job, connected by jax.distributed over loopback: a rehearsal of a slice
# of N hosts (docs/launch/laptop.md).
usage='usage: launch/local_cluster.sh N [--devices D] [--dry_run] -- colm train|score|calibrate|generate|run ARGUMENTS...

  N             processes
  --devices D   CPU devices per process, 1 by default; the --mesh of the command must cover all N x D

Output lines of process 1 begin with [1], and so on. Exits with the first status that is not 0.'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
count=${WORDS[0]} devices=1
case ${#WORDS[@]} in
  1) ;;
  3) [[ ${WORDS[1]} == --devices ]] || fail "${WORDS[1]}: no such flag; $0 --help" && devices=${WORDS[2]} ;;
  *) fail "${WORDS[*]}: write the number of processes, and the command after --; $0 --help" ;;
esac
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "$count: must be the number of processes, as in $0 2 -- colm score ..."
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices $devices: must be a whole number, at least 1"
check_command

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

pids=()
for ((i = 0; i < count; i++)); do
  command=("${AFTER[@]}" --distributed "localhost:$port,$count,$i")
  if $DRY_RUN; then
    run env JAX_PLATFORMS=cpu "XLA_FLAGS=$XLA_FLAGS" "${command[@]}"
  elif ((i == 0)); then
    "${command[@]}" &
    pids+=($!)
  else
    "${command[@]}" > >(sed -u "s/^/[$i] /") 2> >(sed -u "s/^/[$i] /" >&2) &
    pids+=($!)
  fi
done

# If a process dies, this script does not stop the others: they notice by themselves, as on separate machines.
stopped=false
trap 'stopped=true; kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
outcome=0
for i in "${!pids[@]}"; do
  while :; do
    status=0
    wait "${pids[i]}" || status=$?
    if $stopped && kill -0 "${pids[i]}" 2>/dev/null; then continue; fi # the signal ended wait, not the process
    break
  done
  if ((status != 0)); then
    say "process $i of $count ended with status $status$( ((status <= 128)) || echo " (signal $((status - 128)))")"
    ((outcome != 0)) || outcome=$status
  fi
done
exit "$outcome"
