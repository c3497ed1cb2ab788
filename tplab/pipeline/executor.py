"""Interpret one rank's row of a table: compute, start sends, post receives, wait for what is used next.

Every table that ``validate`` accepts, not one loop per schedule: a schedule is right or wrong as data, before it runs,
and this is right or wrong once. A rank waits in one place only, for the input of the computation that is next in its
row; see ``tplab.pipeline.channels`` for why that cannot end in a circle that the table does not have.

Spans are on the host's monotonic clock, the same for all ranks of a machine. On a GPU they are CUDA events, which an
event recorded at a known time maps onto it: the host is ahead of the device.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.measure.clock import CudaClock, HostClock
from tplab.pipeline.channels import Boundary, Channels, Key, Meta, Metas, describe, text_of
from tplab.pipeline.job import Job, StageError
from tplab.pipeline.routes import Routes, open_routes
from tplab.pipeline.schedule import Action, Op
from tplab.pipeline.stages import (
    MicroBatchFeed,
    ModuleStage,
    RunnableStage,
    Tensors,
    WaitingStage,
    num_floats,
    other_dtypes,
)
from tplab.pipeline.table import Flow

if TYPE_CHECKING:
    from tplab.cluster import Rank

_REPORT_EVERY_S = 0.25


def run_job(rank: "Rank", job: Job, **tags: Any) -> dict[str, Any]:
    """Runs on the ranks. Reports ``records`` as they come; returns this rank's ``outputs`` (of the last stage, by
    micro-batch), ``losses`` and ``gradients`` (by stage and name).

    Args:
        tags: fields of every report, where the caller runs several jobs; the caller then reports their progress.
    """
    executor = Executor(rank, job, tags)
    plan = job.plan
    with _no_collection(), open_routes(rank, executor.flow.links(plan.schedule), plan.links) as routes:
        for turn in range(plan.warm_ups + 1):
            dist.barrier(group=rank.group)
            executor.run(routes, counts=turn == plan.warm_ups)
    return executor.results()


@contextmanager
def _no_collection() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: with torch loaded one took 0.17 s, and all ranks waited for it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Executor:
    """One rank, its stages, and the row it works off."""

    def __init__(self, rank: "Rank", job: Job, tags: Mapping[str, Any]) -> None:
        self._rank = rank
        self._job, self._plan, self._waits = job, job.plan, job.waits
        self._tags = tags
        self._schedule = schedule = job.plan.schedule
        self._row = [action for action in schedule.ranks[rank.index] if action is not None]
        self._training = not schedule.is_inference
        self.flow = flow = Flow(schedule)
        self._wanted_here = {
            made
            for made in (flow.maker(action) for action in self._row if action.op.is_compute)
            if made is not None and schedule.stage_to_rank(made.stage) == rank.index
        }
        self._last = schedule.total_stages - 1
        m, uneven = schedule.num_micro_batches, job.plan.dynamic_shapes
        self._inputs = MicroBatchFeed("inputs", job.plan.inputs, rank, m, uneven=uneven)
        self._targets = MicroBatchFeed("targets", job.plan.targets, rank, m, uneven=uneven)
        on_gpu = rank.device.type == "cuda"
        self._clock = CudaClock(rank.device) if on_gpu and self._waits is None else HostClock()
        # One rank reports progress: the one that ends last.
        self._tells = not tags and rank.index == schedule.stage_to_rank(0 if self._training else self._last)
        self._stages: dict[int, RunnableStage] = {
            index: self._make_stage(index)
            for index in sorted({action.stage for action in self._row if action.op.is_compute})
        }
        self.outputs: dict[int, Tensors] = {}

    def _make_stage(self, index: int) -> RunnableStage:
        waits, stage = self._waits, self._plan.stage
        if waits is not None:
            sizes = [num_floats(num_bytes) for num_bytes in waits.message_bytes[index]]
            output = torch.rand(max(sizes), device=self._rank.device)
            outputs = [output[:size].requires_grad_(self._training) for size in sizes]
            return WaitingStage(index, waits.durations, outputs, self._report_while)
        assert callable(stage)
        try:
            module = stage(self._rank, index)
        except Exception as error:
            raise StageError(f"making stage {index} failed: {type(error).__name__}: {error}") from error
        if not callable(module):
            raise StageError(f"stage({self._rank.index}, {index}) must return a module; it returned {module!r}")
        ends = self._training and index == self._last
        return ModuleStage(module, self._loss if ends else None, training=self._training)

    def _loss(self, output: Any, micro_batch: int) -> torch.Tensor:
        loss: Callable[..., Any] = self._plan.loss or (lambda y: y)
        return loss(output) if self._plan.targets is None else loss(output, *self._targets(micro_batch))  # type: ignore[no-any-return]

    def run(self, routes: Routes, *, counts: bool) -> None:
        """Work off the row once; ``counts``: and report what ran when."""
        self._routes = routes
        self._channels = Channels(routes.outgoing, routes.incoming, self._rank.device)
        self._local: dict[Key, tuple[Tensors, Metas]] = {}  # between stages of this rank
        self._made: dict[Key, tuple[Tensors, Metas]] = {}
        self._records: list[tuple[int, Action, Any, Any]] = []
        self._done = 0
        self._counts = counts
        self._reported_at = time.monotonic()
        self.outputs.clear()
        for stage in self._stages.values():
            if isinstance(stage, ModuleStage):
                stage.start_over()
        self._agree_on_waits()
        self._to_post: dict[int, deque[tuple[Key, Boundary]]] = {}
        for action in self._row:
            if action.op.is_recv:
                src, key = self._message_of(action)
                self._to_post.setdefault(src, deque()).append((key, self._boundary(key)))
        self._clock.start()  # before the first receive: it waits until a GPU has nothing left to do
        for src in self._to_post:
            self._post(src, self._job.recv_ahead)
        for action in self._row:
            match action.op:
                case Op.F:
                    self._forward(action)
                case Op.B | Op.I:
                    self._backward(action)
                case Op.W:
                    self._weight_gradients(action)
                case Op.SEND_F | Op.SEND_B:
                    self._send(action)
                case Op.RECV_F | Op.RECV_B:
                    self._post(self._message_of(action)[0], 1)
            self._done += 1
        self._channels.finish()
        self._report(final=True)

    def _forward(self, action: Action) -> None:
        stage, _, micro_batch = action
        made = self.flow.maker(action)
        if made is None:
            inputs = () if self._waits is not None else self._inputs(micro_batch)
            metas, origin = describe(inputs), "from inputs"
        else:
            inputs, metas = self._take(made, Action(stage, Op.RECV_F, micro_batch))
            origin = f"from stage {made.stage}"
        for x, meta in zip(inputs, metas, strict=True):
            x.requires_grad_(meta.requires_grad and self._training)
        outputs = self._compute(
            action, lambda: self._stages[stage].forward(micro_batch, inputs), f"{text_of(describe(inputs))} {origin}"
        )
        if stage == self._last and self._waits is None and self._plan.keep:
            self.outputs[micro_batch] = tuple(y.detach() for y in outputs)
        self._hand_on(action, action, outputs)

    def _backward(self, action: Action) -> None:
        stage, op, micro_batch = action
        made = self.flow.maker(action)
        if made is None:
            grads: Tensors = () if self._waits is not None else self._of_mean(micro_batch)
            origin = "of the loss"
        else:
            grads, _ = self._take(made, Action(stage, Op.RECV_B, micro_batch))
            origin = f"from stage {made.stage}"
        found = self._compute(
            action,
            lambda: self._stages[stage].backward(micro_batch, grads, op),
            f"a gradient {text_of(describe(grads))} {origin}",
        )
        self._hand_on(action, action._replace(op=Op.B), found)

    def _of_mean(self, micro_batch: int) -> Tensors:
        """The gradient of the mean of all losses by this micro-batch's."""
        stage = self._stages[self._last]
        assert isinstance(stage, ModuleStage)
        return (torch.full_like(stage.losses[micro_batch].reshape(()), 1 / self._schedule.num_micro_batches),)

    def _weight_gradients(self, action: Action) -> None:
        self._compute(action, lambda: self._stages[action.stage].weight_gradients(action.micro_batch), "what I left")

    def _compute(self, action: Action, work: Callable[[], Any], given: str) -> Any:
        start = self._clock.mark()
        try:
            result = work()
        except Exception as error:
            raise StageError(
                f"stage {action.stage} failed in {action} on {given}: {type(error).__name__}: {error}"
                f"{other_dtypes(self._stages[action.stage], given)}"
            ) from error
        self._record(self._rank.index, action, start, self._clock.mark())
        if time.monotonic() - self._reported_at > _REPORT_EVERY_S:
            self._report()
        return result

    def _hand_on(self, action: Action, key: Key, tensors: Tensors) -> None:
        """Keep what was computed for its SEND, or for the other stage of this rank that takes it in."""
        metas = describe(tensors)
        message = tuple(y.detach() for y in tensors), metas
        if key in self._wanted_here:
            self._local[key] = message
            return
        if self.flow.message(action) is None:
            return
        self._made[key] = message
        told = self._channels.told(self._boundary(key))
        if key.op is Op.F and told is not None and told != metas:
            raise StageError(
                f"stage {action.stage} made {text_of(metas)} of micro-batch {action.micro_batch}, but "
                f"{text_of(told)} before: shapes are told once, with the first message. Make the micro-batches alike, "
                f"or pass dynamic_shapes=True"
            )
        if key.op is Op.F and self._training:  # in which shapes gradients will come back
            self._channels.know(
                self._boundary(Key(key.stage + 1, Op.B, key.micro_batch)),
                tuple(meta for meta in metas if meta.requires_grad),
            )

    def _send(self, action: Action) -> None:
        key = self.flow.made(action)
        tensors, metas = self._made.pop(key)
        if self._routes.emulated is None:  # with an emulated link the receiver knows when the message left
            self._record(self._rank.index, action, self._clock.mark(), None)
        dst = self._schedule.stage_to_rank(self.flow.recv_of(action).stage)
        self._channels.send(dst, self._boundary(key), tensors, metas, f"the output of stage {action.stage}")

    def _message_of(self, recv: Action) -> tuple[int, Key]:
        """The rank that it comes from, and what it is."""
        key = self.flow.made(recv)
        return self._schedule.stage_to_rank(key.stage), key

    def _post(self, src: int, num_receives: int) -> None:
        """Post receives in the order of the table, however far ahead of it."""
        queue = self._to_post[src]
        for _ in range(min(num_receives, len(queue))):
            self._channels.post(src, *queue.popleft())

    def _agree_on_waits(self) -> None:
        if self._waits is not None:
            for stage, sizes in enumerate(self._waits.message_bytes):
                for micro_batch, num_bytes in enumerate(sizes):
                    meta = Meta(torch.float32, self._training, (num_floats(num_bytes),))
                    for key in (Key(stage, Op.F, micro_batch), Key(stage + 1, Op.B, micro_batch)):
                        self._channels.agree(self._boundary(key), (meta,))

    def _take(self, key: Key, recv: Action) -> tuple[Tensors, Metas]:
        """Wait for a message, or get it from another stage of this rank."""
        if key in self._wanted_here:
            return self._local.pop(key)
        start = self._clock.mark()
        tensors, metas = self._channels.take(key)
        if self._waits is not None and self._rank.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._record(self._rank.index, recv, start, self._clock.mark())
        if self._routes.emulated is not None and tensors:
            deliveries = list(self._routes.emulated.deliveries)[-len(tensors) :]
            send = key._replace(op=Op.SEND_F if key.op is Op.F else Op.SEND_B)
            self._record(
                self._schedule.stage_to_rank(key.stage),
                send,
                min(delivery.start_s for delivery in deliveries),
                max(delivery.due_s for delivery in deliveries),
            )
        return tensors, metas

    def _boundary(self, key: Key) -> Boundary:
        """The boundary of a message: in inference prefills and decodes differ in shape."""
        if self._plan.dynamic_shapes:
            return key.op, key.stage, key.micro_batch
        described = self._schedule.micro_batches
        return key.op, key.stage, described[key.micro_batch].phase if described else ""

    def _record(self, rank: int, action: Action, start: Any, end: Any) -> None:
        if self._counts:
            self._records.append((rank, action, start, end))

    def _report_while(self, due_s: float) -> None:
        now = time.monotonic()
        if now - self._reported_at > _REPORT_EVERY_S and due_s - now > 5e-3:
            self._report()

    def _report(self, *, final: bool = False) -> None:
        """Send on what is new. On a GPU only at the end: times are known once the device has done the work."""
        self._reported_at = time.monotonic()
        fields: dict[str, Any] = {}
        if self._counts and (final or self._clock.is_immediate):
            marks, self._records = self._records, []
            seconds = self._clock.seconds
            fields["records"] = [
                (rank, action, seconds(start), None if end is None else seconds(end))
                for rank, action, start, end in marks
            ]
        if self._tells:
            fields |= {"phase": "run" if self._counts else "warm-up", "done": self._done, "total": len(self._row)}
        if fields:
            self._rank.report(**fields, **self._tags)

    def results(self) -> dict[str, Any]:
        modules = {i: stage for i, stage in self._stages.items() if isinstance(stage, ModuleStage)}
        last = modules.get(self._last)
        return {
            "outputs": self.outputs,
            "losses": {} if last is None else {i: float(loss) for i, loss in last.losses.items()},
            "gradients": {i: stage.gradients() for i, stage in modules.items()}
            if self._training and self._plan.keep
            else {},
        }
