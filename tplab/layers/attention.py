"""Self-attention sharded over ranks by heads: column-parallel q, k and v, row-parallel output projection, one
all-reduce.

Heads do not mix before the output projection, so a rank attends with its own and communicates nothing. What needs
care is *which* rows of the weights those heads are, above all where there are fewer key-value heads than ranks.

Legend: B batch, S sequence, T = B·S tokens, D hidden; H query heads, G key-value heads (h and g of this rank), E head
dimension; n ranks.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from tplab.layers import kernels
from tplab.layers.comm import Comm, Pending, as_comm
from tplab.layers.core_attention import (
    GrowingCache,
    KVCache,
    RotaryEmbedding,
    SharedRotary,
    attend,
    scaled_dot_products,
)
from tplab.layers.linear import MergedColumnParallelLinear, RowParallelLinear, Sharded
from tplab.layers.plain import Attention
from tplab.layers.regions import SharedRows, check_shape, pad_tokens, share_norm
from tplab.layers.shards import HeadShard, Shard, prefixed, rows_plan
from tplab.layers.strategies import Blocking
from tplab.layers.sum_norm import of_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ParallelAttention(Sharded[Attention]):
    """MHA, GQA or MQA with the heads sharded over the ranks; rotary positions, causal, with a key-value cache.

    ==================  ===================  ===============================================
    on rank r           shape                what
    ==================  ===================  ===============================================
    qkv.weight          ((h + 2g)·E, D)      its heads' rows of q, then of k, then of v
    qkv.bias            as many              if the plain one has biases
    o.weight            (D, h·E)             its heads' columns of the output projection
    o.bias              (D,)                 the full bias, added once
    q_norm, k_norm      (E,)                 the full weights, if there are any
    cache               (B, g, max, E), 2x   keys and values of its heads
    x, y                (B, S, D)            the same on every rank (token shards under
                                             sequence parallelism)
    ==================  ===================  ===============================================

    h = H/n. g is as many key-value heads as those query heads need: G/n where n divides G, and otherwise some key-value
    heads lie on several ranks (each holds and caches them; memory does not fall below one head per rank).

    Equation: ``y = sum over r of concat(attend(q_i, k, v) for heads i of r) O_r``.

    Communication: forward one all-reduce of S = T·D·itemsize, backward another; and where key-value heads are shared,
    backward an all-reduce of the gradients of all their rows, S = 2·G·E·D·itemsize.

    Args:
        hidden_size, num_heads, num_kv_heads: as for the plain ``Attention``, whose other arguments are taken, too.
        group: process group, ``Comm``, or None for a rank alone.
        strategy: how the sum is made.

    Raises:
        ValueError: n does not divide ``num_heads``, and what the linear layers raise.

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3; replicated key-value heads as in vLLM's
    ``QKVParallelLinear``.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        group: "ProcessGroup | Comm | None" = None,
        *,
        strategy: Blocking | None = None,
        **plain: Any,
    ) -> None:
        self._shard(Attention(hidden_size, num_heads, num_kv_heads, **plain), as_comm(group), strategy)

    def _shard(self, plain: Attention, comm: Comm, strategy: Blocking | None) -> None:
        super().__init__()
        self.comm = comm
        self.strategy = strategy or Blocking()
        self.heads = heads = HeadShard.of(plain.num_heads, plain.num_kv_heads, comm.index, comm.size)
        self._heads_of = [heads.num_q, heads.num_kv, heads.num_kv]  # of q, k and v
        self.head_dim = size = plain.head_dim
        self.rope: RotaryEmbedding | None = plain.rope
        self.causal, self.sliding_window = plain.causal, plain.sliding_window
        kv_start, kv_end, kv_rows = heads.kv_start * size, heads.kv_end * size, plain.num_kv_heads * size
        places = (
            ("q_proj.", heads.q_start * size, heads.q_end * size),
            ("k_proj.", kv_start, kv_end),
            ("v_proj.", kv_start, kv_end),
        )
        blocks = ((kv_start, kv_end), (kv_rows + kv_start, kv_rows + kv_end))
        self.qkv = MergedColumnParallelLinear(
            plain.hidden_size,
            (plain.num_heads + 2 * plain.num_kv_heads) * size,
            rows_plan(places, bias=plain.q_proj.bias is not None),
            comm,
            plain=plain,
            strategy=strategy,
            shared=SharedRows(heads.num_q * size, blocks, 2 * kv_rows) if heads.replicated else None,
        )
        self.o = RowParallelLinear.from_module(plain.o_proj, comm, strategy=strategy)
        self.q_norm, self.k_norm = plain.q_norm, plain.k_norm
        even = heads.num_q % heads.num_kv == 0
        per_group = heads.num_q // heads.num_kv
        uniform = even and heads.kv_of_q == tuple(head // per_group for head in range(heads.num_q))
        self._kv_of_q = None if uniform else list(heads.kv_of_q)
        self._firsts: tuple[torch.Tensor, int] | None = None

    @property
    def plan(self) -> dict[str, tuple[Shard, ...]]:
        """Every parameter's slices, by the names in the plain module."""
        plan = {**prefixed(self.qkv.plan, "qkv.", ""), **prefixed(self.o.plan, "o.", "o_proj.")}
        for name in ("q_norm", "k_norm"):
            if getattr(self, name) is not None:
                plan[f"{name}.weight"] = (Shard(source=f"{name}.weight"),)
        return plan

    def make_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for this rank's key-value heads, where the weights are."""
        weight = self.qkv.weight
        return KVCache(batch, self._heads_of[1], max_length, self.head_dim, dtype=weight.dtype, device=weight.device)

    def query_heads_of_kv(self, device: torch.device) -> tuple[torch.Tensor, int]:
        """First query head of each key-value head of this rank, and H at the end: (g + 1,) int32 on ``device``; and how
        many query heads a key-value head has at most."""
        if self._firsts is None or self._firsts[0].device != device:
            of_q = self.heads.kv_of_q
            firsts = [sum(kv < head for kv in of_q) for head in range(self.heads.num_kv + 1)]
            most = max(after - first for first, after in pairwise(firsts))
            self._firsts = torch.tensor(firsts, dtype=torch.int32, device=device), most
        return self._firsts

    def forward(self, x: torch.Tensor, **how: Any) -> torch.Tensor:
        """(B, S, D) -> (B, S, D); arguments as :meth:`start`."""
        return self.finish(self.start(x, **how))

    def start(
        self,
        x: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: "KVCache | GrowingCache | None" = None,
        mask: torch.Tensor | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Pending:
        """Attend, and start the sum of the output projection; ``finish`` waits for it.

        Args:
            x: (B, S, D); under sequence parallelism this rank's token shard.
            positions: (S,) or (B, S) of the new tokens; by default they follow what is in the cache.
            cache: keys and values of the past, to which the new ones are added.
            mask: (B, 1, S, past + S) bool, instead of the causal one.
            shape: (B, S), under sequence parallelism.
        """
        qkv = self.qkv(x)
        sharded = self.strategy.sequence_parallel
        if sharded:
            if shape is None:
                raise ValueError("shape=(batch, sequence) must be given under sequence parallelism: x is flat there")
            check_shape(shape, qkv.shape[0], self.comm.size)
            qkv = qkv[: shape[0] * shape[1]].view(*shape, -1)
        batch, seq, _ = qkv.shape
        if isinstance(cache, KVCache) and isinstance(self.rope, SharedRotary) and self.causal and kernels.usable(qkv):
            y = self._attend_fused(qkv, self.rope, cache, positions, mask)
            return self.o.start(pad_tokens(y.flatten(0, 1), self.comm.size) if sharded else y)
        every = qkv.view(batch, seq, sum(self._heads_of), self.head_dim).transpose(1, 2)
        q_BHSE, k_BGSE, v_BGSE = every.split(self._heads_of, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            # Every rank normalises other heads with the same weights.
            q_BHSE = share_norm(self.q_norm, q_BHSE, self.comm)
            k_BGSE = share_norm(self.k_norm, k_BGSE, self.comm)
        y_BHSE = attend(
            q_BHSE,
            k_BGSE,
            v_BGSE,
            rope=self.rope,
            positions=positions,
            cache=cache,
            causal=self.causal,
            sliding_window=self.sliding_window,
            mask=mask,
            kv_of_q=self._kv_of_q,
        )
        y = y_BHSE.transpose(1, 2).reshape(batch, seq, self._heads_of[0] * self.head_dim)
        return self.o.start(pad_tokens(y.flatten(0, 1), self.comm.size) if sharded else y)

    def _attend_fused(
        self,
        qkv_BSF: torch.Tensor,
        rope: RotaryEmbedding,
        cache: KVCache,
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same as below, (B, S, h·E), with one kernel from the projection to the cache. For a stage of a model,
        whose positions are places of the cache: the kernel looks angles up."""
        from tplab.layers.kernels.rotary import rotate_into_cache

        seq = qkv_BSF.shape[1]
        past = cache.claim(qkv_BSF.shape[0], self._heads_of[1], seq, qkv_BSF.dtype)
        if positions is None:
            positions = torch.arange(past, past + seq, device=qkv_BSF.device)
        cos, sin = rope.tables(cache.max_length, qkv_BSF.dtype, qkv_BSF.device)
        q_BSHE = rotate_into_cache(
            qkv_BSF.contiguous(), cache.k_BGSE, cache.v_BGSE, cos=cos, sin=sin, past=past,
            positions=positions.contiguous(), norms=self.norms_of_heads(qkv_BSF.dtype),
        )  # fmt: skip
        k_BGSE, v_BGSE = cache.k_BGSE[:, :, : past + seq], cache.v_BGSE[:, :, : past + seq]
        y_BHSE = scaled_dot_products(
            q_BSHE.transpose(1, 2), k_BGSE, v_BGSE, sliding_window=self.sliding_window, mask=mask,
            kv_of_q=self._kv_of_q,
        )  # fmt: skip
        return y_BHSE.transpose(1, 2).flatten(2)

    def norms_of_heads(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, float, float] | None:
        """Weights of the queries' and the keys' norm, their eps and offset; None where there are none."""
        if self.q_norm is None or self.k_norm is None:
            return None
        weight, eps, offset = of_norm(self.q_norm, dtype)
        return weight, self.k_norm.weight, eps, offset

    def finish(self, pending: Pending) -> torch.Tensor:
        """What ``forward`` returns, from what ``start`` returned."""
        return self.o.finish(pending)
