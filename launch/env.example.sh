# shellcheck shell=bash disable=SC2034  # read by the scripts in this directory
# Where jobs run and their names. Copy this file, fill in what you use, and give the copy with --env FILE or COLM_ENV.
# bash reads it: quote values, no spaces around =. A script names a missing value.

RESTARTS=20                           # how often a job is restarted before its launcher gives up

# --- Google Cloud: tpu_vm.sh, gke.sh, skypilot.yaml
PROJECT=            # project id, as in my-project
ZONE=               # where the TPUs are, as in us-west4-a
NAME=colm           # of what is created: lower-case letters, digits and hyphens
MOUNT=              # empty if models, data and --out are gs://BUCKET/...; or a path, as in /mnt/colm, where every
                    # machine mounts the bucket (docs/launch/tpu.md, section 5)
BUCKET=             # with MOUNT: the bare name, without gs://, of a bucket with hierarchical namespace

# --- Cloud TPU VMs: tpu_vm.sh
ACCELERATOR=v5litepod-16              # v5litepod-N, v5p-N, v6e-N
RUNTIME=v2-alpha-tpuv5-lite           # v5p: v2-alpha-tpuv5; v6e: v2-alpha-tpuv6e
SPOT=true                             # cheaper, but may be preempted at any time: training resumes by itself
PACKAGE=dist/colm_jax-0.1.0-py3-none-any.whl  # a wheel (pip wheel --no-deps -w dist .) or a pip requirement, as in colm-jax[tpu,gcs]
POLL=60                               # seconds between two checks of the job
CREATE_FLAGS=()                       # more flags of `queued-resources create`, as in (--network=mine --internal-ips)
SSH_FLAGS=()                          # more flags of `tpu-vm ssh` and `scp`, as in (--internal-ip)

# --- GKE: gke.sh
KUBE_CONTEXT=                         # from kubectl config get-contexts, so that no job starts on another cluster
NAMESPACE=default
SERVICE_ACCOUNT=colm                  # Kubernetes account with read and write access to the bucket
IMAGE=                                # built from launch/Dockerfile, as in us-docker.pkg.dev/my-project/colm/colm:1
CLUSTER=                              # only for `gke.sh xpk`
GKE_ACCELERATOR=tpu-v5-lite-podslice  # v5p: tpu-v5p-slice; v6e: tpu-v6e-slice
GKE_TOPOLOGY=4x4
GKE_HOSTS=4                           # machines of the slice: chips of the topology / chips per machine
GKE_CHIPS=4                           # per machine
CLAIM=                                # a PersistentVolumeClaim at MOUNT instead of the bucket; `gke.sh array` needs one

# --- Slurm: slurm.sh
PARTITION=
ACCOUNT=                              # optional
NODES=2
GPUS_PER_NODE=8
CPUS_PER_GPU=8
TIME=24:00:00                         # limit of one start; 5 minutes before, the job saves and is requeued
LOGS=logs                             # directory for the jobs' output
ARRAY_LIMIT=4                         # concurrent commands of an array
SBATCH_FLAGS=()                       # more flags of sbatch, as in (--constraint=h100 --mem=0)
