"""Types of flags: each accepts a text or raises; standard library only, to answer at once."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from utilities.registry import closest_first


@dataclass(frozen=True)
class OneOf:
    """Accepts one of ``names``, or a file."""

    names: tuple[str, ...]
    ending: str = ""  # of files; another file is accepted if it exists

    def __call__(self, value: str) -> str:
        is_file = self.ending and (
            value.endswith(self.ending) or Path(value).expanduser().is_file()
        )
        if value not in self.names and not is_file:
            known = ", ".join(closest_first(value, self.names))
            known += f", or a {self.ending} file" if self.ending else ""
            raise argparse.ArgumentTypeError(f"{value} is unknown; known, closest first: {known}")
        return value

    def __str__(self) -> str:
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"{names}, or a `{self.ending}` file" if self.ending else names


SMALLEST = 1e-30  # of numbers that are not 0: what is smaller becomes 0 or infinite in float32


@dataclass(frozen=True)
class Number:
    """Accepts a finite ``kind`` in [low, high], or in (low, high] if ``above``.

    Its size is at most ``most``, far above any sensible value: what is larger overflows later, or
    fills the memory.
    """

    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    most: float = 1e9

    @property
    def bound(self) -> str:
        """The range in words, such as "at least 0 and at most 1"; empty if there is none."""
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"at most {self.high:g}")
        return " and ".join(bounds)

    def __call__(self, value: str) -> float:
        try:
            number = self.kind(value)
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{value!r} is not {what}") from None
        if not abs(number) < math.inf:  # math.isfinite takes no integer of 400 digits
            raise argparse.ArgumentTypeError(f"{value} is not finite")
        if abs(number) > self.most:
            raise argparse.ArgumentTypeError(
                f"{value} is too large; it must be at most {self.most:,.0f}"
            )
        if 0 < abs(number) < SMALLEST:
            raise argparse.ArgumentTypeError(
                f"{value} is too small; it must be at least {SMALLEST:g}"
            )
        if number < self.low or number > self.high or (self.above and number == self.low):
            raise argparse.ArgumentTypeError(f"{value} is out of range; it must be {self.bound}")
        return number

    def __str__(self) -> str:
        return f"{'whole number' if self.kind is int else 'number'} {self.bound}".strip()


class Period:
    """Accepts a number of steps, or with an m a number of minutes."""

    def __call__(self, value: str) -> str:
        try:
            amount = float(value[:-1]) if value.endswith("m") else int(value)
        except ValueError:
            amount = -1
        if not 0 <= amount < math.inf:
            raise argparse.ArgumentTypeError(
                f"{value!r} must be a number of steps, such as 500, or of minutes, such as 15m"
            )
        return value

    def __str__(self) -> str:
        return "steps, or minutes such as `15m`"


@dataclass(frozen=True)
class Plain:
    """Accepts any text, or marks a switch, which takes no value."""

    name: str

    def __call__(self, value: str) -> str:
        return value

    def __str__(self) -> str:
        return self.name


text, switch, period = Plain("text"), Plain("switch"), Period()
real = Number()
count = Number(int, 1, most=10**6)  # a size
natural = Number(int, 0, most=2**32 - 1)  # a number of steps, or a seed
positive = Number(low=0, above=True)
nonnegative = Number(low=0)
share = Number(low=0, high=1)
cosine = Number(low=-1, high=1)
