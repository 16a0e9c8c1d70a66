"""Signals that stop a run once its checkpoint is saved."""

import signal


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint was saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped at step {step}, which is saved; the same command continues")
        self.exit_status = 128 + number


class StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop after the step; a second one acts at once."""

    requested = False
    signal = signal.SIGTERM

    def __enter__(self):
        self._previous = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread, as in some notebooks and tests
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        del frame
        self.requested, self.signal = True, number
        signal.signal(number, self._previous[number])
