"""What must be said beside a prediction: requests the model was not made for, and what a calibration leaves open."""

from tplab.models.spec import ModelSpec
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.workload import Workload


def length_notes(model: ModelSpec, workload: Workload) -> tuple[str, ...]:
    asked, most = workload.context_length, model.max_length
    if most is None or asked <= most:
        return ()
    return (f"requests of {asked} tokens are longer than the {most} the model was made for: engines refuse them",)


def calibration_notes(server: Server) -> tuple[str, ...]:
    """What was measured, and what of it this prediction could not use."""
    c = server.calibration
    if c is None:
        return ()
    notes = [c.badge]
    if c.matmuls and not server.rates.curves:
        precisions = ", ".join(sorted({times.precision for times in c.matmuls}))
        notes.append(
            f"its products are in {precisions}, the model's weights in {server.model.weight_precision}: matmuls are "
            f"taken from the spec sheet"
        )
    if c.matmuls and c.step_overhead_us is None:
        notes.append(f"the time between products is that of {server.workload.engine.name}, not of the lab's own loop")
    return (*notes, *c.notes)
