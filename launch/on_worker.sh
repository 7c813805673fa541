#!/usr/bin/env bash
# Runs on each TPU VM, for tpu_vm.sh and skypilot.yaml; every worker has a copy.
#
#   on_worker.sh install REQUIREMENT      install Python 3.12 and the package in ~/colm-venv
#   on_worker.sh mount BUCKET DIR         mount the bucket at DIR
#   on_worker.sh start COMMAND...         run one command in the background, independent of the connection
#   on_worker.sh same COMMAND...          exit with 0 if this command was started last
#   on_worker.sh status                   print colm-status: none, running, lost, or the command's exit status
#   on_worker.sh stop                     send SIGTERM: training saves first; the job exits with 143
#   on_worker.sh log [--follow]           print the command's output
set -euo pipefail

job=$HOME/colm-run

install() {
  # The Python of the runtime images is too old; uv installs another.
  command -v uv >/dev/null || export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [[ -x $HOME/colm-venv/bin/python ]] || uv venv --quiet --python 3.12 "$HOME/colm-venv"
  uv pip install --quiet --python "$HOME/colm-venv/bin/python" --reinstall-package colm-jax "$1"
}

mount_bucket() {
  local bucket=$1 directory=$2
  ! mountpoint --quiet "$directory" || return 0
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc
    curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse
  fi
  sudo mkdir -p "$directory"
  sudo chown "$(id -u):$(id -g)" "$directory"
  # Workers read what others have just written, so metadata of files, or of their absence, must not be cached. The
  # default is a minute, on machines as large as these for ever.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$directory"
}

alive() { [[ -e $job/pid ]] && kill -0 "$(<"$job/pid")" 2>/dev/null; }

# Succeeds if this command was started last.
same() { [[ -e $job/command && $(printf '%q ' "$@") == "$(<"$job/command")" ]]; }

start() {
  local command
  command=$(printf '%q ' "$@")
  if alive && [[ ! -e $job/status ]]; then # with a status, it is about to exit
    if same "$@"; then
      echo "already running"
      return
    fi
    echo "on_worker.sh: another command runs: $(<"$job/command")" >&2
    exit 1
  fi
  mkdir -p "$job"
  rm -f "$job/status"
  printf '%s\n' "$command" >"$job/command"
  PATH="$HOME/colm-venv/bin:$PATH" setsid nohup bash "$0" supervise "$@" >>"$job/log" 2>&1 </dev/null &
  echo $! >"$job/pid"
}

# The background process: runs the command and stores its exit status.
supervise() {
  trap : TERM  # the whole process group gets it; the command handles it, and this script waits
  local status=0
  "$@" || status=$?
  echo "$status" >"$job/status.tmp"
  mv "$job/status.tmp" "$job/status"
}

status() {
  if [[ -e $job/status ]]; then
    echo "colm-status: $(<"$job/status")"
  elif alive; then
    echo "colm-status: running"
  elif [[ -e $job/status ]]; then  # it ended between the two checks
    echo "colm-status: $(<"$job/status")"
  elif [[ -e $job/pid ]]; then
    echo "colm-status: lost"
  else
    echo "colm-status: none"
  fi
}

stop() { ! alive || kill -TERM -- "-$(<"$job/pid")"; }

log() {
  if [[ ${1:-} == --follow ]]; then exec tail -n 40 -F "$job/log"; fi
  tail -n 40 "$job/log"
}

command=${1:-}
(($# == 0)) || shift
case $command in
  install | start | same | supervise | status | stop | log) "$command" "$@" ;;
  mount) mount_bucket "$@" ;;
  *)
    echo "on_worker.sh: $command: write install, mount, start, status, stop or log" >&2
    exit 2
    ;;
esac
