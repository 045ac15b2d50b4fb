"""The public contract suite: what every plugin of a family must do, for the tests of its author and of this project.

    from asda_core.testing import check_mixer
    def test_my_mixer():
        check_mixer(my_module.asda_mixers()[0])

Each check raises AssertionError with the clause that is violated, and returns None.
"""

from asda_core.contract.front_ends import check_front_end
from asda_core.contract.mixers import check_mixer
from asda_core.contract.modules import check_all_parameters_move, check_state, seeded
from asda_core.contract.training import check_adapter, check_combination, check_objective, small_encoder

__all__ = [
    "check_adapter",
    "check_all_parameters_move",
    "check_combination",
    "check_front_end",
    "check_mixer",
    "check_objective",
    "check_state",
    "seeded",
    "small_encoder",
]
