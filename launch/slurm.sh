#!/usr/bin/env bash
# shellcheck disable=SC2153  # the environment file sets the names in capitals
# Submits jobs to a Slurm cluster with GPUs (docs/launch/slurm.md).
usage='usage: launch/slurm.sh COMMAND [--env FILE] [--dry_run] ...

  submit -- colm train ...   run on NODES nodes with GPUS_PER_NODE GPUs, a process per GPU; --distributed auto is added
  array COMMANDS.txt         run a job array: each line of the file on one GPU, at most ARRAY_LIMIT at a time'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
read_environment NAME PARTITION NODES GPUS_PER_NODE CPUS_PER_GPU TIME LOGS ARRAY_LIMIT RESTARTS

submit() { # flags, script, its arguments
  local flags=("--job-name=$NAME" "--partition=$PARTITION" "--time=$TIME" "--cpus-per-task=$CPUS_PER_GPU")
  if [[ -n ${ACCOUNT:-} ]]; then flags+=("--account=$ACCOUNT"); fi
  run mkdir -p "$LOGS" # sbatch does not create it, and the job would fail silently
  run env "COLM_LAUNCH=$here" "COLM_RESTARTS=$RESTARTS" sbatch "${flags[@]}" "$@"
}

case ${WORDS[0]} in
  submit)
    ((${#WORDS[@]} == 1)) || fail "submit: ${WORDS[1]}: write the command after --, as in -- colm train --base B ..."
    check_command
    check_mesh "$((NODES * GPUS_PER_NODE))" "$((NODES * GPUS_PER_NODE))" "NODES=$NODES times GPUS_PER_NODE=$GPUS_PER_NODE"
    submit "--nodes=$NODES" "--ntasks-per-node=$GPUS_PER_NODE" "--gpus-per-node=$GPUS_PER_NODE" \
      "--output=$LOGS/%x-%j.log" ${SBATCH_FLAGS[@]+"${SBATCH_FLAGS[@]}"} "$here/slurm.sbatch" "${AFTER[@]}"
    ;;
  array)
    ((${#WORDS[@]} == 2 && ${#AFTER[@]} == 0)) || fail "array: needs exactly one file of commands"
    commands=${WORDS[1]}
    check_commands "$commands"
    commands=$(cd "$(dirname "$commands")" && pwd)/${commands##*/}
    submit "--array=1-$(awk 'END {print NR}' "$commands")%$ARRAY_LIMIT" --nodes=1 --ntasks=1 --gpus-per-node=1 \
      "--output=$LOGS/%x-%A_%a.log" ${SBATCH_FLAGS[@]+"${SBATCH_FLAGS[@]}"} "$here/slurm_array.sbatch" "$commands"
    ;;
  *) fail "${WORDS[0]}: no such command; $0 --help" ;;
esac
