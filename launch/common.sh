#!/usr/bin/env bash
# Shared by the scripts of this directory: the environment file, one-line errors, commands that are printed or run.
# shellcheck disable=SC2034  # read by the scripts that source this one
set -euo pipefail

DRY_RUN=false
ENV_FILE=${COLM_ENV:-}
WORDS=()   # the script's own arguments: its subcommand and flags
AFTER=()   # the arguments after --

# Exits with status 2 and one line: the invalid input, and the remedy.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# A JSON string, which is also a YAML string.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "${text//$'\r'/\\r}"
}

# The command's words as a YAML list. Kubernetes expands $(VAR) in them and reads $$ as $.
words() {
  local word list=''
  for word in "$@"; do list+="${list:+, }$(json "${word//\$/\$\$}")"; done
  printf '[%s]' "$list"
}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# Splits a command line into ENV_FILE, DRY_RUN, WORDS and AFTER.
read_arguments() {
  while (($#)); do
    case $1 in
      --env)
        (($# > 1)) || fail "--env: needs a file name"
        ENV_FILE=$2
        shift
        ;;
      --env=*) ENV_FILE=${1#--env=} ;;
      --dry_run) DRY_RUN=true ;;
      --)
        shift
        AFTER=("$@")
        break
        ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
}

# The format of a value, as a regular expression and in words. Values without a line here are not checked.
_form() {
  case $1 in
    NAME) echo '^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ lower-case letters, digits and hyphens, a letter first, at most 50' ;;
    PROJECT) echo '^([a-z0-9.-]+:)?[a-z][-a-z0-9]*[a-z0-9]$ a project id, as in my-project' ;;
    ZONE) echo '^[a-z]+-[a-z]+[0-9]+-[a-z]$ a zone, as in us-west4-a' ;;
    ACCELERATOR) echo '^v[0-9][a-z0-9]*-[0-9]+$ a type and a number, as in v5litepod-16' ;;
    BUCKET) echo '^[a-z0-9][a-z0-9._-]+[a-z0-9]$ the bare name of a bucket, without gs://' ;;
    MOUNT) echo '^/.*[^/]$ an absolute path without a trailing slash' ;;
    SPOT) echo '^(true|false)$ true or false' ;;
    RESTARTS | ARRAY_LIMIT | POLL) echo '^[0-9]+$ a whole number' ;;
    GKE_HOSTS | GKE_CHIPS | NODES | GPUS_PER_NODE | CPUS_PER_GPU) echo '^[1-9][0-9]*$ a whole number, at least 1' ;;
    GKE_TOPOLOGY) echo '^[0-9]+x[0-9]+(x[0-9]+)?$ a topology, as in 4x4 or 2x2x4' ;;
    TIME) echo '^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ a Slurm time, as in 24:00:00 or 1-12:00:00' ;;
  esac
}

