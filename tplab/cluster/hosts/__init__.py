"""Ranks on several machines: one engine of an ipyparallel cluster on each is the agent that starts that host's ranks.

ipyparallel starts and reaches machines (SSH, Slurm, PBS, LSF, SGE, MPI), authenticates whoever speaks, and encrypts.
Its engines never run a rank: what such an engine does badly (it hangs for good when another rank raises before a
collective, and stays gone once it is killed) the local engine does well, so that is what runs under each.
"""
