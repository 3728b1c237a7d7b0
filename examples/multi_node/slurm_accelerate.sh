#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32

# One launcher for each machine, which starts a process for each of its GPUs.
export PER_MACHINE=${PER_MACHINE:-4}
export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PORT=$((20000 + SLURM_JOB_ID % 10000)) # other jobs on the machine have another one

srun bash -c 'accelerate launch --multi_gpu --mixed_precision no --dynamo_backend no \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * PER_MACHINE)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST" --main_process_port "$PORT" train.py'
