"""Wall-clock shares of a run: how long it took and how much of that was waiting for data."""

import time


class Clock:
    """Seconds in total and seconds spent waiting for data, with a resettable window.

    Resuming continues the totals, so `seconds` counts training time and not the pause between.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._wait_s = 0.0
        self._images = 0
        self._since = time.perf_counter()
        self._window = (0.0, 0.0, 0)

    @property
    def seconds(self) -> float:
        """Seconds of this run so far, earlier processes of it included."""
        return self._seconds + time.perf_counter() - self._since

    def count(self, num_images: int, wait_s: float) -> None:
        """Note that one step consumed `num_images` after waiting `wait_s` for them."""
        self._images += num_images
        self._wait_s += wait_s

    def window(self) -> dict[str, float]:
        """Speed since the last call: images_per_s, data_wait (share) and seconds of the run."""
        start_s, start_wait, start_images = self._window
        self._window = (self.seconds, self._wait_s, self._images)
        elapsed = max(self.seconds - start_s, 1e-9)
        return {
            "images_per_s": (self._images - start_images) / elapsed,
            "data_wait": (self._wait_s - start_wait) / elapsed,
            "seconds": self.seconds,
        }

    def totals(self) -> dict[str, float]:
        """seconds, images_per_s with the data wait inside, and the data wait's share of it all."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": seconds,
            "images_per_s": self._images / seconds,
            "data_wait_share": self._wait_s / seconds,
        }

    def state_dict(self) -> dict[str, float]:
        """Totals, for the checkpoint."""
        return {"seconds": self.seconds, "wait_s": self._wait_s, "images": self._images}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from saved totals."""
        self._seconds, self._wait_s = state["seconds"], state["wait_s"]
        self._images = int(state["images"])
        self._since = time.perf_counter()
        self._window = (self._seconds, self._wait_s, self._images)
