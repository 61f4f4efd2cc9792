"""PostgreSQL as the source of a NearCache: queries, and triggers that tell what changes."""

from __future__ import annotations

from shmrhash._near.postgres import PostgresSource
from shmrhash._near.triggers import triggers

__all__ = ["PostgresSource", "triggers"]
