"""What a prediction assumed, in words: of the model, the engine, the machine and the calibration. Pure."""

from tplab.topology.advisor.hardware_limits import hardware_notes
from tplab.topology.advisor.steps import Steps
from tplab.topology.advisor.workload import MOST
from tplab.topology.machine.machine import Machine

_POLICIES = {
    "mixed": "prompts share the decode steps",
    "prefill-first": "prompts run in steps of their own before the next decode step",
    "static": "a batch of requests starts and ends together",
}


def notes_of(server: Steps, machine: Machine) -> tuple[str, ...]:
    """Approximations and assumptions of what ``server`` says, to be shown with it."""
    return (
        *server.model.notes,
        *_length_notes(server),
        *_engine_notes(server, machine),
        *machine.notes,
        *hardware_notes(server.workload.engine.name, server.model, machine),
        *_calibration_notes(server),
    )


def _engine_notes(server: Steps, machine: Machine) -> tuple[str, ...]:
    """How prompts get their turn, and how many requests run at once: as asked for, or as the engine does by default."""
    e, engine = server.workload.engine, server.engine
    most = e.max_num_seqs or engine.largest_batch(machine.gpu)
    where = "in a micro-batch" if engine.batch_per_stage and not e.max_num_seqs else "at once on a replica"
    said = [_POLICIES[server.policy]]
    said += [f"at most {server.budget:,.0f} tokens a step"] if server.budget < MOST else []
    said += [f"at most {most:,} requests {where}"] if most < MOST else []
    notes = [f"{', '.join(said)} ({engine.version}, where not asked for)"]
    if e.speculative_tokens:
        notes.append(f"{e.speculative_tokens} tokens guessed a step, {server.accepted:.3g} gained with the model's own")
    return tuple(notes)


def _length_notes(server: Steps) -> tuple[str, ...]:
    asked, most = server.workload.context_length, server.model.max_length
    if most is None or asked <= most:
        return ()
    return (f"requests of {asked} tokens are longer than the {most} the model was made for: engines refuse them",)


def _calibration_notes(server: Steps) -> tuple[str, ...]:
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
