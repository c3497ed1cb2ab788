"""All-reduce and friends: what they are, what they should cost, what they do cost.

What it is:
  transport            what an algorithm needs from below: messages that start without blocking
  ring, two_shot, one_shot, recursive_doubling   all-reduces built from point-to-point calls
  direct               all-gather and reduce-scatter in one round
  emulated             links of declared latency and bandwidth (emulated_link) over gloo
  symmetric            torch's all-reduces in one CUDA kernel, over memory that GPUs share
  quantised            two-shot in int8 messages
  counter              the collective and point-to-point calls a rank issues, and their payload bytes
What it should cost (pure: no process group, no cluster):
  volumes              bytes, by collective and algorithm
  cost                 time: alpha-beta line, curve, formulas, lower bound
What it does cost (on a cluster):
  sweep, timing        all-reduce over sizes, dtypes and algorithms; the rank's side of it
  point_to_point       every pair of ranks
  counting             counted bytes beside the formula
  emulated_sweep       algorithms over a declared link beside the formula
"""