# Reads the environment file and checks that the named values are set and have the right format.
read_environment() {
  [[ -n $ENV_FILE ]] || fail "no environment file: copy launch/env.example.sh, fill it in, and give it with --env FILE"
  [[ -r $ENV_FILE && -f $ENV_FILE ]] || fail "--env $ENV_FILE: no such file; copy launch/env.example.sh"
  local broken name form
  [[ $ENV_FILE == */* ]] || ENV_FILE=./$ENV_FILE # else bash searches PATH first
  broken=$(bash -n "$ENV_FILE" 2>&1) || fail "${broken%%$'\n'*}"
  unset -v PROJECT ZONE NAME BUCKET MOUNT ACCELERATOR RUNTIME SPOT PACKAGE RESTARTS POLL KUBE_CONTEXT NAMESPACE CLAIM \
    SERVICE_ACCOUNT IMAGE CLUSTER GKE_ACCELERATOR GKE_TOPOLOGY GKE_HOSTS GKE_CHIPS PARTITION ACCOUNT NODES \
    GPUS_PER_NODE CPUS_PER_GPU TIME LOGS ARRAY_LIMIT  # ignore the caller's environment
  CREATE_FLAGS=() SSH_FLAGS=() SBATCH_FLAGS=()
  set +eu
  # shellcheck disable=SC1090
  source "$ENV_FILE" || fail "$ENV_FILE: its last command failed"
  set -eu
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$ENV_FILE: $name is not set; see launch/env.example.sh"
    form=$(_form "$name")
    [[ -z $form || ${!name} =~ ${form%% *} ]] || fail "$ENV_FILE: $name=${!name}: must be ${form#* }"
  done
}

# Checks that the arguments after -- are a colm command that takes --distributed, which the scripts add.
check_command() {
  [[ ${AFTER[0]:-} == colm ]] || fail "${WORDS[0]}: write the command after --, as in -- colm train --base B ..."
  case ${AFTER[1]:-} in
    run | score | train | calibrate | generate) ;;
    *) fail "colm ${AFTER[1]:-}: only run, score, train, calibrate and generate run in several processes" ;;
  esac
  case " ${AFTER[*]} " in *' --distributed'*) fail "--distributed: is added by this script; remove it" ;; esac
  case " ${AFTER[*]} " in *' --dry_run '*) fail "--dry_run: write it before --, else the command would run" ;; esac
  check_settings
}

# Checks the command's flags and settings with colm, if it is installed here, before machines cost money.
check_settings() {
  local i file
  command -v colm >/dev/null || return 0
  for ((i = 0; i < ${#AFTER[@]}; i++)); do
    case ${AFTER[i]} in
      --gin_file) file=${AFTER[i + 1]:-} ;;
      --gin_file=*) file=${AFTER[i]#--gin_file=} ;;
      *) continue ;;
    esac
    if [[ $file != gs://* && ! -r $file ]]; then # for example under MOUNT
      say "$file is not readable here, so the command's settings are not checked"
      return 0
    fi
  done
  colm check "${AFTER[@]:1}" || exit 2
}

# The last value of a flag of the command; empty if there is none.
flag() {
  local i value=''
  for ((i = 0; i < ${#AFTER[@]}; i++)); do
    case ${AFTER[i]} in
      "$1") value=${AFTER[i + 1]:-} ;;
      "$1="*) value=${AFTER[i]#"$1="} ;;
    esac
  done
  printf '%s' "$value"
}

# The machines' disks are deleted with them, so --out must be in a bucket or under MOUNT.
check_out() {
  local out
  out=$(flag --out)
  [[ -z $out || $out == gs://*/* ]] && return
  [[ -n ${MOUNT:-} && $out == "$MOUNT"/* ]] ||
    fail "--out $out: must be gs://BUCKET/NAME${MOUNT:+, or be under MOUNT ($MOUNT)}: machines' disks are deleted"
}

# The mesh must cover all devices of several hosts, or some of a single host.
check_mesh() { # DEVICES HOSTS WHERE
  local mesh taken
  mesh=$(flag --mesh)
  [[ -n $mesh ]] || return 0 # bound by gin, or missing, which colm reports
  [[ $mesh =~ ^[1-9][0-9]*,[1-9][0-9]*,[1-9][0-9]*$ ]] || fail "--mesh $mesh: must be three whole numbers, data,fsdp,tensor, as in 1,$1,1"
  taken=$((${mesh//,/*}))
  ((taken == $1 || ($2 == 1 && taken < $1))) ||
    fail "--mesh $mesh: takes $taken devices, and $3 has $1; write --mesh DATA,FSDP,TENSOR whose product is $1"
}

# The same for a Cloud TPU slice, ACCELERATOR: N of v4-N and v5p-N counts cores, two per device; else devices.
check_slice() {
  local devices=${ACCELERATOR##*-} one_host=8
  case $ACCELERATOR in v4-* | v5p-*) devices=$((devices / 2)) one_host=4 ;; esac
  check_mesh "$devices" "$(((devices + one_host - 1) / one_host))" "ACCELERATOR=$ACCELERATOR"
}

# If MOUNT is set, the bucket is mounted there.
read_mount() { [[ -z ${MOUNT:-} ]] || read_environment BUCKET MOUNT; }

# Checks a file of commands, one per line, such as the output of `colm sweep ... --commands`.
check_commands() {
  local empty
  [[ -s $1 ]] || fail "array: $1: no such file, or empty; make one with colm sweep ... --commands > FILE"
  empty=$(grep -nm1 '^[[:space:]]*$' "$1" || true)
  [[ -z $empty ]] || fail "array: $1:${empty%%:*}: empty line; each line must be one command"
}

# Quotes words as one line that a shell parses back to the same words.
quoted() {
  local word line='' quote="'\\''" # in a variable: bash 4.2 would keep the quotes
  for word in "$@"; do
    [[ -n $word && $word != *[!a-zA-Z0-9_./:=@%+,-]* ]] || word="'${word//\'/$quote}'"
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# Prints and runs a command; with --dry_run only prints it.
run() {
  if $DRY_RUN; then
    quoted "$@"
    echo
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}
