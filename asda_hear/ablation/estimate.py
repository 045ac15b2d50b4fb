"""What the rest of a plan will take, from a measured step and from what is done already."""

from asda_hear.ablation.cells import Work, is_done
from asda_hear.ablation.plan import text_of
from asda_hear.ablation.run import Shard


def print_estimate(work: Work, shard: Shard, jobs: int) -> None:
    """List the units."""
    for unit in shard.of(work.units()):
        state = "done" if is_done(work, unit) else "to do"
        for cell in unit.cells:
            print(f"{cell.name}  seed {cell.seed}  {state:<8} {text_of(cell.labels)}")
