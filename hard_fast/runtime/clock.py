"""Wall-clock shares of a run: how long it took, and what of that was waiting or sending."""

import contextlib
import time
from collections.abc import Iterator

from hard_fast.runtime.profile import named


class Clock:
    """Seconds in total, waiting for data and averaging gradients, with a resettable window.

    Resuming continues the totals, so `seconds` counts training time and not the pause between.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._wait_s = 0.0
        self._averaging_s = 0.0
        self._images = 0
        self._since = time.perf_counter()
        self._window = (0.0, 0.0, 0.0, 0)

    @property
    def seconds(self) -> float:
        """Seconds of this run so far, earlier processes of it included."""
        return self._seconds + time.perf_counter() - self._since

    @contextlib.contextmanager
    def waiting(self, num_images: int) -> Iterator[None]:
        """While it lasts, the batch of a step is waited for, which holds so many images."""
        since = time.perf_counter()
        with named("loader"):
            yield
        self.count(num_images, time.perf_counter() - since)

    def count(self, num_images: int, wait_s: float) -> None:
        """Note that one step consumed `num_images` after waiting `wait_s` for them."""
        self._images += num_images
        self._wait_s += wait_s

    def count_averaging(self, seconds: float) -> None:
        """Note how long gradients were averaged over the processes."""
        self._averaging_s += seconds

    def window(self) -> dict[str, float]:
        """Since the last call: images_per_s, shares data_wait and averaging; seconds of the run."""
        start_s, start_wait, start_averaging, start_images = self._window
        self._window = self._totals()
        elapsed = max(self.seconds - start_s, 1e-9)
        return {
            "images_per_s": (self._images - start_images) / elapsed,
            "data_wait": (self._wait_s - start_wait) / elapsed,
            "averaging": (self._averaging_s - start_averaging) / elapsed,
            "seconds": self.seconds,
        }

    def totals(self) -> dict[str, float]:
        """seconds, images_per_s with all waiting inside, shares of data wait and averaging."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": seconds,
            "images_per_s": self._images / seconds,
            "data_wait_share": self._wait_s / seconds,
            "averaging_share": self._averaging_s / seconds,
        }

    def state_dict(self) -> dict[str, float]:
        """Totals, for the checkpoint."""
        names = ("seconds", "wait_s", "averaging_s", "images")
        return dict(zip(names, self._totals(), strict=True))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from saved totals."""
        self._seconds, self._wait_s = state["seconds"], state["wait_s"]
        self._averaging_s, self._images = state["averaging_s"], int(state["images"])
        self._since = time.perf_counter()
        self._window = self._totals()

    def _totals(self) -> tuple[float, float, float, int]:
        return (self.seconds, self._wait_s, self._averaging_s, self._images)
