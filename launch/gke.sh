#!/usr/bin/env bash
# shellcheck disable=SC2153  # the environment file sets the names in capitals
# A colm command on a TPU slice of a GKE cluster, as a JobSet (docs/launch/tpu.md).
usage='usage: launch/gke.sh COMMAND [--env FILE] [--dry_run] [-- colm ARGUMENTS...]

  render -- colm train ...   print the manifest; --distributed auto is added
  apply -- colm train ...    give it to the cluster
  xpk -- colm train ...      the same by XPK, on a cluster that XPK made (CLUSTER)
  status                     of the JobSet and its pods
  logs [--follow]            of all pods
  delete                     the JobSet and its pods; the bucket and the cluster stay'

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read_arguments "$@"
case ${WORDS[0]:-} in '' | help | -h | --help) echo "$usage" && exit 0 ;; esac
follow=false
for word in "${WORDS[@]:1}"; do
  [[ ${WORDS[0]} == logs && $word == --follow ]] || fail "${WORDS[0]}: $word is not among its flags; $0 --help"
  follow=true
done

# A string of JSON, which is one of YAML too.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "${text//$'\r'/\\r}"
}

# The command's words as a list. Kubernetes reads $(VAR) in them and takes $$ for $.
words() {
  local word list=''
  for word in "$@"; do list+="${list:+, }$(json "${word//\$/\$\$}")"; done
  printf '[%s]' "$list"
}

render() {
  local manifest nodes tolerations='[]' name
  nodes="\"cloud.google.com/gke-tpu-accelerator\": $(json "$GKE_ACCELERATOR"),"
  nodes+=" \"cloud.google.com/gke-tpu-topology\": $(json "$GKE_TOPOLOGY")"
  if $SPOT; then
    nodes+=', "cloud.google.com/gke-spot": "true"'
    tolerations='[{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]'
  fi
  manifest=$(<"$here/jobset.yaml")
  manifest=${manifest//@NODES@/"{$nodes}"}
  manifest=${manifest//@TOLERATIONS@/"$tolerations"}
  for name in RESTARTS GKE_HOSTS GKE_CHIPS; do manifest=${manifest//@$name@/"${!name}"}; done
  for name in NAME NAMESPACE SERVICE_ACCOUNT IMAGE MOUNT BUCKET; do
    manifest=${manifest//@$name@/"$(json "${!name}")"}
  done
  manifest=${manifest/@COMMAND@/"$(words "${AFTER[@]}" --distributed auto)"} # last: it may hold anything
  printf '%s\n' "$manifest"
}

case ${WORDS[0]} in
  render | apply)
    read_environment NAME NAMESPACE KUBE_CONTEXT SERVICE_ACCOUNT IMAGE BUCKET MOUNT SPOT RESTARTS GKE_ACCELERATOR \
      GKE_TOPOLOGY GKE_HOSTS GKE_CHIPS
    check_command
    if [[ ${WORDS[0]} == render ]]; then
      render
    else
      run kubectl "--context=$KUBE_CONTEXT" apply -f - <<<"$(render)"
    fi
    ;;
  xpk)
    read_environment PROJECT ZONE NAME CLUSTER IMAGE ACCELERATOR RESTARTS
    check_command
    run xpk workload create "--cluster=$CLUSTER" "--workload=$NAME" "--project=$PROJECT" "--zone=$ZONE" \
      "--tpu-type=$ACCELERATOR" --num-slices=1 "--docker-image=$IMAGE" "--max-restarts=$RESTARTS" \
      "--command=$(quoted "${AFTER[@]}" --distributed auto)"
    ;;
  status | logs | delete)
    read_environment NAME NAMESPACE KUBE_CONTEXT
    control=(kubectl "--context=$KUBE_CONTEXT" "--namespace=$NAMESPACE")
    pods="--selector=jobset.sigs.k8s.io/jobset-name=$NAME"
    case ${WORDS[0]} in
      status) run "${control[@]}" get jobset "$NAME" && run "${control[@]}" get pods "$pods" --output=wide ;;
      logs) run "${control[@]}" logs "$pods" --container=colm --prefix --tail=40 --max-log-requests=64 "--follow=$follow" ;;
      delete) run "${control[@]}" delete jobset "$NAME" ;;
    esac
    ;;
  *) fail "${WORDS[0]}: no such command; $0 --help" ;;
esac
