"""Backward in two halves: the numbers of one backward, without walking the path twice."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tplab.pipeline.schedule import Op
from tplab.pipeline.split_backward import input_half
from tplab.pipeline.stages import ModuleStage


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Tied(nn.Module):
    """The same weight twice, one use below the other, and a scale that is used in both places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(width, width), nn.Parameter(torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.tanh(self.linear(x * self.scale))) * self.scale


class Bypass(nn.Module):
    """A weight that reaches the output without the input, an unused one, and a frozen one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift, self.unused = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.frozen = nn.Linear(width, width).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + torch.sigmoid(self.shift) * x.detach()


class TwoOutputs(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.a(x)
        return hidden, self.b(hidden), self.b.bias * 2


STAGES: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda w: nn.Linear(w, w),
    "mlp": lambda w: nn.Sequential(nn.Linear(w, 2 * w), nn.ReLU(), nn.Linear(2 * w, w)),
    "residual": lambda w: nn.Sequential(Residual(w), Residual(w)),
    "attention": lambda w: nn.TransformerEncoderLayer(w, 1, 2 * w, dropout=0.0, batch_first=True),
    "tied": Tied,
    "bypass": Bypass,
    "two outputs": TwoOutputs,
    "no weights": lambda w: nn.Tanh(),
}


def as_tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("input_needs_grad", [True, False])
def test_same_gradients_as_one_backward(name: str, input_needs_grad: bool) -> None:
    torch.manual_seed(0)
    stage = STAGES[name](4).double()
    want = {key: torch.zeros_like(value) for key, value in stage.named_parameters()}
    halves, input_grads = [], []
    for _ in range(2):  # two micro-batches: gradients add up
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=input_needs_grad)
        outputs = as_tuple(stage(x))
        output_grads = [torch.randn_like(y) for y in outputs]
        ends = [(y, g) for y, g in zip(outputs, output_grads, strict=True) if y.requires_grad]
        if ends:
            leaves = [x, *stage.parameters()]
            needed = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(
                [y for y, _ in ends], needed, [g for _, g in ends], retain_graph=True, allow_unused=True
            )
            by_leaf = dict(zip(map(id, needed), found, strict=True))
            for key, value in stage.named_parameters():
                if by_leaf.get(id(value)) is not None:
                    want[key] += by_leaf[id(value)]
            input_grads.append(by_leaf.get(id(x)))
        got, half = input_half(outputs, output_grads, [x], stage.parameters())
        halves.append(half)
        if input_needs_grad and input_grads[-1] is not None:
            torch.testing.assert_close(got[0], input_grads[-1])
        else:
            assert got == (None,)
    assert all(value.grad is None for value in stage.parameters()), "I touched the weights"
    for half in reversed(halves):
        half.run()
    for key, value in stage.named_parameters():
        torch.testing.assert_close(value.grad if value.grad is not None else torch.zeros_like(value), want[key])


def test_a_loss_needs_no_gradient_of_its_own() -> None:
    stage = nn.Linear(3, 1)
    x = torch.randn(2, 3, requires_grad=True)
    loss = stage(x).square().mean()
    want = torch.autograd.grad(loss, [x, stage.weight], retain_graph=True)
    (dx,), half = input_half([loss], [None], [x], stage.parameters())
    half.run()
    torch.testing.assert_close(dx, want[0])
    torch.testing.assert_close(stage.weight.grad, want[1])


class Matmuls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_halves_together_do_the_matmuls_of_one_backward(depth: int) -> None:
    stage = nn.Sequential(*[module for _ in range(depth) for module in (nn.Linear(4, 4), nn.Tanh())])
    x = torch.randn(3, 4, requires_grad=True)
    y = stage(x)
    with Matmuls() as whole:
        torch.autograd.grad(y, [x, *stage.parameters()], torch.ones_like(y), retain_graph=True)
    with Matmuls() as first:
        _, half = input_half([y], [torch.ones_like(y)], [x], stage.parameters())
    with Matmuls() as second:
        half.run()
    assert whole.count == 2 * depth
    assert (first.count, second.count) == (depth, depth)


def test_w_frees_the_graph() -> None:
    import weakref

    stage = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    y = stage(torch.randn(3, 4, requires_grad=True))
    graph = weakref.ref(y)
    _, half = input_half([y], [torch.ones_like(y)], [], stage.parameters())
    del y
    assert graph() is not None
    half.run()
    assert graph() is None


@pytest.mark.parametrize("op", [Op.B, Op.I])
def test_a_loss_that_needs_no_gradient(op: Op) -> None:
    """A last stage that is frozen, after others that are."""
    stage = ModuleStage(nn.Linear(3, 3).requires_grad_(False), lambda y, i: y.sum(), training=True)
    stage.forward(0, (torch.ones(2, 3),))
    assert stage.backward(0, (torch.tensor(1.0),), op) == ()
    if op is Op.I:
        stage.weight_gradients(0)
    assert stage.gradients() == {}
