#!/usr/bin/env bash
# Shared by the two batch scripts: runs one step, stops it before the time limit, and requeues the job.
set -euo pipefail

# Slurm signals the batch shell (--signal=B:TERM@300) 300 s before the time limit. Training saves and exits with 143
# within a few steps, other stages at once; what takes longer keeps its finished parts and is killed.
patience=${COLM_PATIENCE:-240}

# Requeues the job, at most COLM_RESTARTS times. "Incomplete" leaves a cancelled job alone.
requeue() {
  if ((${SLURM_RESTART_COUNT:-0} >= ${COLM_RESTARTS:-20})); then
    echo "colm: requeued $SLURM_RESTART_COUNT times, the limit (RESTARTS); is TIME long enough to make progress?"
  else
    scontrol requeue Incomplete "$SLURM_JOB_ID"
  fi
}

# Runs a step and returns the job's exit status.
job_step() {
  local status=0 asked=false left=$patience step
  echo "colm: $(date --iso-8601=seconds) start ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this machine}"
  # srun's own signal forwarding is not used: it treats SIGTERM as a request to kill.
  trap 'asked=true; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
  # Without --kill-on-bad-exit=0 and --wait, Slurm would kill the other processes while they save as soon as the first
  # exits with 143. When one dies, the others notice within a minute.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since 22.05 srun does not inherit it from sbatch
  srun --kill-on-bad-exit=0 --wait=180 "$@" &
  step=$!
  wait "$step" || status=$?
  if $asked; then # the signal ended wait, not the step
    echo "colm: the time limit is near: sending SIGTERM, then requeueing"
    while ((left-- > 0)) && kill -0 "$step" 2>/dev/null; do sleep 1; done
    if kill -0 "$step" 2>/dev/null; then requeue; fi # ends this job
    status=0
    wait "$step" || status=$?
    if ((status == 143)); then requeue; fi
  fi
  return "$status"
}
