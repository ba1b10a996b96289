"""What compositions are like, in worker processes."""

from pymatgen.core import Composition, Element


def smact_valid(formula: tuple[int, ...]) -> bool:
    """Whether charges can balance: SMACT's rules, for a formula key (Z1, n1, Z2, ...).

    True where common oxidation states add up to zero and the more electronegative
    elements have the negative ones, and of alloys of metals (Davies et al., J. Open
    Source Softw. 4, 1361, 2019).
    """
    from smact.screening import smact_validity  # loads a quarter of the elements' lore

    symbols = [Element.from_Z(z).symbol for z in formula[::2]]
    counts = dict(zip(symbols, formula[1::2], strict=True))
    return bool(smact_validity(Composition(counts)))
