#!/usr/bin/env bash
# shellcheck disable=SC2153  # the environment file sets the names in capitals
# Cloud TPU VMs by queued resources, from nothing to a trained team and back to nothing (docs/launch/tpu.md).
usage='usage: launch/tpu_vm.sh COMMAND [--env FILE] [--dry_run] [-- colm ARGUMENTS...]

  train -- colm train ...   all of it: create, wait, install, mount, start, watch; where the machines are taken away,
                            new ones and the same command, which goes on where it was; at the end delete.
                            --keep: leaves the machines. Called again, it goes on watching a job that runs.
  create                    ask for the TPUs (ZONE, ACCELERATOR, RUNTIME, SPOT)
  wait                      until they are there
  install                   the package (PACKAGE), on all workers
  mount                     the bucket (BUCKET) at MOUNT, on all workers
  start -- colm ...         on all workers, in the background; --distributed auto is added
  status                    of the TPUs, and of the job on each worker
  logs [--follow]           of the first worker
  stop                      SIGTERM to the job: training saves and ends (end train first: it starts a stopped job again)
  delete                    the TPUs; the bucket stays'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
# ZONE, PROJECT and NAME say which TPUs; the rest, what they are to do. All is checked before anything is asked for.
read_environment PROJECT ZONE NAME ACCELERATOR RUNTIME SPOT PACKAGE RESTARTS POLL
read_mount

where=("--project=$PROJECT" "--zone=$ZONE")
queued=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
patience=10  # looks in a row at which workers may be out of reach

# Does something again while it fails; Google's services are out of reach now and then.
insist() {
  local try
  for ((try = 1; try <= patience; try++)); do
    if "$@"; then return 0; fi
    ((try == patience)) || sleep "$POLL"
  done
  say "$1 failed $patience times; above, why. The TPUs may be there, and cost: $0 status, $0 delete"
  exit 1
}

# --- one step each

create() {
  local flags=("--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
  if $SPOT; then flags+=(--spot); fi
  run "${queued[@]}" create "$NAME" "${where[@]}" "${flags[@]}" ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"}
}

# State of the queued resource; MISSING where there is none.
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
  say "gcloud does not answer: ${answer//$'\n'/ }"
  return 1
}
exec 3>&1  # for commands that a dry run prints from within $(...)

# State of the machines themselves, as in READY or PREEMPTED.
node_state() { "${vm[@]}" describe "$NAME" "${where[@]}" '--format=value(state)' 2>/dev/null || echo UNKNOWN; }

# 0 when the TPUs are there, 3 where they will not come.
wait_active() {
  local now last=''
  while :; do
    now=$(state) || exit 1
    [[ $now == "$last" ]] || say "$NAME is $now"
    last=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED) return 3 ;;
      MISSING | DELETING) say "$NAME: there is no such queued resource (any more)" && exit 1 ;;
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
  local files=("$here/on_worker.sh") requirement=$PACKAGE # joined by &&: callers ask whether it worked
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

# The worst that the workers say of the job: none, running, lost, a number; nothing where one is out of reach.
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
  for word in running none 2 lost 143 1; do # what happened comes before what followed from it
    if grep -qx -- "$word" <<<"$answer"; then
      echo "$word"
      return
    fi
  done
  echo "${answer##*$'\n'}"
}

# --- all of it

# 0: the job is done. 3: the machines are gone. 4: the job was stopped on machines that are still there. Else it failed.
watch() {
  local now job silent=0
  while :; do
    now=$(state) || exit 1
    case $now in
      ACTIVE) ;;
      SUSPENDING | SUSPENDED | FAILED) return 3 ;;
      *) say "$NAME is $now: somebody deletes it; nothing more is done" && exit 1 ;;
    esac
    job=$(job_status)
    case $job in
      0) return 0 ;;
      running) silent=0 ;;
      '')
        [[ $(node_state) != PREEMPTED ]] || return 3
        silent=$((silent + 1))
        if ((silent >= patience)); then
          say "the workers are out of reach; the job may still run, and the TPUs cost: $0 status, $0 delete"
          exit 1
        fi
        ;;
      *)
        sleep "$POLL"  # a job often ends before its machines are said to be gone
        now=$(state) || exit 1
        [[ $now == ACTIVE && $(node_state) == READY ]] || return 3
        case $job in 143 | lost | none) return 4 ;; *) return 1 ;; esac
        ;;
    esac
    sleep "$POLL"
  done
}

