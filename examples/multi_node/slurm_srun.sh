#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8

# One task for each GPU; the trainer reads SLURM's variables, so that no launcher is needed.
srun python train.py
