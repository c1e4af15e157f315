"""What a plan says of a sweep besides numbers: what may go another way than planned, and with what the arms begin."""

from prefixray.config.schema import ArmConfig
from prefixray.planning.known import Known
from prefixray.search.sampling.starting_points import starting_text
from prefixray.search.sampling.warm_start import read_warm_start, warm_start_text


def cautions(known: Known) -> tuple[str, ...]:
    """A sentence for each. Raises `UserError` where `search.warm_start` cannot be read."""
    config, base = known.config, known.base
    lines = []
    if len({arm.num_trials for arm in config.arms}) > 1:
        lines.append("The arms have unequal budgets: the table of the results will say so.")
    lines += [
        f"{arm.name}: one range of learning rates serves flat prefixes and the network, whose good rates lie apart: "
        "give each its own (a list with when: {mid_dim: ...})."
        for arm in config.arms
        if _shares_rates(arm)
    ]
    lines += starting_text(config, None if base is None else base.shape.hidden_size)
    lines += warm_start_text(read_warm_start(config), config)
    if config.search.stop_when is not None:
        lines.append("A search may end before its last trial (search.stop_when); the plan counts all trials.")
    if config.search.max_hours is not None:
        lines.append(f"No trial starts after {config.search.max_hours:g} hours (search.max_hours).")
    if config.search.max_gpu_hours is not None:
        lines.append(f"No trial starts after {config.search.max_gpu_hours:g} device hours (search.max_gpu_hours).")
    return tuple(lines)


def _shares_rates(arm: ArmConfig) -> bool:
    """Whether one range of learning rates serves flat prefixes and such that a network gives."""
    widths = arm.dimensions["mid_dim"].ends() if "mid_dim" in arm.dimensions else ()
    rates = arm.dimensions.get("learning_rate")
    cases = () if rates is None else rates.cases
    return None in widths and len(set(widths)) > 1 and all("mid_dim" not in case.when for case in cases)
