from __future__ import annotations

import torch

# tiny tensors: a second thread only waits (measured: a third slower on two cores), and workers share the cores
torch.set_num_threads(1)
