"""Backward in two halves: the gradient of a stage's input now (I), the gradients of its weights later (W).

Zero-bubble schedules need the first half soon, because the stage before waits for it, and may run the second whenever
the rank would idle (Qi et al., "Zero Bubble Pipeline Parallelism", 2023). Two calls of ``torch.autograd.grad`` with
different inputs would give the same numbers, but the second would walk the chain from output to input again: backward
would cost half as much again. So I notes the gradients that arrive at the nodes where paths to weights branch off, and
W starts from those, once per group of weights that hang at the same nodes::

    output -> [linear 2] -> [relu] -> [linear 1] -> input        the path, walked by I
                  |                       |
              weight, bias            weight, bias               walked by W, from the noted gradients

A weight used at several nodes that depend on each other (tied weights) costs W the part of the path between them once
more. Hooks of weights and modules do not see W as one backward.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Gradients = tuple[torch.Tensor | None, ...]


@dataclass(slots=True)
class WeightHalf:
    """What W of one stage and micro-batch still has to do; holds the graph and its activations until then."""

    groups: list[tuple[list[torch.Tensor], list[Node], list[tuple[GradientEdge, torch.Tensor | None]]]]
    """Groups of parameters, the on-path nodes where their gradients branch off, and the outputs they reach off the
    path."""
    noted: dict[Node, Gradients]
    """Node -> the gradients that arrived there in I."""
    outputs: Sequence[torch.Tensor] = field(default_factory=list)
    """Outputs of the stage, kept because they own the graph."""

    def run(self) -> None:
        """Add the gradients of the weights to their ``.grad``; once only."""
        for weights, nodes, outside in self.groups:
            edges, gradients = [edge for edge, _ in outside], [gradient for _, gradient in outside]
            for node in nodes:
                for index, gradient in enumerate(self.noted.get(node, ())):
                    if gradient is not None:
                        edges.append(GradientEdge(node, index))
                        gradients.append(gradient)
            if not edges:
                continue
            # Where one node depends on another, its gradient would arrive a second time, on top of the noted one.
            hooks = [node.register_prehook(_replace_by(self.noted[node])) for node in nodes if node in self.noted]
            try:
                found = torch.autograd.grad(edges, weights, gradients, retain_graph=True, allow_unused=True)
            finally:
                for hook in hooks:
                    hook.remove()
            for weight, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        self.groups, self.noted, self.outputs = [], {}, []


def input_half(
    outputs: Sequence[torch.Tensor],
    output_grads: Sequence[torch.Tensor | None],
    inputs: Sequence[torch.Tensor],
    weights: Iterable[torch.Tensor],
) -> tuple[Gradients, WeightHalf]:
    """I: the gradients of ``inputs``, and what is left for W.

    Args:
        outputs: what the stage returned, or its loss; those without a graph are left out.
        output_grads: the gradient of each; None stands for 1, for a loss.
        inputs: leaves; the gradient of one that requires none is None, as of one that the outputs do not depend on.
        weights: parameters of the stage.
    """
    ends = [(y, g) for y, g in zip(outputs, output_grads, strict=True) if y.requires_grad]
    roots = [(get_gradient_edge(y), g) for y, g in ends]
    wanted = [x for x in inputs if x.requires_grad]
    targets = {get_gradient_edge(x).node for x in wanted}
    weight_of = {get_gradient_edge(w).node: w for w in weights if w.requires_grad}
    order = _children_first([edge.node for edge, _ in roots])
    path: set[Node] = set()
    for node in order:
        if node in targets or any(child in path for child, _ in node.next_functions):
            path.add(node)

    # Weights below each node, reached without the path; then for each weight the nodes on the path it hangs at.
    below: dict[Node, frozenset[Node]] = {}
    hangs_at: dict[Node, list[Node]] = {leaf: [] for leaf in weight_of}
    for node in order:
        off_path = [below[child] for child, _ in node.next_functions if child is not None and child not in path]
        leaves = frozenset[Node]().union(*off_path) | ({node} if node in weight_of else frozenset())
        below[node] = leaves
        if node in path:
            for leaf in leaves:
                hangs_at[leaf].append(node)
    outside: dict[Node, list[int]] = {leaf: [] for leaf in weight_of}
    for index, (edge, _) in enumerate(roots):
        if edge.node not in path:
            for leaf in below[edge.node]:
                outside[leaf].append(index)
    groups: dict[tuple[tuple[Node, ...], tuple[int, ...]], list[torch.Tensor]] = {}
    for leaf, weight in weight_of.items():
        groups.setdefault((tuple(hangs_at[leaf]), tuple(outside[leaf])), []).append(weight)

    noted: dict[Node, Gradients] = {}
    hooks = [node.register_prehook(_note_in(noted, node)) for nodes, _ in groups for node in set(nodes)]
    try:
        on_path = [(y, g) for (y, g), (edge, _) in zip(ends, roots, strict=True) if edge.node in path]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in on_path], wanted, [g for _, g in on_path], retain_graph=True, allow_unused=True
            )
            if on_path
            else [None] * len(wanted)
        )
    finally:
        for hook in hooks:
            hook.remove()
    half = WeightHalf(
        groups=[(ws, list(nodes), [roots[i] for i in out]) for (nodes, out), ws in groups.items() if nodes or out],
        noted=noted,
        outputs=[y for y, _ in ends],
    )
    return tuple(next(found) if x.requires_grad else None for x in inputs), half


def _children_first(roots: Iterable[Node]) -> list[Node]:
    """All nodes of the graph, each after those it hands gradients to."""
    done: dict[Node, None] = {}
    stack = [(node, False) for node in roots]
    while stack:
        node, children_done = stack.pop()
        if node in done:
            continue
        if children_done:
            done[node] = None
            continue
        stack.append((node, True))
        stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in done]
    return list(done)


def _note_in(noted: dict[Node, Gradients], node: Node) -> Callable[[Gradients], None]:
    def hook(gradients: Gradients) -> None:
        noted[node] = gradients

    return hook


def _replace_by(gradients: Gradients) -> Callable[[Gradients], Gradients]:
    return lambda _: gradients
