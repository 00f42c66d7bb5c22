"""Claims about the networks, checked by what the code computes; and the figures behind them."""

from ._claim import Claim, Outcome, Verdict, check
from .claims import all_claims

__all__ = ["Claim", "Outcome", "Verdict", "all_claims", "check"]
