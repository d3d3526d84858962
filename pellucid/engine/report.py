"""What an engine says of itself."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an engine has done since it was made, and how it stands, as plain numbers."""

    n_requests: int
    n_finished: int
    n_cancelled: int
    n_failed: int
    n_running: int
    n_waiting: int
    n_steps: int
    n_prompt_tokens: int
    n_reused_tokens: int  # of those, taken over from pages that were computed before
    n_computed_tokens: int  # everything that passed the decoder, what was computed again included
    n_output_tokens: int
    n_preempted: int
    n_drafted: int  # ids proposed to follow, and computed
    n_accepted: int  # of those, right
    cache_bytes: int  # a draft model's included
    cache_used_share: float
    busy_seconds: float
    first_token_seconds: float  # from submitting to the first id, mean over requests
    token_seconds: float  # between two ids of a request, mean over all

    @property
    def accepted_share(self) -> float | None:
        """Of what was drafted; None where nothing was."""
        return self.n_accepted / self.n_drafted if self.n_drafted else None
