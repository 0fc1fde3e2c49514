#!/bin/bash
# Runs a study on the nodes of a SLURM job: Ray on all of them, the study's driver on the first.
#   sbatch deploy/slurm.sh search_spaces/coco_search.yaml
# SLURM sends SIGTERM when the job is preempted, and two minutes before its time is up. Running
# epochs can then finish (resources.grace_s), and the job is requeued: the same command resumes the
# study.
#SBATCH --job-name=kdr
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

study=${1:?"usage: sbatch deploy/slurm.sh STUDY.yaml"}
export KDR_STORAGE=${KDR_STORAGE:-$SLURM_SUBMIT_DIR/runs}
cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000)) # a port for each job, in case two jobs share a node
address=$head:$port
temp=/tmp/ray-$SLURM_JOB_ID            # on the node's own disk; short: a socket's path has at most 107 bytes

on() { srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" "${@:2}"; }

on "$head" ray start --block --head --port="$port" --temp-dir="$temp" --disable-usage-stats &
for node in "${nodes[@]:1}"; do
    on "$node" ray start --block --address="$address" --temp-dir="$temp" --disable-usage-stats &
done

# kdr counts the nodes when the study starts, so all must have joined Ray by then
all_joined='
import ray, sys
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))'
for attempt in $(seq 60); do
    python -c "$all_joined" "$address" "${#nodes[@]}" 2>/dev/null && break
    if [ "$attempt" = 60 ]; then
        echo "not all of ${nodes[*]} have joined Ray at $address" >&2
        exit 1
    fi
    sleep 5
done

python orchestrate.py run "$study" --address "$address" &
driver=$!
terminated=
trap 'terminated=1; kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
if [ -n "$terminated" ]; then
    wait "$driver" || code=$? # the signal ended the first wait; this one ends with the study
    scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
