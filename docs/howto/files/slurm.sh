#!/usr/bin/env bash
#SBATCH --job-name=prefixray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
# One sweep on the nodes of one job: sbatch slurm.sh sweeps/xsum.yaml [options of prefixray sweep]
# Submit it again to go on. Start it in a folder that all nodes see; it gets runs/.
set -euo pipefail
sweep=${1:?which sweep file? sbatch slurm.sh sweeps/xsum.yaml}
shift

export RAY_AUTH_MODE=token  # other users of the nodes do not get in
ray get-auth-token --generate > /dev/null  # in ~/.ray, which all nodes see

head=${SLURMD_NODENAME:-$(hostname -s)}  # as Slurm calls this node
address=$(hostname --ip-address | cut -d" " -f1)
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one node do not meet
ray start --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 --num-cpus="$SLURM_CPUS_PER_TASK"
if [ "$SLURM_NNODES" -gt 1 ]; then
  # srun does not take --cpus-per-task over from the job, since Slurm 22.05.
  srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray start --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi

# A sweep counts at its start how many trials of an arm run at once. So all nodes come first, for five minutes at most.
python - "$address:$port" "$SLURM_NNODES" << 'END'
import sys, time, ray

ray.init(address=sys.argv[1], log_to_driver=False)
num_wanted, deadline = int(sys.argv[2]), time.monotonic() + 300
while (num_there := sum(node["Alive"] for node in ray.nodes())) < num_wanted and time.monotonic() < deadline:
    time.sleep(1)
print(f"{num_there} of {num_wanted} nodes are there", flush=True)
END

# In place of this shell, so that SIGTERM, two minutes before the end, reaches the driver: it writes checkpoints.
exec prefixray sweep "$sweep" "$@" --address "$address:$port"
