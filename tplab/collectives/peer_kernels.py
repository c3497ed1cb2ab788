# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
"""All-reduces as Triton kernels that write into the memory of other GPUs. Imported where there is Triton.

Everything is pushed: a GPU writes what it has into its peers' memory and then reads only its own. A write over NVLink
is sent and forgotten, where a read of a peer's memory waits for the way there and back. And the input needs no place in
symmetric memory, since nobody but its owner reads it.

Two ways to know that a push has arrived:

- *Flagged words*, for small messages: four bytes of data and four of a flag in one store, which arrives whole. The
  receiver polls the data itself, no fence and no barrier: one way over the link. Twice the bytes. (NCCL's protocol LL.)
- *Signals*, for large ones: a block writes its part, then releases a flag in every peer's memory, and waits to acquire
  theirs. Block b of one GPU waits for block b of the others only.

Flags hold the number of the call (``epoch``), which the kernel itself counts up in memory: nothing has to be reset, and
a CUDA graph can be replayed for ever. All of a row's ``epochs`` are raised by every call, whatever its number of
blocks, so that all blocks of a call have the same number. Flagged words lie in two halves, used in turns: who is in
call e has got all of call e-1 from a peer, so that peer has left call e-2. Two-shot needs no halves: passing a call's
second signal shows that everybody has read the first one's data, and passing the next call's first that they have read
the second's.

``PHASE`` 0 is the whole kernel. The others are its parts without any waiting: run for all ranks one after another,
they are an all-reduce in one process, on a CPU under Triton's interpreter, too.

Legend: n ranks; a word is four bytes: one float32 or two elements of 16 bits; C the words of a chunk, N/n.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

MOST_BLOCKS = tl.constexpr(256)
"""Blocks of a launch, at most."""
FLOAT32, BFLOAT16, FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# Thread t signals to peer t and waits for peer t's signal. All in one piece, as a layout of Triton's may give an
# element to several threads, or to another than expected. 0: a number that nobody needs; 1: the peers' addresses;
# 2: offset of our flag there; 3: our flags; 4: what to signal and to wait for; 5: n; 6: polls before the kernel traps.
_SIGNAL = tl.constexpr("""{
    .reg .pred %there;
    .reg .pred %again;
    .reg .u32 %thread, %seen, %ahead, %polls;
    .reg .u64 %place;
    mov.u32 $0, 0;
    mov.u32 %thread, %tid.x;
    setp.ge.u32 %there, %thread, $5;
    @%there bra DONE;
    mul.wide.u32 %place, %thread, 8;
    add.u64 %place, %place, $1;
    ld.global.u64 %place, [%place];
    add.u64 %place, %place, $2;
    st.release.sys.global.u32 [%place], $4;
    mul.wide.u32 %place, %thread, 4;
    add.u64 %place, %place, $3;
    mov.u32 %polls, 0;
  POLL:
    ld.acquire.sys.global.u32 %seen, [%place];
    sub.s32 %ahead, %seen, $4;
    setp.ge.s32 %there, %ahead, 0;
    @%there bra DONE;
    add.u32 %polls, %polls, 1;
    setp.ne.u32 %again, %polls, $6;
    @%again bra POLL;
    trap;
  DONE:
}""")


def _flagged_load(pack: int) -> str:
    """Assembly that polls ``pack`` flagged words, all in flight at once, until each has its flag.

    Operands: the data; the addresses; the flags; polls before the kernel traps.
    """
    lines = [
        ".reg .pred %there;",
        ".reg .pred %again;",
        f".reg .u32 %flag<{pack}>, %off, %bits, %polls;",
        "mov.u32 %polls, 0;",
        "POLL:",
    ]
    for i in range(pack):
        lines.append(f"ld.volatile.global.v2.u32 {{${i}, %flag{i}}}, [${pack + i}];")
    lines.append(f"xor.b32 %off, %flag0, ${2 * pack};")
    for i in range(1, pack):
        lines += [f"xor.b32 %bits, %flag{i}, ${2 * pack + i};", "or.b32 %off, %off, %bits;"]
    lines += [
        "setp.eq.u32 %there, %off, 0;",
        "@%there bra DONE;",
        "add.u32 %polls, %polls, 1;",
        f"setp.ne.u32 %again, %polls, ${3 * pack};",
        "@%again bra POLL;",
        "trap;",
        "DONE:",
    ]
    return "{\n" + "\n".join(lines) + "\n}"


# Early clobber: the first load's data must not take the register of an address that is polled again.
_LOAD_1, _LOAD_1_KINDS = tl.constexpr(_flagged_load(1)), tl.constexpr("=&r" + ",l,r,r")
_LOAD_4, _LOAD_4_KINDS = tl.constexpr(_flagged_load(4)), tl.constexpr("=&r," * 4 + "l," * 4 + "r," * 7 + "r")


@triton.jit
def memory_of(table, rank):
    """Address of the shared memory of a rank, as a number."""
    return tl.multiple_of(tl.load(table + rank), 16)


@triton.jit
def _first(word, KIND: tl.constexpr):
    """The float32 in a word, or the first of two narrow numbers, in float32."""
    if KIND == FLOAT32:
        return word.to(tl.float32, bitcast=True)
    if KIND == BFLOAT16:
        return (word << 16).to(tl.float32, bitcast=True)
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _second(word, KIND: tl.constexpr):
    """The second number in a word; 0 in a float32's."""
    if KIND == FLOAT32:
        return (word * 0).to(tl.float32)
    if KIND == BFLOAT16:
        return (word & -65536).to(tl.float32, bitcast=True)
    return (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _word(first, second, KIND: tl.constexpr):
    """The reverse: each number rounded to its dtype."""
    if KIND == FLOAT32:
        return first.to(tl.int32, bitcast=True)
    if KIND == BFLOAT16:
        low = first.to(tl.bfloat16).to(tl.int16, bitcast=True)
        high = second.to(tl.bfloat16).to(tl.int16, bitcast=True)
    else:
        low = first.to(tl.float16).to(tl.int16, bitcast=True)
        high = second.to(tl.float16).to(tl.int16, bitcast=True)
    return (low.to(tl.int32) & 65535) | (high.to(tl.int32) << 16)


@triton.jit
def _push_flagged(word, table, offset, inside, epoch, RANK: tl.constexpr, N: tl.constexpr, SLOT: tl.constexpr):
    """Send words with their flag to every peer's slot for this rank, the next neighbour first."""
    flagged = (word.to(tl.int64) & 4294967295) | (epoch.to(tl.int64) << 32)
    half = (epoch & 1).to(tl.int64) * (8 * N * SLOT)
    for distance in tl.static_range(1, N):
        there = memory_of(table, (RANK + distance) % N) + half + 8 * RANK * SLOT
        tl.store(tl.multiple_of(there.to(tl.pointer_type(tl.int64)), 16) + offset, flagged, mask=inside)


@triton.jit
def _take_flagged(
    sender: tl.constexpr, table, offset, epoch, polls, RANK: tl.constexpr, N: tl.constexpr, SLOT: tl.constexpr,
    PACK: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """What a peer has pushed, once it is there."""
    half = (epoch & 1).to(tl.int64) * (8 * N * SLOT)
    place = (memory_of(table, RANK) + half + 8 * sender * SLOT).to(tl.pointer_type(tl.int64)) + offset
    if PHASE:
        return tl.load(place).to(tl.int32)
    # Called pure, or else Triton would poll anew in each layout in which it wants the words.
    if PACK == 1:
        return tl.inline_asm_elementwise(_LOAD_1, _LOAD_1_KINDS, [place, epoch, polls], tl.int32, True, 1)
    return tl.inline_asm_elementwise(_LOAD_4, _LOAD_4_KINDS, [place, epoch, polls], tl.int32, True, 4)


@triton.jit
def _sum_flagged(
    mine, table, offset, epoch, polls, KIND: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, SLOT: tl.constexpr,
    PACK: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """The sum over ranks, in rank order and float32; rounded to the dtype, and in float32 again: first and second."""
    if PHASE == 0:
        # What is polled for depends on this, which nothing moves to before the pushes.
        epoch = tl.inline_asm_elementwise("mov.u32 $0, $1;", "=r,r", [epoch], tl.int32, False, 1)
    first, second = (mine * 0).to(tl.float32), (mine * 0).to(tl.float32)
    for sender in tl.static_range(N):
        if sender == RANK:
            word = mine
        else:
            word = _take_flagged(sender, table, offset, epoch, polls, RANK, N, SLOT, PACK, PHASE)
        if sender == 0:
            first, second = _first(word, KIND), _second(word, KIND)
        else:
            first, second = first + _first(word, KIND), second + _second(word, KIND)
    word = _word(first, second, KIND)
    return _first(word, KIND), _second(word, KIND)


@triton.jit
def follow(PDL: tl.constexpr):
    """Let the next kernel start (its programs wait for the end of this one), and wait for the one before."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def end_call(epochs, epoch):
    """Count the call, in the slots of all blocks of all launches."""
    tl.debug_barrier()  # every thread has read the old number
    slots = tl.program_id(0) + tl.arange(0, MOST_BLOCKS) * tl.num_programs(0)
    tl.store(epochs + slots, epoch, mask=slots < MOST_BLOCKS)


@triton.jit
def one_shot_kernel(
    x, out, table, epochs, num_words, polls, KIND: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr,
    SLOT: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr, PHASE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``out`` = the sum of ``x`` over the ranks. Phases: 1 push, 2 take and add.

    Args:
        x, out: words.
        table: address of every rank's memory.
        epochs: calls so far, for each block.
        num_words: of ``x``.
        polls: looks at a flag before the kernel traps.
        KIND: dtype.
        RANK, N: this rank, and how many there are.
        SLOT: room for a sender, in words.
        BLOCK, PACK: words of a block, and those a thread polls at once.
        PHASE, PDL: see above; whether the kernel starts before the last one has ended.
    """
    follow(PDL)
    epoch = tl.load(epochs + tl.program_id(0), volatile=True) + 1
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < num_words
    mine = tl.load(x + offset, mask=inside, other=0)
    if PHASE != 2:
        _push_flagged(mine, table, offset, inside, epoch, RANK, N, SLOT)
    if PHASE != 1:
        # Threads beyond the end poll the last word.
        there = tl.minimum(offset, num_words - 1)
        first, second = _sum_flagged(mine, table, there, epoch, polls, KIND, RANK, N, SLOT, PACK, PHASE)
        tl.store(out + offset, _word(first, second, KIND), mask=inside)
        end_call(epochs, epoch)


@triton.jit
def add_rms_norm_kernel(
    x, residual, weight, hidden, normed, table, epochs, num_words, eps, shift, polls, KIND: tl.constexpr,
    RANK: tl.constexpr, N: tl.constexpr, SLOT: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr,
    PHASE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``hidden`` = residual + the sum of ``x`` over the ranks; ``normed`` = its RMSNorm times (shift + weight).

    A block has a row.

    Args:
        x, residual, weight, hidden, normed: words.
        num_words: of a row, at most BLOCK.
        eps, shift: added to the mean square, and to the weights.
        table, epochs, polls, KIND, RANK, N, SLOT, BLOCK, PACK, PHASE, PDL: as in ``one_shot_kernel``.
    """
    column = tl.arange(0, BLOCK)
    inside = column < num_words
    scale = tl.load(weight + column, mask=inside, other=0)  # of no earlier kernel, so before the wait
    follow(PDL)
    epoch = tl.load(epochs + tl.program_id(0), volatile=True) + 1
    offset = tl.program_id(0) * num_words + column
    mine = tl.load(x + offset, mask=inside, other=0)
    if PHASE != 2:
        _push_flagged(mine, table, offset, inside, epoch, RANK, N, SLOT)
    if PHASE != 1:
        # Nothing that the peers do: under way while their words are.
        before = tl.load(residual + offset, mask=inside, other=0)
        there = tl.program_id(0) * num_words + tl.minimum(column, num_words - 1)
        first, second = _sum_flagged(mine, table, there, epoch, polls, KIND, RANK, N, SLOT, PACK, PHASE)
        after = _word(first + _first(before, KIND), second + _second(before, KIND), KIND)
        tl.store(hidden + offset, after, mask=inside)
        first, second = tl.where(inside, _first(after, KIND), 0.0), tl.where(inside, _second(after, KIND), 0.0)
        length = num_words * (1 if KIND == FLOAT32 else 2)
        factor = tl.rsqrt(tl.sum(first * first + second * second) / length + eps)
        first, second = first * factor * (shift + _first(scale, KIND)), second * factor * (shift + _second(scale, KIND))
        tl.store(normed + offset, _word(first, second, KIND), mask=inside)
        end_call(epochs, epoch)


@triton.jit
def meet(table, flags, what, polls, RANK: tl.constexpr, N: tl.constexpr):
    """All blocks of this number, on all ranks, have come here, and what they wrote before can be read.

    Args:
        flags: offset of the flags in everybody's memory.
        what: number to signal, and to wait for.
        table, polls, RANK, N: as in ``one_shot_kernel``.
    """
    tl.debug_barrier()
    row = flags + tl.program_id(0).to(tl.int64) * (4 * N)
    tl.inline_asm_elementwise(
        _SIGNAL, "=r,l,l,l,r,r,r", [table.to(tl.int64), row + 4 * RANK, memory_of(table, RANK) + row, what, N, polls],
        tl.int32, False, 1,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def two_shot_kernel(
    x, out, table, epochs, num_words, chunk, flags, inbox, results, polls, KIND: tl.constexpr, RANK: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """``out`` = the sum of ``x`` over the ranks; each adds up ``chunk`` words and sends them to all.

    Phases: 1 push the chunks to those who add them up, 2 add and push the sums, 3 take them.

    Args:
        x, out: words; may be the same.
        num_words, chunk: of ``x``, and of a rank's part.
        flags, inbox, results: offsets in bytes in everybody's memory.
        BLOCK: words that a block moves at a time.
        table, epochs, polls, KIND, RANK, N, PHASE: as in ``one_shot_kernel``.
    """
    epoch = tl.load(epochs + tl.program_id(0), volatile=True) + 1
    step = tl.num_programs(0) * BLOCK
    begin = tl.program_id(0) * BLOCK
    lanes = tl.arange(0, BLOCK)
    if PHASE == 0 or PHASE == 1:
        start = begin
        while start < chunk:
            offset = start + lanes
            for distance in tl.static_range(1, N):
                peer = (RANK + distance) % N
                inside = (offset < chunk) & (peer * chunk + offset < num_words)
                there = (memory_of(table, peer) + inbox).to(tl.pointer_type(tl.int32)) + RANK * chunk
                word = tl.load(x + peer * chunk + offset, mask=inside)
                tl.store(tl.multiple_of(there, 16) + offset, word, mask=inside)
            start += step
    if PHASE == 0:
        meet(table, flags, 2 * epoch, polls, RANK, N)
    if PHASE == 0 or PHASE == 2:
        # Said here, or Triton forgets it, and reads word by word.
        here = tl.multiple_of((memory_of(table, RANK) + inbox).to(tl.pointer_type(tl.int32)), 16)
        start = begin
        while start < chunk:
            offset = start + lanes
            inside = (offset < chunk) & (RANK * chunk + offset < num_words)
            first, second = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            for sender in tl.static_range(N):
                if sender == RANK:  # which need not lie at a multiple of 16 bytes
                    word = tl.load(x + RANK * chunk + offset, mask=inside, other=0)
                else:
                    word = tl.load(here + sender * chunk + offset, mask=inside, other=0)
                if sender == 0:
                    first, second = _first(word, KIND), _second(word, KIND)
                else:
                    first, second = first + _first(word, KIND), second + _second(word, KIND)
            word = _word(first, second, KIND)
            tl.store(out + RANK * chunk + offset, word, mask=inside)
            for distance in tl.static_range(1, N):
                there = (memory_of(table, (RANK + distance) % N) + results).to(tl.pointer_type(tl.int32))
                tl.store(tl.multiple_of(there + RANK * chunk, 16) + offset, word, mask=inside)
            start += step
    if PHASE == 0:
        meet(table, flags, 2 * epoch + 1, polls, RANK, N)
    if PHASE == 0 or PHASE == 3:
        here = tl.multiple_of((memory_of(table, RANK) + results).to(tl.pointer_type(tl.int32)), 16)
        start = begin
        while start < chunk:
            offset = start + lanes
            for distance in tl.static_range(1, N):
                owner = (RANK + distance) % N
                inside = (offset < chunk) & (owner * chunk + offset < num_words)
                word = tl.load(here + owner * chunk + offset, mask=inside)
                tl.store(out + owner * chunk + offset, word, mask=inside)
            start += step
        end_call(epochs, epoch)
