"""Bytes that a forward pass leaves behind for backward."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers import Session


@contextmanager
def _without_pool() -> Iterator[None]:
    """normkit's tensors from PyTorch's allocator, as the profiler sees no other memory."""
    host: Any = sys.modules.get("normkit.torch.host")
    if host is None:  # a peer that does not use normkit
        yield
        return
    limit, host._POOLED = host._POOLED, 1 << 60
    try:
        yield
    finally:
        host._POOLED = limit


def bytes_kept(session: Session) -> dict[str, int]:
    """What PyTorch's allocator has handed out in a forward pass and not got back.

    Counting storages in hooks on saved tensors would be simpler, but the inner ones of two nested
    hooks hide the tensors from the outer ones, and lean memory is made of such hooks.
    """
    import torch

    with _without_pool():
        session.forward()
        session.backward()  # what is made once: optimizer's state, caches
        session.release()
        gc.collect()
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            session.forward()
            gc.collect()  # what only a cycle of references holds is not kept for backward
        events = profile.key_averages()
        session.release()
    return {"kept": sum(event.self_cpu_memory_usage for event in events)}
