#!/usr/bin/env bash
# shellcheck disable=SC2153  # the environment file sets the names in capitals
# Runs a colm command on Cloud TPU VMs from queued resources, from creation to deletion (docs/launch/tpu.md).
usage='usage: launch/tpu_vm.sh COMMAND [--env FILE] [--dry_run] [-- colm ARGUMENTS...]

  train -- colm train ...   do everything: create, wait, install, mount, start, monitor, delete. Preempted machines are
                            replaced, and the same command resumes. --keep: do not delete the machines.
                            Rerun it to monitor a running job.
  create                    request the TPUs (ZONE, ACCELERATOR, RUNTIME, SPOT)
  wait                      wait until they are ready
  install                   install the package (PACKAGE) on all workers
  mount                     mount the bucket (BUCKET) at MOUNT on all workers
  start -- colm ...         start the command on all workers, in the background; --distributed auto is added
  status                    print the status of the TPUs, and of the job on each worker
  logs [--follow]           print the log of the first worker
  stop                      send SIGTERM to the job: training saves and exits (end train first: it restarts the job)
  delete                    delete the TPUs, not the bucket'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
# All values are checked before anything is requested.
read_environment PROJECT ZONE NAME ACCELERATOR RUNTIME SPOT PACKAGE RESTARTS POLL
read_mount

where=("--project=$PROJECT" "--zone=$ZONE")
queued=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
patience=10  # consecutive checks at which workers may be unreachable

# Retries a command; Google's services are unreachable now and then.
insist() {
  local try
  for ((try = 1; try <= patience; try++)); do
    if "$@"; then return 0; fi
    ((try == patience)) || sleep "$POLL"
  done
  say "$1 failed $patience times, see above. The TPUs may exist and cost: $0 status, $0 delete"
  exit 1
}

# --- single steps

create() {
  local flags=("--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
  if $SPOT; then flags+=(--spot); fi
  run "${queued[@]}" create "$NAME" "${where[@]}" "${flags[@]}" ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"}
}

# State of the queued resource; MISSING if there is none.
state() {
  local ask=("${queued[@]}" describe "$NAME" "${where[@]}" '--format=value(state.state)') answer try
  if $DRY_RUN; then
    run "${ask[@]}" >&3
    echo ACTIVE
    return
  fi
  for ((try = 0; try < patience; try++)); do
    if answer=$("${ask[@]}" 2>&1); then
      echo "${answer##*$'\n'}"  # warnings come first
      return
    fi
    if [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
      echo MISSING
      return
    fi
    sleep "$POLL"
  done
  say "gcloud failed: ${answer//$'\n'/ }"
  return 1
}
exec 3>&1  # for commands that a dry run prints from within $(...)

# State of the machines, as in READY or PREEMPTED.
node_state() { "${vm[@]}" describe "$NAME" "${where[@]}" '--format=value(state)' 2>/dev/null || echo UNKNOWN; }

# Returns 0 when the TPUs are ready, 3 if they will not become ready.
wait_active() {
  local now last=''
  while :; do
    now=$(state) || exit 1
    [[ $now == "$last" ]] || say "$NAME is $now"
    last=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED) return 3 ;;
      MISSING | DELETING) say "$NAME: no such queued resource (any more)" && exit 1 ;;
    esac
    sleep "$POLL"
  done
}

on_workers() { # WORKER COMMAND: a line for the worker's shell
  run "${vm[@]}" ssh "$NAME" "${where[@]}" "--worker=$1" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} "--command=$2"
}

worker_script() { quoted bash colm-launch/on_worker.sh "$@"; }

check_package() {
  case $PACKAGE in
    *.whl | *.tar.gz) [[ $PACKAGE == *://* || -f $PACKAGE ]] || fail "$ENV_FILE: PACKAGE=$PACKAGE: no such file" ;;
  esac
}

install() {
  local files=("$here/on_worker.sh") requirement=$PACKAGE # joined by &&: callers check the result
  if [[ -f $PACKAGE ]]; then
    files+=("$PACKAGE")
    requirement="./colm-launch/${PACKAGE##*/}[tpu,gcs]"
  fi
  on_workers all 'mkdir -p colm-launch' &&
    run "${vm[@]}" scp "${files[@]}" "$NAME:colm-launch/" "${where[@]}" --worker=all \
      ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} &&
    on_workers all "$(worker_script install "$requirement")"
}

mount_bucket() { [[ -z ${MOUNT:-} ]] || on_workers all "$(worker_script mount "$BUCKET" "$MOUNT")"; }

start() { on_workers all "$(worker_script start "${AFTER[@]}" --distributed auto)"; }

delete() { run "${queued[@]}" delete "$NAME" "${where[@]}" --force --quiet; }

# The worst status of the job over the workers: none, running, lost, or a number; empty if a worker is unreachable.
job_status() {
  local answer ask
  ask="[ ! -e colm-launch/on_worker.sh ] && echo 'colm-status: none' || $(worker_script status)"
  if $DRY_RUN; then
    on_workers all "$ask" >&3
    echo 0
    return
  fi
  answer=$("${vm[@]}" ssh "$NAME" "${where[@]}" --worker=all ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} \
    "--command=$ask" 2>/dev/null) || return 0
  answer=$(sed -n 's/^colm-status: //p' <<<"$answer" | sort -u)
  local word
  for word in running none 2 lost 143 1; do # causes before consequences
    if grep -qx -- "$word" <<<"$answer"; then
      echo "$word"
      return
    fi
  done
  echo "${answer##*$'\n'}"
}

# --- everything

