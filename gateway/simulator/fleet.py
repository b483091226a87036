"""The fleet's figures, read twice a second: each is a sum over all replicas, and every request asks."""

import asyncio

from gateway.fleet import Fleet

_REFRESH_S = 0.5


class SimFleet(Fleet):
    def __init__(self, safety_factor: float) -> None:
        super().__init__(safety_factor)
        self._loop = asyncio.get_running_loop()
        self._read_s = -_REFRESH_S
        self._prefill_s = self._answer_s = self._work_rate = 0.0
        self._longest_row_tokens = 0
        self._num_replicas = 0
        """For so many replicas, whose memory is not going to change."""

    @property
    def longest_row_tokens(self) -> int:
        if self._num_replicas != len(self.replicas):
            self._num_replicas = len(self.replicas)
            self._longest_row_tokens = super().longest_row_tokens
        return self._longest_row_tokens

    @property
    def work_rate(self) -> float:
        self._refresh()
        return self._work_rate

    def seconds(self, prompt_tokens: int, answer_tokens: int) -> tuple[float, float]:
        self._refresh()
        return prompt_tokens * self._prefill_s, answer_tokens * self._answer_s

    def _refresh(self) -> None:
        now_s = self._loop.time()
        if now_s - self._read_s >= _REFRESH_S:
            self._read_s = now_s
            self._prefill_s, self._answer_s = super().seconds(1, 1)
            self._work_rate = super().work_rate
