"""Where Python hands a call to a process group, and what is read off its arguments: tables for ``recorder``."""

# Method -> kind, the argument that holds the tensor, the one that holds the root or peer (or its options).
METHODS: dict[str, tuple[str, int | None, int | None]] = {
    "allreduce": ("all_reduce", 0, None),
    "allreduce_coalesced": ("all_reduce", 0, None),
    "allgather": ("all_gather", 1, None),
    "_allgather_base": ("all_gather", 1, None),
    "all_gather_single": ("all_gather", 1, None),
    "allgather_coalesced": ("all_gather", 1, None),
    "allgather_into_tensor_coalesced": ("all_gather", 1, None),
    "all_gather_single_coalesced": ("all_gather", 1, None),
    "reduce_scatter": ("reduce_scatter", 0, None),
    "_reduce_scatter_base": ("reduce_scatter", 0, None),
    "reduce_scatter_single": ("reduce_scatter", 0, None),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 0, None),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 0, None),
    "broadcast": ("broadcast", 0, 1),
    "reduce": ("reduce", 0, 1),
    "gather": ("gather", 1, 2),
    "scatter": ("scatter", 0, 2),
    "alltoall": ("all_to_all", 1, None),
    "alltoall_base": ("all_to_all", 1, None),
    "all_to_all_single": ("all_to_all", 1, None),
    "barrier": ("barrier", None, None),
    "monitored_barrier": ("barrier", None, None),
    "send": ("send", 0, 1),
    "recv": ("recv", 0, 1),
    "recv_anysource": ("recv", 0, None),
}
# Functional operator -> kind, the argument with the size of the group where the tensor is that many pieces, the one
# with the root or peer. The tensor comes first, the group last.
FUNCTIONAL: dict[str, tuple[str, int | None, int | None]] = {
    "all_reduce": ("all_reduce", None, None),
    "all_reduce_": ("all_reduce", None, None),
    "all_reduce_coalesced": ("all_reduce", None, None),
    "all_reduce_coalesced_": ("all_reduce", None, None),
    "all_gather_into_tensor": ("all_gather", None, None),
    "all_gather_into_tensor_out": ("all_gather", None, None),
    "all_gather_into_tensor_coalesced": ("all_gather", None, None),
    "reduce_scatter_tensor": ("reduce_scatter", 2, None),
    "reduce_scatter_tensor_out": ("reduce_scatter", 2, None),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 2, None),
    "broadcast": ("broadcast", None, 1),
    "broadcast_": ("broadcast", None, 1),
    "all_to_all_single": ("all_to_all", None, None),
    "isend": ("send", None, 1),
    "irecv": ("recv", None, 1),
}
SPACES = ("_c10d_functional", "_c10d_functional_autograd")
NAMES_OF_ROOTS = ("opts", "root", "dstRank", "srcRank", "src", "dst")
NAMES_OF_TENSORS = ("tensors", "tensor", "input_tensors", "input_tensor", "input", "output")

__all__ = ["FUNCTIONAL", "METHODS", "NAMES_OF_ROOTS", "NAMES_OF_TENSORS", "SPACES"]
