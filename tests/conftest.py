"""Two workers share the cores: one thread each, and no deadline on random examples."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("prunus", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("prunus")
