"""Formulas and chemical systems as people write them."""

import re
import warnings
from fractions import Fraction

from pymatgen.core import Composition, Element

from chemeleon_jax.data.crystals import MAX_ATOMIC_NUMBER, SYMBOLS
from chemeleon_jax.errors import UserError

MAX_LENGTH = 200  # characters
AMOUNT = r"(\d{1,4}(?:\.\d{1,6})?)"
# An element or a closed bracket with its amount, or an opened bracket.
FORMULA = re.compile(rf"\s*(?:(?:[A-Z][a-z]?|[)\]]){AMOUNT}?|[(\[])\s*")


def parse_composition(formula: str) -> tuple[Composition, int]:
    """The atoms of a formula unit as given, and how many units a reduced formula is.

    "LiMnO2" -> (Li1 Mn1 O2, 1); "Li4Mn4O8" -> (Li4 Mn4 O8, 4); "Li0.5MnO2" has no whole
    number of atoms and becomes (Li1 Mn2 O4, 1). Deuterium is hydrogen.

    Args:
      formula: of elements, whole amounts or parts below one, and brackets.

    Returns:
      A `Composition` and the number of units.

    Raises:
      UserError: it is not plainly a formula, or has an element that no crystal here
        can have.
    """
    try:
        _check_formula(formula)
        amounts: dict[str, float] = {}
        for element, amount in Composition(formula, strict=True).items():
            check_element(Element(element.symbol))
            symbol = SYMBOLS[element.Z - 1]
            amounts[symbol] = amounts.get(symbol, 0.0) + amount
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of elements without electronegativity
            reduced, factor = Composition(amounts).get_integer_formula_and_factor()
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--composition={formula[:MAX_LENGTH]}: no formula of existing elements "
            f"({error}); write it like LiMnO2"
        ) from error
    factor = round(factor) if factor >= 1 and factor == round(factor) else 1
    return Composition(reduced) * factor, factor


def _check_formula(formula: str) -> None:
    """Refuses what could be read in two ways.

    Raises:
      ValueError: in words, what it is.
    """
    if len(formula) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    at = 0
    while at < len(formula):
        part = FORMULA.match(formula, at)
        if part is None:
            raise ValueError(f"{formula[at:]!r} is no element with its amount")
        amount = Fraction(part[1] or 1)
        if amount == 0:
            raise ValueError(f"{part[0].strip()!r} is none of an element")
        if amount > 1 and amount.denominator > 1:
            raise ValueError(
                f"{part[1]} could be an amount, or a dot before {part[1][-1]} units of "
                "a hydrate: use whole numbers"
            )
        at = part.end()


def parse_chemical_system(system: str) -> frozenset[str]:
    """The element symbols of "Li-Mn-O".

    Raises:
      UserError: one of them is no element that a crystal here can have.
    """
    symbols = set()
    for symbol in system.split("-"):
        try:
            element = Element(symbol)
            check_element(element)
        except ValueError as error:
            raise UserError(
                f"--chemical_system={system[:MAX_LENGTH]}: {symbol[:20]!r} is no "
                f"element that a crystal here can have ({error}); write it like Li-Mn-O"
            ) from error
        symbols.add(SYMBOLS[element.Z - 1])
    return frozenset(symbols)


def check_element(element: Element) -> None:
    """Refuses elements that `validity` refuses, for which nothing is known.

    Raises:
      ValueError: it is one of them.
    """
    if element.Z > MAX_ATOMIC_NUMBER:
        last = SYMBOLS[MAX_ATOMIC_NUMBER - 1]
        raise ValueError(f"{element.symbol} is beyond {last}, the last that is valid")
