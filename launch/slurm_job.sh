#!/usr/bin/env bash
# What the two batch scripts do within a job: one step that is told in time to stop, and whose job is then requeued.
set -euo pipefail

# Slurm tells the batch shell (--signal=B:TERM@300) 300 s before the time limit. Training saves and ends with 143 within
# a few steps of training, other stages at once; what takes longer has kept what it had finished, and is cut off.
patience=${COLM_PATIENCE:-240}

# The job once more, if not too often. "Incomplete" leaves alone a job that its user has cancelled meanwhile.
requeue() {
  if ((${SLURM_RESTART_COUNT:-0} >= ${COLM_RESTARTS:-20})); then
    echo "colm: requeued $SLURM_RESTART_COUNT times (RESTARTS), which is enough; is TIME long enough to get anywhere?"
  else
    scontrol requeue Incomplete "$SLURM_JOB_ID"
  fi
}

# Runs a step; the job's exit status.
job_step() {
  local status=0 asked=false left=$patience step
  echo "colm: $(date --iso-8601=seconds) start ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-this machine}"
  # Not srun's own signal forwarding: it takes SIGTERM as an order to kill.
  trap 'asked=true; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
  # Without --kill-on-bad-exit=0 and --wait the first process to end, with 143, would have the others killed while they
  # save. When one dies, the others notice within a minute.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # from 22.05 on srun does not take it from sbatch
  srun --kill-on-bad-exit=0 --wait=180 "$@" &
  step=$!
  wait "$step" || status=$?
  if $asked; then # the signal ended the waiting, not the step
    echo "colm: the time limit is near: SIGTERM, then once more"
    while ((left-- > 0)) && kill -0 "$step" 2>/dev/null; do sleep 1; done
    if kill -0 "$step" 2>/dev/null; then requeue; fi # ends this job
    status=0
    wait "$step" || status=$?
    if ((status == 143)); then requeue; fi
  fi
  return "$status"
}
