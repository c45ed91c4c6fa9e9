"""How another library's places are taken, and given back."""

from prefuse._patches.acceleration import Acceleration
from prefuse._patches.attributes import Patch, original, patch

__all__ = ["Acceleration", "Patch", "original", "patch"]
