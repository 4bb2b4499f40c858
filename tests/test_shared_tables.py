"""Tables that calls share, with a GPU that is pretended: its tensors lie on the CPU."""

import pytest
import torch

from warpdraft.kernels import shared_tables
from warpdraft.kernels.shared_tables import shared_table

GPU = torch.device("cuda", 0)


class Gpu:
    """What torch says of the pretended GPU, and the copies that were made to it."""

    def __init__(self, monkeypatch):
        self.capturing, self.copies = False, 0
        tensor, full = torch.tensor, torch.full

        def copied(values, *, dtype, device):
            assert not self.capturing
            self.copies += 1
            return tensor(values, dtype=dtype)

        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch, "tensor", copied)
        monkeypatch.setattr(torch, "full", lambda *shape, dtype, device: full(*shape, dtype=dtype))


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(shared_tables, "_TABLES_OF_GRAPHS", {})
    shared_tables._copied_table.cache_clear()
    yield Gpu(monkeypatch)
    shared_tables._copied_table.cache_clear()


def table(*values):
    return shared_table(values, torch.float32, GPU)


def test_numbers_are_copied_once(gpu):
    assert table(0.0, 1.5) is table(0.0, 1.5)
    assert gpu.copies == 1


def test_a_graph_keeps_the_table_that_it_reads(gpu):
    warm = table(0.0, 1.5)
    gpu.capturing = True
    assert table(0.0, 1.5) is warm
    gpu.capturing = False
    for number in range(400):
        table(float(number))
    assert [kept is warm for kept in shared_tables._TABLES_OF_GRAPHS.values()] == [True]


def test_numbers_that_were_not_warmed_up_are_filled_in_by_the_graph(gpu):
    gpu.capturing = True
    assert table(0.25, 3.0).tolist() == [0.25, 3.0]
    assert gpu.copies == 0
