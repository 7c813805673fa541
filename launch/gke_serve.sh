#!/usr/bin/env bash
# shellcheck disable=SC2153  # the environment file sets the names in capitals
# Serves a team on GKE, as a Deployment with a Service (docs/serving.md).
usage='usage: launch/gke_serve.sh COMMAND [--env FILE] [--dry_run] [-- colm serve ARGUMENTS...]

  render -- colm serve ...   print the manifest; address, port and key are added
  apply -- colm serve ...    apply the manifest to the cluster
  status                     print the status of the Deployment, its pods and the Service
  logs [--follow]            print the logs of all pods
  delete                     delete the Deployment and the Service, not the Secret or the cluster

The environment file has the values of launch/env.example.sh for GKE. Of a TPU slice GKE_TOPOLOGY must be one host. May
also be set:

  GKE_GPU=             type of the GPUs, as in nvidia-l4: GKE_CHIPS of them in place of TPU chips
  REPLICAS=1           servers, each with devices of its own
  KEY_SECRET=colm-key  Secret whose entry "key" holds the key that clients must send
  START_SECONDS=1800   for loading and compiling; then a container is restarted'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
follow=false
for word in "${WORDS[@]:1}"; do
  [[ "${WORDS[0]} $word" == 'logs --follow' ]] || fail "${WORDS[0]}: $word: no such flag; $0 --help"
  follow=true
done

# Checks that the command is `colm serve`, without the flags that this script adds.
check_serve() {
  local word
  [[ ${AFTER[0]:-} == colm && ${AFTER[1]:-} == serve ]] ||
    fail "${WORDS[0]}: write the command after --, as in -- colm serve --base gs://my-bucket/RUN/team"
  for word in "${AFTER[@]}"; do
    case $word in
      --host | --host=* | --port | --port=* | --api_key_env | --api_key_env=*)
        fail "${word%%=*}: is added by this script; remove it"
        ;;
      --dry_run) fail "--dry_run: write it before --" ;;
    esac
  done
  check_settings
}

# Checks that the mesh fits the machine, and that a TPU slice is one host.
check_machine() {
  local chips
  if [[ -z $GKE_GPU ]]; then
    chips=$((${GKE_TOPOLOGY//x/*}))
    ((chips == GKE_CHIPS)) ||
      fail "$ENV_FILE: GKE_TOPOLOGY=$GKE_TOPOLOGY: has $chips chips, and GKE_CHIPS=$GKE_CHIPS; a server runs on one host"
  fi
  check_mesh "$GKE_CHIPS" 1 "GKE_CHIPS=$GKE_CHIPS"
}

render() {
  local manifest nodes tolerations='[]' devices name drain
  if [[ -n $GKE_GPU ]]; then
    nodes="\"cloud.google.com/gke-accelerator\": $(json "$GKE_GPU")"
    devices="{nvidia.com/gpu: $GKE_CHIPS}"
  else
    nodes="\"cloud.google.com/gke-tpu-accelerator\": $(json "$GKE_ACCELERATOR"),"
    nodes+=" \"cloud.google.com/gke-tpu-topology\": $(json "$GKE_TOPOLOGY")"
    devices="{google.com/tpu: $GKE_CHIPS}"
  fi
  if $SPOT; then
    nodes+=', "cloud.google.com/gke-spot": "true"'
    tolerations='[{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]'
  fi
  drain=$(flag --drain)
  drain=${drain:-60}
  [[ $drain =~ ^[0-9]+$ ]] || fail "--drain $drain: must be a whole number of seconds here"
  manifest=$(<"$here/serve.yaml")
  manifest=${manifest//@NODES@/"{$nodes}"}
  manifest=${manifest//@TOLERATIONS@/"$tolerations"}
  manifest=${manifest//@DEVICES@/"$devices"}
  manifest=${manifest//@GRACE@/$((drain + 35))}
  manifest=${manifest//@FAILURES@/$((drain / 10 + 4))}
  manifest=${manifest//@STARTS@/$(((START_SECONDS + 9) / 10))}
  manifest=${manifest//@PROGRESS@/$((START_SECONDS + 600))}
  manifest=${manifest//@REPLICAS@/$REPLICAS}
  for name in NAME NAMESPACE SERVICE_ACCOUNT IMAGE KEY_SECRET; do
    manifest=${manifest//@$name@/"$(json "${!name}")"}
  done
  manifest=${manifest/@COMMAND@/"$(words "$@")"} # last: it may contain any text
  printf '%s\n' "$manifest"
}

# Applies a manifest to the cluster; with --dry_run, prints the whole command.
apply() {
  local command=(kubectl "--context=$KUBE_CONTEXT" apply -f -)
  if $DRY_RUN; then
    printf "%s <<'COLM_END'\n%s\nCOLM_END\n" "$(quoted "${command[@]}")" "$1"
  else
    run "${command[@]}" <<<"$1"
  fi
}

# Checks an optional value of the environment file: its name, its format in words, and as a regular expression.
check_value() { [[ ${!1} =~ $3 ]] || fail "$ENV_FILE: $1=${!1}: must be $2"; }

case ${WORDS[0]} in
  render | apply)
    unset -v GKE_GPU REPLICAS KEY_SECRET START_SECONDS # ignore the caller's environment
    read_environment NAME NAMESPACE KUBE_CONTEXT SERVICE_ACCOUNT IMAGE SPOT GKE_CHIPS
    [[ -n ${GKE_GPU:-} ]] || read_environment GKE_ACCELERATOR GKE_TOPOLOGY
    GKE_GPU=${GKE_GPU:-} REPLICAS=${REPLICAS:-1} KEY_SECRET=${KEY_SECRET:-colm-key} START_SECONDS=${START_SECONDS:-1800}
    check_value REPLICAS 'a whole number' '^[0-9]+$'
    check_value KEY_SECRET 'lower-case letters, digits, hyphens and dots' '^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'
    check_value START_SECONDS 'a whole number of seconds, at least 1' '^[1-9][0-9]*$'
    check_serve
    check_machine
    manifest=$(render "${AFTER[@]}" --host 0.0.0.0 --port 8000 --api_key_env COLM_SERVE_KEY)
    if [[ ${WORDS[0]} == render ]]; then
      printf '%s\n' "$manifest"
    else
      apply "$manifest"
    fi
    ;;
  status | logs | delete)
    read_environment NAME NAMESPACE KUBE_CONTEXT
    control=(kubectl "--context=$KUBE_CONTEXT" "--namespace=$NAMESPACE")
    ours="--selector=colm-jax=$NAME"
    case ${WORDS[0]} in
      status) run "${control[@]}" get deployments,pods,services "$ours" --output=wide ;;
      logs) run "${control[@]}" logs "$ours" --container=colm --prefix --tail=40 --max-log-requests=64 "--follow=$follow" ;;
      delete) run "${control[@]}" delete deployments,services "$ours" ;;
    esac
    ;;
  *) fail "${WORDS[0]}: no such command; $0 --help" ;;
esac
