#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# Two minutes before that the tasks are told; they stop together, and save.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# One task for each GPU; the trainer reads SLURM's variables, so that no launcher is needed.
# The first to end, with 75 say, leaves the others two minutes to do the same, or to notice that it is gone.
code=0
srun --kill-on-bad-exit=0 --wait=120 python train.py || code=$?

# 75 says "run me again". Whatever else ends the training is left for you to see.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