prepare() { # 3 where the machines do not come, or go meanwhile
  wait_active || return 3
  if install && mount_bucket && start; then return 0; fi
  [[ $(state) == ACTIVE && $(node_state) == READY ]] || return 3
  say "could not be set up; the TPUs are there, and cost: mend it and call train again, or $0 delete"
  exit 1
}

# The job's status, once it is known, or gone: a worker that is out of reach may still work, so nothing is set up there.
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
  say "the workers are out of reach; the job may still run, and the TPUs cost: $0 status, $0 delete"
  return 1
}

train() {
  local restarts=0 outcome now
  if $DRY_RUN; then
    create && wait_active && install && mount_bucket && start
    state >/dev/null && job_status >/dev/null
    echo "# where the machines are taken away: delete, then all of the above again, at most $RESTARTS times"
    if ! $keep; then delete; fi
    return
  fi
  now=$(state) || exit 1
  if [[ $now == MISSING ]]; then create; else say "$NAME is there ($now)"; fi
  if [[ $now == FAILED ]]; then refused; fi # nobody knows whether there ever was a machine
  local job=none same=false
  if [[ $now == ACTIVE ]]; then job=$(settled_status) || exit 1; fi
  case $job in running | 0) ! on_workers all "$(worker_script same "${AFTER[@]}" --distributed auto)" || same=true ;; esac
  if $same; then
    say "the job is there ($job); this watches it"
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
        say "done; its files are where --out says"
        if $keep; then say "the TPUs are kept, and cost: $0 delete"; else insist delete; fi
        return
        ;;
      3 | 4)
        if ((restarts >= RESTARTS)); then
          run "${queued[@]}" describe "$NAME" "${where[@]}" || true
          say "started anew $restarts times (RESTARTS), and stopped again; the TPUs may be there, and cost: $0 delete"
          exit 1
        fi
        restarts=$((restarts + 1))
        if ((outcome == 3)); then
          say "the machines are gone; new ones, and the same command ($restarts of $RESTARTS)"
          insist delete
          sleep "$POLL"
          insist create
          outcome=0
          prepare || outcome=$?
        else
          say "the job was stopped; the same command again ($restarts of $RESTARTS)"
          outcome=3
          if mount_bucket && start; then outcome=0; fi # a machine that was started anew has lost its mount
        fi
        ;;
      *)
        on_workers 0 "$(worker_script log)" || true
        say "the job failed; above, what the first worker wrote. The TPUs are there, and cost: $0 delete"
        exit 1
        ;;
    esac
  done
}

refused() {
  run "${queued[@]}" describe "$NAME" "${where[@]}" || true
  say "the request failed before there was a machine (quota, zone, type?); above, why. Then: $0 delete"
  exit 1
}

keep=false follow=''
for word in "${WORDS[@]:1}"; do
  case "${WORDS[0]} $word" in
    'train --keep') keep=true ;;
    'logs --follow') follow=--follow ;;
    *) fail "${WORDS[0]}: $word is not among its flags; $0 --help" ;;
  esac
done

case ${WORDS[0]} in
  create) create ;;
  wait) wait_active || { say "$NAME will not come; $0 status says why, $0 delete ends it" && exit 1; } ;;
  install)
    check_package
    install
    ;;
  mount)
    [[ -n ${MOUNT:-} ]] || fail "$ENV_FILE: MOUNT is not set, so there is nothing to be mounted; launch/env.example.sh says what it is"
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
