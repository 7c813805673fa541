#!/usr/bin/env bash
# shellcheck disable=SC2153  # the environment file sets the names in capitals
# Runs a colm command on a TPU slice of a GKE cluster, as a JobSet (docs/launch/tpu.md).
usage='usage: launch/gke.sh COMMAND [--env FILE] [--dry_run] [-- colm ARGUMENTS...]

  render -- colm train ...   print the manifest; --distributed auto is added
  apply -- colm train ...    apply the manifest to the cluster
  xpk -- colm train ...      the same with XPK, on a cluster made by XPK (CLUSTER)
  array COMMANDS.txt         apply a JobSet for each line of the file, NAME-1 and so on, each on one host (GKE_HOSTS=1)
  status                     print the status of the JobSets and their pods
  logs [--follow]            print the logs of all pods
  delete                     delete the JobSets and their pods, not files or the cluster'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
follow=false commands=''
for word in "${WORDS[@]:1}"; do
  case "${WORDS[0]} $word" in
    'logs --follow') follow=true ;;
    'array '*) commands=$word ;;
    *) fail "${WORDS[0]}: $word: no such flag; $0 --help" ;;
  esac
done

# The volume at MOUNT: the bucket, or a volume claim. Pods read what others have just written, so a bucket's metadata
# must not be cached.
files() {
  local options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
  if [[ -n ${CLAIM:-} ]]; then
    printf '{name: files, persistentVolumeClaim: {claimName: %s}}' "$(json "$CLAIM")"
  else
    printf '{name: files, csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: {bucketName: %s, mountOptions: "%s"}}}' \
      "$(json "$BUCKET")" "$options"
  fi
}

render() { # NAME COMMAND...
  local manifest nodes tolerations='[]' name this=$1
  shift
  nodes="\"cloud.google.com/gke-tpu-accelerator\": $(json "$GKE_ACCELERATOR"),"
  nodes+=" \"cloud.google.com/gke-tpu-topology\": $(json "$GKE_TOPOLOGY")"
  if $SPOT; then
    nodes+=', "cloud.google.com/gke-spot": "true"'
    tolerations='[{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]'
  fi
  manifest=$(<"$here/jobset.yaml")
  if [[ -z ${MOUNT:-} ]]; then manifest=$(sed '/@FILES@/d; /@MOUNT@/d; /gke-gcsfuse/d' <<<"$manifest"); fi
  manifest=${manifest//@NODES@/"{$nodes}"}
  manifest=${manifest//@TOLERATIONS@/"$tolerations"}
  for name in RESTARTS GKE_HOSTS GKE_CHIPS; do manifest=${manifest//@$name@/"${!name}"}; done
  manifest=${manifest//@NAME@/"$(json "$this")"}
  manifest=${manifest//@LABEL@/"$(json "$NAME")"}
  if [[ -n ${MOUNT:-} ]]; then manifest=${manifest//@FILES@/"$(files)"} manifest=${manifest//@MOUNT@/"$(json "$MOUNT")"}; fi
  for name in NAMESPACE SERVICE_ACCOUNT IMAGE; do manifest=${manifest//@$name@/"$(json "${!name}")"}; done
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

case ${WORDS[0]} in
  render | apply | array)
    read_environment NAME NAMESPACE KUBE_CONTEXT SERVICE_ACCOUNT IMAGE SPOT RESTARTS GKE_ACCELERATOR \
      GKE_TOPOLOGY GKE_HOSTS GKE_CHIPS
    if [[ -n ${CLAIM:-} ]]; then read_environment MOUNT; else read_mount; fi
    chips=$((${GKE_TOPOLOGY//x/*}))
    ((chips == GKE_HOSTS * GKE_CHIPS)) ||
      fail "$ENV_FILE: GKE_TOPOLOGY=$GKE_TOPOLOGY: has $chips chips, and GKE_HOSTS=$GKE_HOSTS times GKE_CHIPS=$GKE_CHIPS is $((GKE_HOSTS * GKE_CHIPS))"
    if [[ ${WORDS[0]} == array ]]; then
      check_commands "$commands"
      [[ -n ${CLAIM:-} ]] || fail "$ENV_FILE: CLAIM is not set: trials lock shared stages, and a bucket has no locks"
      ((GKE_HOSTS == 1)) || fail "$ENV_FILE: GKE_HOSTS=$GKE_HOSTS: must be 1 for an array of trials"
      ((${#NAME} <= 45)) || fail "$ENV_FILE: NAME=$NAME: at most 45 characters for an array"
      number=0
      while IFS= read -r line || [[ -n $line ]]; do # the last line may lack a newline
        number=$((number + 1))
        apply "$(render "$NAME-$number" bash -c "$line")"
      done <"$commands"
    else
      check_command
      check_out
      check_mesh "$chips" "$GKE_HOSTS" "GKE_TOPOLOGY=$GKE_TOPOLOGY"
      manifest=$(render "$NAME" "${AFTER[@]}" --distributed auto)
      if [[ ${WORDS[0]} == render ]]; then
        printf '%s\n' "$manifest"
      else
        apply "$manifest"
      fi
    fi
    ;;
  xpk)
    read_environment PROJECT ZONE NAME CLUSTER IMAGE ACCELERATOR RESTARTS
    check_command
    check_out
    check_slice
    run xpk workload create "--cluster=$CLUSTER" "--workload=$NAME" "--project=$PROJECT" "--zone=$ZONE" \
      "--tpu-type=$ACCELERATOR" --num-slices=1 "--docker-image=$IMAGE" "--max-restarts=$RESTARTS" \
      "--command=$(quoted "${AFTER[@]}" --distributed auto)"
    ;;
  status | logs | delete)
    read_environment NAME NAMESPACE KUBE_CONTEXT
    control=(kubectl "--context=$KUBE_CONTEXT" "--namespace=$NAMESPACE")
    ours="--selector=colm-jax=$NAME"
    case ${WORDS[0]} in
      status) run "${control[@]}" get jobset "$ours" && run "${control[@]}" get pods "$ours" --output=wide ;;
      logs) run "${control[@]}" logs "$ours" --container=colm --prefix --tail=40 --max-log-requests=64 "--follow=$follow" ;;
      delete) run "${control[@]}" delete jobset "$ours" ;;
    esac
    ;;
  *) fail "${WORDS[0]}: no such command; $0 --help" ;;
esac