# 0: the job is done. 3: the machines are gone. 4: the job was stopped on machines that still exist. Else it failed.
watch() {
  local now job silent=0
  while :; do
    now=$(state) || exit 1
    case $now in
      ACTIVE) ;;
      SUSPENDING | SUSPENDED | FAILED) return 3 ;;
      *) say "$NAME is $now: somebody deleted it; exiting" && exit 1 ;;
    esac
    job=$(job_status)
    case $job in
      0) return 0 ;;
      running) silent=0 ;;
      '')
        [[ $(node_state) != PREEMPTED ]] || return 3
        silent=$((silent + 1))
        if ((silent >= patience)); then
          say "the workers are unreachable; the job may still run, and the TPUs cost: $0 status, $0 delete"
          exit 1
        fi
        ;;
      *)
        sleep "$POLL"  # a job often ends before its machines are reported as gone
        now=$(state) || exit 1
        [[ $now == ACTIVE && $(node_state) == READY ]] || return 3
        case $job in 143 | lost | none) return 4 ;; *) return 1 ;; esac
        ;;
    esac
    sleep "$POLL"
  done
}

prepare() { # returns 3 if the machines do not become ready, or are preempted meanwhile
  wait_active || return 3
  if install && mount_bucket && start; then return 0; fi
  [[ $(state) == ACTIVE && $(node_state) == READY ]] || return 3
  say "setup failed; the TPUs exist and cost: fix the problem and rerun train, or $0 delete"
  exit 1
}

# The job's status once it is known, or gone. A worker that is unreachable may still run, so nothing is set up there.
settled_status() {
  local job try
  for ((try = 0; try < patience; try++)); do
    job=$(job_status)
    [[ -n $job || $(node_state) != PREEMPTED ]] || job=gone
    if [[ -n $job ]]; then
      echo "$job"
      return
    fi
    sleep "$POLL"
  done
  say "the workers are unreachable; the job may still run, and the TPUs cost: $0 status, $0 delete"
  return 1
}

train() {
  local restarts=0 outcome now
  if $DRY_RUN; then
    create && wait_active && install && mount_bucket && start
    state >/dev/null && job_status >/dev/null
    echo "# if the machines are preempted: delete, then all of the above again, at most $RESTARTS times"
    if ! $keep; then delete; fi
    return
  fi
  now=$(state) || exit 1
  if [[ $now == MISSING ]]; then create; else say "$NAME exists ($now)"; fi
  if [[ $now == FAILED ]]; then refused; fi # there may never have been a machine
  local job=none same=false
  if [[ $now == ACTIVE ]]; then job=$(settled_status) || exit 1; fi
  case $job in running | 0) ! on_workers all "$(worker_script same "${AFTER[@]}" --distributed auto)" || same=true ;; esac
  if $same; then
    say "the job exists ($job); monitoring it"
    outcome=0
  elif [[ $job == running ]]; then
    say "another command runs there: $0 logs shows it, $0 stop ends it"
    exit 1
  elif [[ $job != gone ]] && prepare; then
    outcome=0
  else
    [[ $now != MISSING || $(state) != FAILED ]] || refused
    outcome=3
  fi
  while :; do
    if ((outcome == 0)); then
      outcome=0
      watch || outcome=$?
    fi
    case $outcome in
      0)
        say "done; the results are in --out"
        if $keep; then say "the TPUs are kept and cost: $0 delete"; else insist delete; fi
        return
        ;;
      3 | 4)
        if ((restarts >= RESTARTS)); then
          run "${queued[@]}" describe "$NAME" "${where[@]}" || true
          say "restarted $restarts times, the limit (RESTARTS); the TPUs may exist and cost: $0 delete"
          exit 1
        fi
        restarts=$((restarts + 1))
        if ((outcome == 3)); then
          say "the machines are gone; requesting new ones and rerunning the command ($restarts of $RESTARTS)"
          insist delete
          sleep "$POLL"
          insist create
          outcome=0
          prepare || outcome=$?
        else
          say "the job was stopped; rerunning the command ($restarts of $RESTARTS)"
          outcome=3
          if mount_bucket && start; then outcome=0; fi # a rebooted machine has lost its mount
        fi
        ;;
      *)
        on_workers 0 "$(worker_script log)" || true
        say "the job failed; the first worker's log is above. The TPUs exist and cost: $0 delete"
        exit 1
        ;;
    esac
  done
}

refused() {
  run "${queued[@]}" describe "$NAME" "${where[@]}" || true
  say "the request failed before there was a machine (quota, zone, type?), see above. Then: $0 delete"
  exit 1
}

keep=false follow=''
for word in "${WORDS[@]:1}"; do
  case "${WORDS[0]} $word" in
    'train --keep') keep=true ;;
    'logs --follow') follow=--follow ;;
    *) fail "${WORDS[0]}: $word: no such flag; $0 --help" ;;
  esac
done

case ${WORDS[0]} in
  create) create ;;
  wait) wait_active || { say "$NAME will not become ready; see $0 status, then $0 delete" && exit 1; } ;;
  install)
    check_package
    install
    ;;
  mount)
    [[ -n ${MOUNT:-} ]] || fail "$ENV_FILE: MOUNT is not set, so there is nothing to mount; see launch/env.example.sh"
    mount_bucket
    ;;
  start)
    check_command
    check_out
    check_slice
    start
    ;;
  status)
    run "${queued[@]}" describe "$NAME" "${where[@]}"
    on_workers all "$(worker_script status)"
    ;;
  logs) if [[ -n $follow ]]; then on_workers 0 "$(worker_script log --follow)"; else on_workers 0 "$(worker_script log)"; fi ;;
  stop) on_workers all "$(worker_script stop)" ;;
  delete) delete ;;
  train)
    check_command
    check_out
    check_package
    check_slice
    train
    ;;
  *) fail "${WORDS[0]}: no such command; $0 --help" ;;
esac
