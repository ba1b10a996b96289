"""The package from Python: load a model, sample, relax, evaluate, screen.

    from chemeleon_jax.interface import evaluate, load, relax, screen

    crystals = load("mini:ldm_conditional").sample(100, composition="LiMnO2")
    print(evaluate(crystals.structures).scores)

Structures are pymatgen's, tables pandas'. The programs call the same functions, and
errors are theirs: a `UserError`, a `ValueError` whose message names the program's flag.
See docs/python.md.
"""

from chemeleon_jax.interface.evaluation import Evaluation, evaluate
from chemeleon_jax.interface.model import Model, load
from chemeleon_jax.interface.relaxation import relax
from chemeleon_jax.interface.result import Crystals
from chemeleon_jax.interface.screening import Screening, screen

__all__ = ["Crystals", "Evaluation", "Model", "Screening"]
__all__ += ["evaluate", "load", "relax", "screen"]
